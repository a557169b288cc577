"""Tool calls in generated text (the `hermes` format): one parser for all engines.

Follows the behaviour of vLLM's hermes parser without streaming (spec/reference.md 1.5): every `<tool_call>` block, closed
or running to the end of the text, must hold a JSON object with `name` and `arguments`; if any of them does not, there is no
tool call at all and the text stays an ordinary answer.
"""

from __future__ import annotations

import json
import re
from dataclasses import dataclass
from typing import Any

_BLOCK = re.compile(r"<tool_call>(.*?)</tool_call>|<tool_call>(.*)", re.DOTALL)
_START = "<tool_call>"


@dataclass(frozen=True)
class ParsedCall:
    """A call that the model asked for. `arguments` is whatever JSON value stood there; usually a dict."""

    name: str
    arguments: Any


@dataclass(frozen=True)
class Parsed:
    """Text before the first call, and the calls; with `calls` empty the text is the whole completion."""

    text: str
    calls: tuple[ParsedCall, ...]


def _call(source: str) -> ParsedCall:
    value = json.loads(source)
    name = value["name"]
    if not isinstance(name, str):
        raise TypeError("name is not a text")
    return ParsedCall(name, value["arguments"])


def parse_hermes(completion: str) -> Parsed:
    """Find the tool calls in a completion. Never raises.

    Args:
        completion: generated text, special tokens included (`<tool_call>` is one in some tokenizers).
    """
    if _START not in completion:
        return Parsed(completion, ())
    try:
        calls = tuple(_call(closed or unclosed) for closed, unclosed in _BLOCK.findall(completion))
    except (ValueError, TypeError, KeyError, RecursionError):
        return Parsed(completion, ())
    return Parsed(completion[: completion.find(_START)], calls)

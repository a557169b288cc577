"""What of a completion is scored: thinking is taken off, differently for `paper` and for `strict`."""

from __future__ import annotations

import re

_CLOSED_THOUGHT = re.compile(r'<think(?:\s+signature="[^"]*")?(?:\s+redacted="true")?\s*>.*?</think>', re.DOTALL)
_THINK_END = "</think>"
# The word may stand in a heading, a list or a quotation, in bold or in code.
_STATED = re.compile(r"^[\s*_#>`$-]*(?:final\s+)?answer\s*(?:\*\*|__|`)?\s*:\s*(.*)$", re.IGNORECASE)
_THINK_START = re.compile(r"<think[^>]*>")


def paper_text(completion: str) -> str:
    """What the published scoring saw: without the *first closed* think block, and otherwise as it is.

    Inspect 0.3.150 took that block off; an unclosed `<think>`, a lone `</think>` and a second block stayed in the text
    and were scored (reference.md 1.0). Later releases do it differently, so it is done here and not there.
    """
    found = _CLOSED_THOUGHT.search(completion)
    if found is None:
        return completion
    return (completion[: found.start()] + completion[found.end() :]).strip()


def visible_text(completion: str) -> str:
    """The answer proper: what follows the last `</think>`, up to a `<think>` that is never closed."""
    text = completion.rpartition(_THINK_END)[2]
    opened = _THINK_START.search(text)
    return text[: opened.start()] if opened else text


def strict_answer(completion: str) -> str | None:
    """The stated answer: the rest of the last line that begins with `ANSWER:` outside of thinking, `None` without one.

    Markup before the word does not matter, nor does its case; `Final answer:` is the same. If the rest is empty, the next
    line that is not counts.
    """
    answer: str | None = None
    waiting = False
    for line in visible_text(completion).splitlines():
        matched = _STATED.match(line)
        if matched:
            answer = matched.group(1).strip()
            waiting = not answer.strip("*_`$ ")
        elif waiting and line.strip("*_`$ \t"):
            answer, waiting = line.strip(), False
    return answer

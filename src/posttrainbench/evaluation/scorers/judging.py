"""Asking an LLM to grade: once per question, and a failure is a failure, never a verdict."""

from __future__ import annotations

import asyncio
import re
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol, TypeVar

from inspect_ai.model import ChatMessage, GenerateConfig, Model, get_model
from inspect_ai.util import concurrency

from posttrainbench.errors import ConfigurationError

T = TypeVar("T")
DEFAULT_GRADER = "openai/gpt-5-mini"  # of the published evaluation (reference.md 1.6, 1.7)
LONGEST_REPLY = 49_152  # tokens, likewise
_CONNECTIONS = 64


class Unreadable(ValueError):
    """The grader answered, and not in the form that was asked for."""


class Graded(Protocol):
    """What became of one grading.

    Attributes:
        value: the parsed verdict; `None` if there is none.
        reply: the grader's last text.
        error: why there is no verdict; empty otherwise.
    """

    @property
    def value(self) -> Any: ...
    @property
    def reply(self) -> str: ...
    @property
    def error(self) -> str: ...


@dataclass(frozen=True)
class Verdict:
    """A `Graded`."""

    value: Any
    reply: str
    error: str = ""


Transport = Callable[..., Awaitable[Graded]]


def resolve_grader(grader: Model | str | None, *, config: GenerateConfig) -> Model:
    """The grading model.

    Raises:
        ConfigurationError: unknown name, missing package or missing key.
    """
    if isinstance(grader, Model):
        return grader
    name = grader or DEFAULT_GRADER
    try:
        return get_model(name, config=config)
    except ConfigurationError:
        raise
    except Exception as error:  # Inspect's prerequisite errors have no public class
        raise ConfigurationError(
            f"the grader {name!r} cannot be used: {' '.join(str(error).split())[:200]}; set its key, or choose another "
            "with --grader"
        ) from error


async def plain_grade(
    model: Model, messages: Sequence[ChatMessage], *, parse: Callable[[str], T], attempts: int
) -> Verdict:
    """Ask until the reply can be read, `attempts` times at most. Inspect repeats rate limits and server errors itself."""
    reply, error = "", "not asked"
    for attempt in range(attempts):
        try:
            async with concurrency("grading", _CONNECTIONS):
                reply = (await model.generate(list(messages), cache=False)).completion
        except Exception as failure:  # whatever the provider raises once it has given up
            error = f"{type(failure).__name__}: {str(failure)[:200]}"
            await asyncio.sleep(min(2.0**attempt, 30.0) if attempt + 1 < attempts else 0)
            continue
        try:
            return Verdict(parse(reply), reply)
        except Unreadable as failure:
            error = f"unreadable reply: {str(failure)[:200]}"
    return Verdict(None, reply, error)


class Judge:
    """A grader for one evaluation, which never asks the same thing twice.

    `strict` and `paper` mostly ask the same: of an answer without thinking and repetitions both see the same text.

    Args:
        grader: as in `BenchmarkOptions`.
        config: for the model, if `grader` is a name.
        attempts: of each grading.
        transport: how to ask; `plain_grade` unless the harness brings its own with retries, quota and a cache on disk.
    """

    def __init__(
        self, grader: Model | str | None, *, config: GenerateConfig, attempts: int, transport: Transport = plain_grade
    ) -> None:
        self._grader = grader
        self._config = config
        self._attempts = attempts
        self._transport = transport
        self._model: Model | None = None
        self._asked: dict[tuple[str, ...], asyncio.Future[Graded]] = {}

    async def ask(self, messages: Sequence[ChatMessage], parse: Callable[[str], Any]) -> Graded:
        """Grade; equal messages share one grading. `parse` raises `Unreadable` for a reply it cannot read."""
        key = tuple(f"{message.role}:{message.text}" for message in messages)
        future = self._asked.get(key)
        if future is None or future.get_loop() is not asyncio.get_running_loop():
            if self._model is None:
                self._model = resolve_grader(self._grader, config=self._config)
            call = self._transport(self._model, messages, parse=parse, attempts=self._attempts)
            future = self._asked[key] = asyncio.ensure_future(call)
        return await asyncio.shield(future)


def fill(template: str, values: Mapping[str, str]) -> str:
    """Put values in the place of their markers in one pass: a marker within a value stays what it is."""
    pattern = re.compile("|".join(re.escape(marker) for marker in values))
    return pattern.sub(lambda match: values[match.group()], template)

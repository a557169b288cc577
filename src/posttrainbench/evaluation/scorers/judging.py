"""Asking an LLM to grade: never the same thing twice, and a failure is a failure, never a verdict.

Retries, quota, the cache on disk and the counts are `evaluation.grading`'s; this is what graded benchmarks share beyond it.
"""

from __future__ import annotations

import asyncio
import re
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from inspect_ai.model import ChatMessage, GenerateConfig, Model

from posttrainbench.evaluation.grading import Graded, grade

LONGEST_REPLY = 49_152  # tokens, as the published evaluation's (reference.md 1.6, 1.7)


class Judge:
    """A grader for one evaluation that asks every question once.

    `strict` and `paper` mostly ask the same: of an answer without thinking and repetitions both see the same text.

    Args:
        grader: as in `BenchmarkOptions`.
        config: generation settings of the grader.
        attempts: replies to one question until the first that can be read.
    """

    def __init__(self, grader: Model | str | None, *, config: GenerateConfig, attempts: int) -> None:
        self._grader = grader
        self._config = config
        self._attempts = attempts
        self._asked: dict[tuple[str, ...], asyncio.Future[Graded[Any]]] = {}

    async def ask(self, messages: Sequence[ChatMessage], parse: Callable[[str], Any | None]) -> Graded[Any]:
        """Grade. `parse` returns `None` for a reply that it cannot read.

        Raises:
            ConfigurationError: there is no such grader, or no key for it.
        """
        key = tuple(f"{message.role}:{message.text}" for message in messages)
        known = self._asked.get(key)
        if known is None or known.get_loop() is not asyncio.get_running_loop():
            asking = grade(self._grader, messages, parse=parse, attempts=self._attempts, config=self._config)
            known = self._asked[key] = asyncio.ensure_future(asking)
        return await asyncio.shield(known)


def why(graded: Graded[Any]) -> str:
    """Why a grading has no verdict, in words."""
    return f"{graded.failure or 'unknown'}: {graded.detail[:200]}"


def fill(template: str, values: Mapping[str, str]) -> str:
    """Put values in the place of their markers in one pass: a marker within a value stays what it is."""
    pattern = re.compile("|".join(re.escape(marker) for marker in values))
    return pattern.sub(lambda match: values[match.group()], template)

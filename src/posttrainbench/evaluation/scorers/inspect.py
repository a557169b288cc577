"""From plain functions to Inspect scorers: what every benchmark with a right answer uses.

A score that could not be made (the grader failed, the sandbox broke) is *missing*: its value is NaN, Inspect's own sign
for "leave out of metrics", and `metadata["missing"]` says why. It is never 0 and never silently left out of the count.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import Any

from inspect_ai.scorer import CORRECT, INCORRECT, Score, Scorer, Target, accuracy, scorer, stderr
from inspect_ai.solver import TaskState

Judge = Callable[[str, str], bool]
Marker = Callable[[TaskState, Target], Awaitable[Score]]


@scorer(metrics=[accuracy(), stderr()], name="strict")
def strict(judge: Judge) -> Scorer:
    """The primary scorer: `judge(completion, target)`."""
    return _scored(judge)


@scorer(metrics=[accuracy(), stderr()], name="paper")
def paper(judge: Judge) -> Scorer:
    """The scorer that reproduces the published numbers: `judge(completion, target)`."""
    return _scored(judge)


@scorer(metrics=[accuracy(), stderr()], name="strict")
def strict_state(marker: Marker) -> Scorer:
    """The primary scorer of a benchmark whose marking needs more than two texts."""

    async def score(state: TaskState, target: Target) -> Score:
        return await marker(state, target)

    return score


@scorer(metrics=[accuracy(), stderr()], name="paper")
def paper_state(marker: Marker) -> Scorer:
    """The paper's scorer of a benchmark whose marking needs more than two texts."""

    async def score(state: TaskState, target: Target) -> Score:
        return await marker(state, target)

    return score


def verdict(right: bool, completion: str, **metadata: Any) -> Score:
    """A right-or-wrong score that keeps the end of the completion for the reader of the log."""
    return Score(value=CORRECT if right else INCORRECT, answer=completion[-200:], metadata=metadata or None)


def missing(reason: str, **metadata: Any) -> Score:
    """No score, and why. See the module's docstring."""
    return Score(
        value=float("nan"), reason="grader_failed", explanation=reason, metadata={"missing": reason, **metadata}
    )


def _scored(judge: Judge) -> Scorer:
    async def score(state: TaskState, target: Target) -> Score:
        completion = state.output.completion
        return verdict(judge(completion, target.text), completion)

    return score

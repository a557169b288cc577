"""From plain functions to Inspect scorers: what every benchmark with a right answer uses."""

from __future__ import annotations

from collections.abc import Callable

from inspect_ai.scorer import CORRECT, INCORRECT, Score, Scorer, Target, accuracy, scorer, stderr
from inspect_ai.solver import TaskState

Judge = Callable[[str, str], bool]


@scorer(metrics=[accuracy(), stderr()], name="strict")
def strict(judge: Judge) -> Scorer:
    """The primary scorer: `judge(completion, target)`."""
    return _scored(judge)


@scorer(metrics=[accuracy(), stderr()], name="paper")
def paper(judge: Judge) -> Scorer:
    """The scorer that reproduces the published numbers: `judge(completion, target)`."""
    return _scored(judge)


def _scored(judge: Judge) -> Scorer:
    async def score(state: TaskState, target: Target) -> Score:
        completion = state.output.completion
        right = judge(completion, target.text)
        return Score(value=CORRECT if right else INCORRECT, answer=completion[-200:])

    return score

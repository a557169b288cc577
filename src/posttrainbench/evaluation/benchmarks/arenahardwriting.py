"""Arena-Hard v2.0 (writing): 250 requests, compared with Qwen3-1.7B's answers by an LLM. Protocol: docs/protocol.md."""

from __future__ import annotations

import random

from inspect_ai import Task
from inspect_ai.dataset import MemoryDataset, Sample
from inspect_ai.model import GenerateConfig
from inspect_ai.scorer import Score, Target
from inspect_ai.solver import TaskState, generate

from posttrainbench.evaluation import data
from posttrainbench.evaluation.benchmarks import BenchmarkOptions
from posttrainbench.evaluation.grading import Graded
from posttrainbench.evaluation.scorers import arena
from posttrainbench.evaluation.scorers.aggregate import Aggregate, over_entries
from posttrainbench.evaluation.scorers.inspect import Marker, missing, paper_state, strict_state
from posttrainbench.evaluation.scorers.judging import LONGEST_REPLY, Judge, why

GRADER_CONFIG = GenerateConfig(max_tokens=LONGEST_REPLY, reasoning_effort="medium")
GRADED = True
ORDER_SEED = 42
AGGREGATE: Aggregate = {"paper": over_entries}
_SIDES: tuple[arena.Side, arena.Side] = ("B", "A")  # the candidate's, in the first and in the second game


async def play(judge: Judge, state: TaskState, answer: str) -> list[Graded[str]]:
    """Both games of a prompt: the candidate as B, then as A."""
    question, opponent = state.metadata["question"], state.metadata["opponent"]
    return [
        await judge.ask(arena.messages(question, opponent, answer), arena.parse_strict),
        await judge.ask(arena.messages(question, answer, opponent), arena.parse_strict),
    ]


def _markers(judge: Judge) -> tuple[Marker, Marker]:
    async def mark_strict(state: TaskState, target: Target) -> Score:
        answer = arena.strict_answer(state.output.completion)
        if not answer:  # nothing to compare, and nothing that a judge could be talked into
            return Score(value=0.0, answer="", metadata={"empty": True})
        games = await play(judge, state, answer)
        failed = [why(game) for game in games if game.value is None]
        labels = [game.value for game in games if game.value is not None]
        if failed:
            return missing("grading failed", detail=failed, labels=labels)
        value = sum(arena.points(label, side) for label, side in zip(labels, _SIDES, strict=True)) / 2
        replies = [game.text[-2000:] for game in games]
        return Score(value=value, answer=answer[-200:], metadata={"labels": labels, "replies": replies})

    async def mark_paper(state: TaskState, target: Target) -> Score:
        answer = arena.paper_answer(state.output.completion)
        games = await play(judge, state, answer)
        labels = [arena.parse_paper(game.text) for game in games]
        entries: list[float] = []
        for label, side in zip(labels, _SIDES, strict=True):
            if label is None:
                return missing("no verdict: the published evaluation drops the prompt", labels=labels)
            entries += arena.paper_entries(label, side)
        metadata = {"labels": labels, "entries": entries}
        return Score(value=sum(entries) / len(entries), answer=answer[-200:], metadata=metadata)

    return mark_strict, mark_paper


def build(options: BenchmarkOptions) -> Task:
    """The task; one user message per request.

    Raises:
        ConfigurationError: no data.
    """
    loaded = data.arena_hard_writing(options.data_dir)
    rows = list(loaded.rows)
    random.Random(ORDER_SEED).shuffle(rows)  # as the published evaluation does, so that a limit takes the same items
    samples = [
        Sample(
            id=row["uid"],
            input=row["prompt"],
            metadata={"question": row["prompt"], "opponent": row["opponent"]},
        )
        for row in rows
    ]
    judge = Judge(options.grader, config=GRADER_CONFIG, attempts=options.grader_attempts)
    mark_strict, mark_paper = _markers(judge)
    return Task(
        name="arenahardwriting",
        dataset=MemoryDataset(samples, name="arenahardwriting"),
        solver=generate(),
        scorer=[strict_state(mark_strict), paper_state(mark_paper)],
        epochs=options.epochs,
        metadata={"data": loaded.source, "opponent": "Qwen3-1.7B"},
    )

"""HealthBench-Easy: 245 health conversations, graded by rubric criteria. Protocol: docs/protocol.md."""

from __future__ import annotations

import asyncio
import random
from collections.abc import Sequence
from typing import Any

from inspect_ai import Task
from inspect_ai.dataset import MemoryDataset, Sample
from inspect_ai.model import ChatMessage, ChatMessageAssistant, ChatMessageSystem, ChatMessageUser, GenerateConfig
from inspect_ai.scorer import Score, Target
from inspect_ai.solver import TaskState, generate

from posttrainbench.evaluation import data
from posttrainbench.evaluation.benchmarks import BenchmarkOptions
from posttrainbench.evaluation.grading import Graded
from posttrainbench.evaluation.scorers import rubric
from posttrainbench.evaluation.scorers.aggregate import Aggregate, clipped, clipped_bootstrap
from posttrainbench.evaluation.scorers.inspect import Marker, missing, paper_state, strict_state
from posttrainbench.evaluation.scorers.judging import LONGEST_REPLY, Judge, why

GRADER_CONFIG = GenerateConfig(max_tokens=LONGEST_REPLY)
GRADED = True
ORDER_SEED = 42
AGGREGATE: Aggregate = {"strict": clipped, "paper": clipped_bootstrap}
_ROLES = {"user": ChatMessageUser, "assistant": ChatMessageAssistant, "system": ChatMessageSystem}


async def _grade(judge: Judge, prompts: Sequence[str]) -> list[Graded[bool]]:
    return list(await asyncio.gather(*(judge.ask([ChatMessageUser(content=p)], rubric.parse) for p in prompts)))


def _details(rubrics: Sequence[dict[str, Any]], graded: Sequence[Graded[bool]], tags: Sequence[str]) -> dict[str, Any]:
    criteria = [
        {
            "points": item["points"],
            "tags": item["tags"],
            "met": one.value,
            "error": why(one) if one.value is None else "",
        }
        for item, one in zip(rubrics, graded, strict=True)
    ]
    return {"criteria": criteria, "tags": list(tags)}


def _markers(judge: Judge) -> tuple[Marker, Marker]:
    async def mark_strict(state: TaskState, target: Target) -> Score:
        item, answer = state.metadata, rubric.strict_answer(state.output.completion)
        if not answer:  # else an empty answer would get the points for what it does not say
            unmet = [
                {"points": one["points"], "tags": one["tags"], "met": False, "error": ""} for one in item["rubrics"]
            ]
            return Score(
                value=0.0, answer="", metadata={"empty": True, "criteria": unmet, "tags": item["example_tags"]}
            )
        rubrics = item["rubrics"]
        graded = await _grade(judge, [rubric.strict_prompt(item["prompt"], answer, one) for one in rubrics])
        details = _details(rubrics, graded, item["example_tags"])
        failed = [why(one) for one in graded if one.value is None]
        if failed:
            return missing("grading failed", ungraded=len(failed), detail=failed[:3], **details)
        value = rubric.score(rubrics, [bool(one.value) for one in graded])
        return Score(value=value, answer=answer[-200:], metadata=details)

    async def mark_paper(state: TaskState, target: Target) -> Score:
        item, answer = state.metadata, rubric.paper_answer(state.output.completion)
        rubrics = item["rubrics"]
        graded = await _grade(judge, [rubric.paper_prompt(item["prompt"], answer, one) for one in rubrics])
        # the published quirk: what could not be graded is "not met", negative criteria included
        value = rubric.score(rubrics, [bool(one.value) for one in graded])
        details = _details(rubrics, graded, item["example_tags"])
        details["ungraded"] = sum(1 for one in graded if one.value is None)
        return Score(value=value, answer=answer[-200:], metadata=details)

    return mark_strict, mark_paper


def _messages(turns: Sequence[dict[str, str]]) -> list[ChatMessage]:
    return [_ROLES[turn["role"]](content=turn["content"]) for turn in turns]


def build(options: BenchmarkOptions) -> Task:
    """The task; the conversation as it is, the model writes the next turn.

    Raises:
        ConfigurationError: no data.
    """
    loaded = data.healthbench_easy(options.data_dir)
    rows = list(loaded.rows)
    random.Random(ORDER_SEED).shuffle(rows)  # as the published evaluation does, so that a limit takes the same items
    samples = [
        Sample(
            id=row["prompt_id"],
            input=_messages(row["prompt"]),
            metadata={"prompt": row["prompt"], "rubrics": row["rubrics"], "example_tags": row["example_tags"]},
        )
        for row in rows
    ]
    judge = Judge(options.grader, config=GRADER_CONFIG, attempts=options.grader_attempts)
    mark_strict, mark_paper = _markers(judge)
    return Task(
        name="healthbench",
        dataset=MemoryDataset(samples, name="healthbench"),
        solver=generate(),
        scorer=[strict_state(mark_strict), paper_state(mark_paper)],
        epochs=options.epochs,
        metadata={"data": loaded.source},
    )

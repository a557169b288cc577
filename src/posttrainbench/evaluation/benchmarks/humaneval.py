"""HumanEval: 164 Python functions to write, marked by running their tests. Protocol: docs/protocol.md."""

from __future__ import annotations

from inspect_ai import Task
from inspect_ai.dataset import MemoryDataset, Sample
from inspect_ai.scorer import Score, Target
from inspect_ai.solver import TaskState, generate
from inspect_evals.humaneval.humaneval import INSTRUCTION

from posttrainbench.evaluation import data
from posttrainbench.evaluation.benchmarks import BenchmarkOptions
from posttrainbench.evaluation.scorers.code import paper_program, strict_program
from posttrainbench.evaluation.scorers.execution import Executor, Outcome, Problem
from posttrainbench.evaluation.scorers.inspect import Marker, missing, paper_state, strict_state, verdict


def _score(outcome: Outcome, program: str) -> Score:
    if outcome.passed is None:
        return missing(outcome.detail)
    score = verdict(outcome.passed, program, detail=outcome.detail)
    score.answer = program
    return score


def _markers(executor: Executor) -> tuple[Marker, Marker]:
    def submit(state: TaskState) -> tuple[str, str]:
        """Both programs of a sample; the executor runs what it does not know yet."""
        item, completion = state.metadata, state.output.completion
        right = strict_program(completion, prompt=item["prompt"], entry_point=item["entry_point"])
        published = paper_program(completion, prompt=item["prompt"], test=item["test"], entry_point=item["entry_point"])
        return right, published

    def problem(state: TaskState, target: Target) -> Problem:
        item = state.metadata
        return Problem(str(state.sample_id), item["prompt"] + target.text, item["test"], item["entry_point"])

    async def mark_strict(state: TaskState, target: Target) -> Score:
        right, published = submit(state)
        executor.submit(published)  # so that both scorers' programs share one sandbox
        return _score(await executor.submit(right, problem(state, target)), right)

    async def mark_paper(state: TaskState, target: Target) -> Score:
        _, published = submit(state)
        return _score(await executor.submit(published), published)

    return mark_strict, mark_paper


def build(options: BenchmarkOptions) -> Task:
    """The task; one user message per function, one answer each.

    Raises:
        ConfigurationError: no data.
    """
    loaded = data.humaneval(options.data_dir)
    samples = [
        Sample(
            id=row["task_id"],
            input=INSTRUCTION + row["prompt"],
            target=row["canonical_solution"],
            metadata={"prompt": row["prompt"], "test": row["test"], "entry_point": row["entry_point"]},
        )
        for row in loaded.rows
    ]
    mark_strict, mark_paper = _markers(Executor(options.execution))
    return Task(
        name="humaneval",
        dataset=MemoryDataset(samples, name="humaneval"),
        solver=generate(),
        scorer=[strict_state(mark_strict), paper_state(mark_paper)],
        epochs=options.epochs,
        metadata={"data": loaded.source},
    )

"""smoke-math: 200 small arithmetic word problems, posed and scored like GSM8K, for machines without a GPU."""

from __future__ import annotations

from inspect_ai import Task
from inspect_ai.dataset import MemoryDataset, Sample
from inspect_ai.solver import generate

from posttrainbench.evaluation.benchmarks import BenchmarkOptions
from posttrainbench.evaluation.scorers.inspect import paper, strict
from posttrainbench.evaluation.scorers.numeric import paper_numeric, strict_numeric
from posttrainbench.smoke.problems import render_prompt, test_items


def build(options: BenchmarkOptions) -> Task:
    """The task; zero-shot, one user message per problem."""
    samples = [
        Sample(id=item["id"], input=render_prompt(item["question"]), target=str(item["answer"]))
        for item in test_items()
    ]
    return Task(
        name="smoke-math",
        dataset=MemoryDataset(samples, name="smoke-math"),
        solver=generate(),
        scorer=[strict(strict_numeric), paper(paper_numeric)],
    )

"""AIME 2025: 30 competition problems with integer answers, zero-shot. Protocol: docs/protocol.md."""

from __future__ import annotations

from inspect_ai import Task
from inspect_ai.dataset import MemoryDataset, Sample
from inspect_ai.solver import generate
from inspect_evals.utils.aime_common import USER_PROMPT_TEMPLATE

from posttrainbench.evaluation import data
from posttrainbench.evaluation.benchmarks import BenchmarkOptions
from posttrainbench.evaluation.scorers.inspect import paper, strict
from posttrainbench.evaluation.scorers.numeric import paper_aime, strict_numeric


def build(options: BenchmarkOptions) -> Task:
    """The task; one user message per problem.

    Raises:
        ConfigurationError: no data.
    """
    loaded = data.aime2025(options.data_dir)
    samples = [
        # the ids do not depend on where the rows came from; the sources' own are in `aliases`
        Sample(
            id=f"aime2025/{number}",
            input=USER_PROMPT_TEMPLATE.replace("{prompt}", row["problem"]),
            target=row["answer"],
            metadata={"aliases": row["aliases"]},
        )
        for number, row in enumerate(loaded.rows)
    ]
    return Task(
        name="aime2025",
        dataset=MemoryDataset(samples, name="aime2025"),
        solver=generate(),
        scorer=[strict(strict_numeric), paper(paper_aime)],
        epochs=options.epochs,
        metadata={"data": loaded.source},
    )

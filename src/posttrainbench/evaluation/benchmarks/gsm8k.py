"""GSM8K: 1319 grade-school word problems, ten worked examples in the system message. Protocol: docs/protocol.md."""

from __future__ import annotations

from typing import Any

import numpy as np
from inspect_ai import Task
from inspect_ai.dataset import MemoryDataset, Sample
from inspect_ai.model import ChatMessageSystem, ChatMessageUser
from inspect_ai.solver import generate
from inspect_evals.gsm8k.gsm8k import MATH_PROMPT_TEMPLATE, record_to_sample, sample_to_fewshot

from posttrainbench.evaluation import data
from posttrainbench.evaluation.benchmarks import BenchmarkOptions
from posttrainbench.evaluation.scorers.inspect import paper, strict
from posttrainbench.evaluation.scorers.numeric import paper_numeric, strict_numeric

SHOTS = 10
SHUFFLE_SEED = 42


def shots(train: list[dict[str, Any]]) -> str:
    """The system message: the first ten of the train split as `datasets.Dataset.shuffle(seed=42)` orders it."""
    # what that function does, without the package: one permutation of numpy's default generator
    order = np.random.default_rng(SHUFFLE_SEED).permutation(len(train))[:SHOTS]
    return "\n\n".join(sample_to_fewshot(record_to_sample(train[int(index)])) for index in order)


def build(options: BenchmarkOptions) -> Task:
    """The task; the same ten worked examples for all problems.

    Raises:
        ConfigurationError: no data; the train split is needed too.
    """
    loaded = data.gsm8k(options.data_dir)
    train = data.gsm8k(options.data_dir, split="train")
    system = shots(train.rows)
    samples = [
        Sample(
            id=f"gsm8k/{number}",
            input=[
                ChatMessageSystem(content=system),
                ChatMessageUser(content=MATH_PROMPT_TEMPLATE.replace("{prompt}", row["question"])),
            ],
            target=record_to_sample(row).target,
            metadata={"aliases": [f"gsm8k_test_{number}"]},
        )
        for number, row in enumerate(loaded.rows)
    ]
    return Task(
        name="gsm8k",
        dataset=MemoryDataset(samples, name="gsm8k"),
        solver=generate(),
        scorer=[strict(strict_numeric), paper(paper_numeric)],
        epochs=options.epochs,
        metadata={"data": f"{loaded.source} {train.source}"},
    )

"""GPQA main: 448 graduate-level multiple-choice questions, zero-shot. Protocol: docs/protocol.md.

`inspect_evals` has only the 198 questions of GPQA diamond, so the task is ours; the prompt is Inspect's.
"""

from __future__ import annotations

import random
from typing import Any

from inspect_ai import Task
from inspect_ai.dataset import MemoryDataset, Sample
from inspect_ai.solver import generate
from inspect_ai.solver._multiple_choice import SINGLE_ANSWER_TEMPLATE_COT  # not exported; its hash is tested

from posttrainbench.evaluation import data
from posttrainbench.evaluation.benchmarks import BenchmarkOptions
from posttrainbench.evaluation.scorers.choice import paper_choice, strict_choice
from posttrainbench.evaluation.scorers.inspect import paper, strict

LETTERS = "ABCD"


def ordered(row: dict[str, Any], seed: int) -> tuple[list[str], str]:
    """The options of an item in the order in which they are shown, and the letter of the right one.

    The order depends on the seed and the item's id only: every model sees the same exam, whatever the limit. (The
    reference shuffles anew in every run.)
    """
    order = [0, 1, 2, 3]
    random.Random(f"{seed}:{row['id']}").shuffle(order)
    options = [row["correct"], *row["incorrect"]]
    return [options[index] for index in order], LETTERS[order.index(0)]


def build(options: BenchmarkOptions) -> Task:
    """The task; one user message per question.

    Raises:
        ConfigurationError: no data.
    """
    loaded = data.gpqa_main(options.data_dir)
    samples = []
    for row in loaded.rows:
        shown, letter = ordered(row, options.seed)
        lines = "\n".join(f"{name}) {option}" for name, option in zip(LETTERS, shown, strict=True))
        prompt = SINGLE_ANSWER_TEMPLATE_COT.format(letters=",".join(LETTERS), question=row["question"], choices=lines)
        samples.append(Sample(id=row["id"], input=prompt, target=letter))
    return Task(
        name="gpqamain",
        dataset=MemoryDataset(samples, name="gpqamain"),
        solver=generate(),
        scorer=[strict(strict_choice), paper(paper_choice)],
        epochs=options.epochs,
        metadata={"data": loaded.source, "choice_seed": options.seed},
    )

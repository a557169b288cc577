"""GPQA main: 448 graduate-level multiple-choice questions, zero-shot. Protocol: docs/protocol.md.

`inspect_evals` has only the 198 questions of GPQA diamond, so the task is ours; the prompt is Inspect's.
"""

from __future__ import annotations

import asyncio
import contextvars
import random
from collections.abc import Mapping, Sequence
from typing import Any

from inspect_ai import Task
from inspect_ai.dataset import MemoryDataset, Sample
from inspect_ai.log._transcript import Transcript, init_transcript  # not exported; see `_solver`
from inspect_ai.model import ChatMessageUser, get_model
from inspect_ai.solver import Generate, Solver, TaskState, solver
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


def prompt(question: str, shown: Sequence[str]) -> str:
    """The user message for a question with its options in the order shown."""
    lines = "\n".join(f"{letter}) {option}" for letter, option in zip(LETTERS, shown, strict=True))
    return SINGLE_ANSWER_TEMPLATE_COT.format(letters=",".join(LETTERS), question=question, choices=lines)


def _solver(prompts: Mapping[str, str]) -> Solver:
    """Asks for the prompt of a sample's id in the place of the sample's own text, and keeps it out of the item log.

    The authors ask not to reveal examples in plain text, and logs get published. They name the Record ID instead; what a
    model says of the question in its answer is all that they hold of it.
    """

    @solver(name="ask_without_logging_the_question")  # no parameters: they would be logged too
    def ask() -> Solver:
        async def solve(state: TaskState, generate: Generate) -> TaskState:
            # what stands before the question (worked examples, for a few-shot baseline) stays
            messages = [*state.messages[:-1], ChatMessageUser(content=prompts[str(state.sample_id)])]
            # a transcript of its own, thrown away: Inspect records every model call with its messages
            aside = contextvars.copy_context()
            aside.run(init_transcript, Transcript())
            call = get_model().generate(messages)
            state.output = await asyncio.get_running_loop().create_task(call, context=aside)
            state.messages.append(state.output.message)
            return state

        return solve

    return ask()


def build(options: BenchmarkOptions) -> Task:
    """The task; one user message per question.

    Raises:
        ConfigurationError: no data.
    """
    loaded = data.gpqa_main(options.data_dir)
    samples, prompts = [], {}
    for row in loaded.rows:
        shown, letter = ordered(row, options.seed)
        prompts[row["id"]] = prompt(row["question"], shown)
        withheld = f"(GPQA main {row['id']}; the text is withheld, see docs/protocol.md)"
        samples.append(Sample(id=row["id"], input=withheld, target=letter))
    return Task(
        name="gpqamain",
        dataset=MemoryDataset(samples, name="gpqamain"),
        solver=_solver(prompts),
        scorer=[strict(strict_choice), paper(paper_choice)],
        epochs=options.epochs,
        metadata={"data": loaded.source, "choice_seed": options.seed},
    )

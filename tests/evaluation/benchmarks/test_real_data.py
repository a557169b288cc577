"""On the real data: gold answers score 100 % under both scorers, deliberately wrong ones 0 %, through Inspect."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest
from inspect_ai import Task
from inspect_ai.dataset import Sample

from posttrainbench import catalog
from posttrainbench.evaluation.benchmarks import BenchmarkOptions
from posttrainbench.evaluation.scorers.calls import parse_ground_truth
from posttrainbench.evaluation.scorers.choice import paper_choice, strict_choice
from posttrainbench.evaluation.scorers.inspect import Judge
from posttrainbench.evaluation.scorers.numeric import paper_numeric, strict_numeric
from tests.evaluation.helpers import SHARED, evaluate, needs_data, tally

pytestmark = needs_data
ITEMS = {"aime2025": 30, "bfcl": 100, "gpqamain": 448, "gsm8k": 1319, "humaneval": 164}


def build(benchmark: str) -> Task:
    task: Task = catalog.benchmark(benchmark).builder()(BenchmarkOptions(data_dir=SHARED))
    return task


def gold(benchmark: str, sample: Sample) -> str:
    target = str(sample.target)
    if benchmark == "humaneval":
        return target
    if benchmark == "bfcl":
        call = parse_ground_truth(target)
        return f"<tool_call>\n{json.dumps({'name': call.name, 'arguments': call.arguments})}\n</tool_call>"
    return f"I think.\n\nANSWER: {target}"


def wrong(benchmark: str, sample: Sample) -> str:
    target = str(sample.target)
    if benchmark == "humaneval":
        return f"```python\ndef {(sample.metadata or {})['entry_point']}(*args):\n    return 'wrong'\n```"
    if benchmark == "bfcl":
        call = parse_ground_truth(target)
        arguments = {name: f"not {value}" for name, value in call.arguments.items()}
        return f"<tool_call>\n{json.dumps({'name': call.name, 'arguments': arguments})}\n</tool_call>"
    if benchmark == "gpqamain":
        return f"ANSWER: {'ABCD'[('ABCD'.index(target) + 1) % 4]}"
    # another first digit: the published comparison does not see the sixth, and accepts what ends with the target
    return "ANSWER: " + re.sub(r"\d", lambda digit: str(int(digit.group()) % 9 + 1), target, count=1)


@pytest.mark.parametrize("benchmark", ITEMS)
def test_gold_answers(benchmark: str, tmp_path: Path) -> None:
    task = build(benchmark)
    samples = list(task.dataset)
    number = ITEMS[benchmark]
    assert len(samples) == number == catalog.benchmark(benchmark).items
    assert len({sample.id for sample in samples}) == number
    answers = {str(sample.id): gold(benchmark, sample) for sample in samples}
    assert tally(evaluate(task, answers, tmp_path)) == {"strict": {"C": number}, "paper": {"C": number}}


@pytest.mark.parametrize("benchmark", ["aime2025", "bfcl", "humaneval"])
def test_wrong_answers(benchmark: str, tmp_path: Path) -> None:
    task, number = build(benchmark), ITEMS[benchmark]
    log = evaluate(task, {str(sample.id): wrong(benchmark, sample) for sample in task.dataset}, tmp_path)
    assert tally(log) == {"strict": {"I": number}, "paper": {"I": number}}


@pytest.mark.parametrize(
    ("benchmark", "judges"),
    [("gsm8k", (strict_numeric, paper_numeric)), ("gpqamain", (strict_choice, paper_choice))],
)
def test_wrong_answers_of_the_large_ones(benchmark: str, judges: tuple[Judge, Judge]) -> None:
    samples = list(build(benchmark).dataset)  # by the scorers' functions: Inspect needs 20 ms per sample
    for judge in judges:
        assert [s.id for s in samples if judge(wrong(benchmark, s), str(s.target))] == []

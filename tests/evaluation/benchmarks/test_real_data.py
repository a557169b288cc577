"""On the real data: gold answers score 100 % under both scorers, deliberately wrong ones 0 %, through Inspect."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from inspect_ai import Task
from inspect_ai.dataset import Sample

from posttrainbench import catalog
from posttrainbench.evaluation.benchmarks import BenchmarkOptions
from posttrainbench.evaluation.scorers.calls import parse_ground_truth
from tests.evaluation.helpers import SHARED, evaluate, needs_data, tally

pytestmark = needs_data
ITEMS = {"aime2025": 30, "bfcl": 100, "gpqamain": 448, "gsm8k": 1319, "humaneval": 164}


def build(benchmark: str) -> Task:
    return catalog.benchmark(benchmark).builder()(BenchmarkOptions(data_dir=SHARED))


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
    return f"ANSWER: {target}1"


@pytest.mark.parametrize("benchmark", ITEMS)
def test_gold_and_wrong_answers(benchmark: str, tmp_path: Path) -> None:
    task = build(benchmark)
    samples = list(task.dataset)
    number = ITEMS[benchmark]
    assert len(samples) == number == catalog.benchmark(benchmark).items
    assert len({sample.id for sample in samples}) == number
    right = evaluate(task, {str(sample.id): gold(benchmark, sample) for sample in samples}, tmp_path)
    assert tally(right) == {"strict": {"C": number}, "paper": {"C": number}}
    false = evaluate(build(benchmark), {str(sample.id): wrong(benchmark, sample) for sample in samples}, tmp_path)
    assert tally(false) == {"strict": {"I": number}, "paper": {"I": number}}

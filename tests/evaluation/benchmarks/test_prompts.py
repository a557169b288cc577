"""Prompts and data as documented: fingerprints of spec/reference.md 1.0, shots, option order, tools, ids."""

from __future__ import annotations

import hashlib
import json
from collections import Counter
from pathlib import Path

import pytest
from inspect_ai.dataset import Sample
from inspect_ai.log import read_eval_log
from inspect_ai.model import ChatMessage
from inspect_ai.solver._multiple_choice import SINGLE_ANSWER_TEMPLATE_COT
from inspect_evals.gsm8k.gsm8k import MATH_PROMPT_TEMPLATE
from inspect_evals.healthbench.scorer import GRADER_TEMPLATE
from inspect_evals.humaneval.humaneval import INSTRUCTION
from inspect_evals.utils.aime_common import USER_PROMPT_TEMPLATE

from posttrainbench.evaluation import data
from posttrainbench.evaluation.benchmarks import (
    BenchmarkOptions,
    aime2025,
    arenahardwriting,
    bfcl,
    gpqamain,
    gsm8k,
    healthbench,
    humaneval,
)
from tests.evaluation.helpers import SHARED, evaluate, needs_data

OPTIONS = BenchmarkOptions(data_dir=SHARED)


def messages(sample: Sample) -> list[ChatMessage]:
    assert not isinstance(sample.input, str)
    return sample.input


@pytest.mark.parametrize(
    ("text", "sha", "length"),
    [
        (USER_PROMPT_TEMPLATE, "61bd903920390692", 380),
        (MATH_PROMPT_TEMPLATE, "36c4a11d19b78472", 392),
        (INSTRUCTION, "72575baedbcab0f6", 161),
        (SINGLE_ANSWER_TEMPLATE_COT, "ecdb5441e4ba6485", 241),
        (GRADER_TEMPLATE, "2adffd51fd259554", 3181),
    ],
    ids=["aime", "gsm8k", "humaneval", "gpqa", "healthbench"],
)
def test_fingerprints(text: str, sha: str, length: int) -> None:
    assert (hashlib.sha256(text.encode()).hexdigest()[:16], len(text)) == (sha, length)


@needs_data
def test_aime_prompt_and_ids() -> None:
    samples = list(aime2025.build(OPTIONS).dataset)
    assert samples[0].id == "aime2025/0"
    assert samples[0].metadata == {"aliases": ["aime2025_I_1"]}
    assert "$b>9$" in str(samples[0].input)
    assert "{prompt}" not in str(samples[0].input)
    assert "\\boxed command" in str(samples[0].input)


@needs_data
def test_gsm8k_shots() -> None:
    train = data.gsm8k(SHARED, split="train").rows
    datasets = pytest.importorskip("datasets")
    shuffled = datasets.Dataset.from_list([{"question": row["question"]} for row in train]).shuffle(seed=42)
    system, user = messages(next(iter(gsm8k.build(OPTIONS).dataset)))
    for question in shuffled.select(range(10))["question"]:
        assert f"{question}\n\nReasoning:\n" in system.text
    assert system.text.count("\nANSWER: ") == 10
    assert "<<" in system.text, "calculator marks are kept"
    assert user.text.endswith("\n\nReasoning:")
    sample = next(iter(gsm8k.build(OPTIONS).dataset))
    assert (sample.id, sample.target) == ("gsm8k/0", "18")


@needs_data
def test_gpqa_order_depends_on_seed_and_item_only() -> None:
    def letters(seed: int) -> list[str]:
        dataset = gpqamain.build(BenchmarkOptions(data_dir=SHARED, seed=seed)).dataset
        return [str(sample.target) for sample in dataset]

    first = letters(0)
    assert first == letters(0)
    assert first != letters(1)
    assert all(count > 80 for count in Counter(first).values())


@needs_data
def test_gpqa_question_reaches_the_model_and_not_the_log(tmp_path: Path) -> None:
    rows = {row["id"]: row for row in data.gpqa_main(SHARED).rows}
    seen: dict[str, str] = {}

    def answer(sample_id: str, asked: list[ChatMessage]) -> str:
        seen[sample_id] = asked[-1].text
        return "ANSWER: A"

    number = 20
    log = evaluate(gpqamain.build(OPTIONS), answer, tmp_path, limit=number)
    assert len(seen) == number
    samples = log.samples or []
    # only ids in what follows: item text must not appear in a test's output
    wrong = [
        sample.id
        for sample in samples
        if f"\n{sample.target}) {rows[str(sample.id)]['correct']}" not in seen[str(sample.id)]
        or rows[str(sample.id)]["question"] not in seen[str(sample.id)]
    ]
    assert wrong == []
    [file] = tmp_path.glob("*.eval")
    written = read_eval_log(str(file)).model_dump_json()
    assert written.count("text is withheld") >= number
    told = [name for name in seen if json.dumps(rows[name]["question"])[1:80] in written]
    assert told == []
    assert [sample.id for sample in samples if sample.output.completion != "ANSWER: A"] == []


@needs_data
def test_humaneval_prompt() -> None:
    sample = next(iter(humaneval.build(OPTIONS).dataset))
    assert sample.id == "HumanEval/0"
    assert str(sample.input).startswith("\nRead the following")
    assert "def has_close_elements" in str(sample.input)


@needs_data
def test_bfcl_tools() -> None:
    rows = data.bfcl(SHARED).rows
    info = bfcl.tool(rows[90]["function"])
    schema = info.parameters.model_dump(exclude_none=True)
    assert schema["type"] == "object"
    assert schema["additionalProperties"] is False
    assert schema["properties"]["price"]["type"] == "number"
    assert schema["required"] == rows[90]["function"]["parameters"]["required"]
    vector = bfcl.tool(rows[40]["function"]).parameters.model_dump(exclude_none=True)["properties"]
    assert {value["type"] for value in vector.values()} == {"array"}
    assert all(value["items"]["type"] == "number" for value in vector.values())


@needs_data
def test_bfcl_layouts_agree() -> None:
    assert data.bfcl(SHARED / "bfcl" / "v3_2025-03").rows == data.bfcl(SHARED / "bfcl" / "v3_2024-09").rows


@needs_data
@pytest.mark.parametrize(("module", "number"), [(arenahardwriting, 250), (healthbench, 245)])
def test_graded_ones_are_in_the_published_order(module: object, number: int) -> None:
    import random

    rows = (data.arena_hard_writing if module is arenahardwriting else data.healthbench_easy)(SHARED).rows
    random.Random(42).shuffle(rows)
    samples = list(module.build(OPTIONS).dataset)  # type: ignore[attr-defined]
    assert len(samples) == number
    assert [s.id for s in samples] == [row.get("uid") or row["prompt_id"] for row in rows]


@needs_data
def test_healthbench_conversation() -> None:
    sample = next(iter(healthbench.build(OPTIONS).dataset))
    turns = messages(sample)
    assert len(turns) >= 5
    assert turns[-1].role == "user"
    assert sum(len((s.metadata or {})["rubrics"]) for s in healthbench.build(OPTIONS).dataset) == 1873

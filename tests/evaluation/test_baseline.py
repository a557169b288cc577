"""Reference rows: which evaluation each is made of, and where its metrics go."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from posttrainbench import catalog
from posttrainbench.catalog import BaseModel
from posttrainbench.errors import ConfigurationError
from posttrainbench.evaluation.baseline import KINDS, compute, make_request
from posttrainbench.evaluation.request import EvaluationRequest
from posttrainbench.files import read_json
from tests.evaluation.engines_support import variant


def entry(name: str) -> BaseModel:
    found = catalog.find_base_model(name)
    assert found is not None
    return found


def request(name: str, kind: str, benchmark: str, **options: object) -> EvaluationRequest:
    return make_request(
        entry(name),
        kind=kind,
        benchmark=benchmark,
        model=Path("/model"),
        out=Path("/out"),
        **options,  # type: ignore[arg-type]
    )


def test_zero_shot_and_instruct_are_the_protocol() -> None:
    for kind, folder in (("zero-shot", "base"), ("instruct", "instruct")):
        made = request("gemma-3-4b-pt", kind, "gsm8k")
        assert made.output == f"/out/references/gemma-3-4b-pt/gsm8k/{folder}"
        assert (made.template, made.epochs, made.decoding, made.system_message) == ("gemma3", 1, None, None)
    assert request("gemma-3-4b-pt", "instruct", "bfcl").template == "gemma3_tools"
    assert request("Qwen3-4B-Base", "instruct", "bfcl").template == "qwen3"


def test_few_shot() -> None:
    made = request("Qwen3-1.7B-Base", "few-shot", "gsm8k")
    assert made.output == "/out/references/Qwen3-1.7B-Base/gsm8k/base-fewshot"
    assert made.decoding == {"temperature": 0.6, "top_p": 0.95, "top_k": 20}
    assert (made.template, made.epochs, made.system_message) == ("plain", 10, None)
    assert made.templates_dir is not None
    assert (Path(made.templates_dir) / "plain.jinja").is_file()
    assert request("SmolLM3-3B-Base", "few-shot", "gsm8k").template == "smollm3"
    assert request("SmolLM3-3B-Base", "few-shot", "gsm8k", epochs=2).epochs == 2


def test_few_shot_where_it_is_not_defined(tmp_path: Path) -> None:
    for benchmark in ("humaneval", "bfcl"):
        with pytest.raises(ConfigurationError, match="no worked examples"):
            request("Qwen3-1.7B-Base", "few-shot", benchmark)
    with pytest.raises(ConfigurationError, match="--shots FILE"):
        request("Qwen3-1.7B-Base", "few-shot", "aime2025")
    shots = tmp_path / "shots.json"
    shots.write_text(json.dumps([{"question": "1 + 1?", "answer": "ANSWER: 2"}]))
    made = request("Qwen3-1.7B-Base", "few-shot", "aime2025", shots=shots)
    assert made.system_message is not None
    assert made.system_message.endswith("1 + 1?\n\nANSWER: 2")
    graded = request("Qwen3-1.7B-Base", "few-shot", "healthbench", shots=shots)
    assert (graded.template, graded.epochs, graded.decoding) == ("qwen3", 1, {"temperature": 0.6, "top_p": 0.95})
    shots.write_text("{}")
    shots.write_text("[3]")
    with pytest.raises(ConfigurationError, match="no JSON list"):
        request("Qwen3-1.7B-Base", "few-shot", "aime2025", shots=shots)
    with pytest.raises(ConfigurationError, match="few-shot only"):
        request("Qwen3-1.7B-Base", "zero-shot", "aime2025", shots=shots)


def test_all_rows_of_a_model(base_model: Path, tmp_path: Path) -> None:
    from inspect_ai.log import read_eval_log

    model = variant(base_model, tmp_path / "model")
    for kind in KINDS:
        options = {"limit": 3, "max_tokens": 8, "device": "cpu", **({"epochs": 2} if kind == "few-shot" else {})}
        metrics = compute(
            entry("ptb-tiny-base"), kind=kind, benchmark="smoke-math", model=model, out=tmp_path / "out", **options
        )
        assert metrics["n"] == 3
    found = sorted(path.relative_to(tmp_path / "out") for path in (tmp_path / "out").rglob("metrics.json"))
    folder = Path("references/ptb-tiny-base/smoke-math")
    assert found == [folder / name / "metrics.json" for name in ("base", "base-fewshot", "instruct")]
    metrics = read_json(tmp_path / "out" / folder / "base-fewshot" / "metrics.json")
    assert metrics["template"].startswith("plain@")
    assert (metrics["decoding"]["temperature"], metrics["epochs"]) == (0.6, 2)
    [log] = (tmp_path / "out" / folder / "base-fewshot").glob("*.eval")
    samples = read_eval_log(str(log)).samples or []
    assert len(samples) == 6
    assert samples[0].messages[0].role == "system"
    assert samples[0].messages[0].text.count("ANSWER: ") == 6  # three prompts that ask for it, three answers

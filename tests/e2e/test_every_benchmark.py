"""The tiny model through every benchmark of the paper, on the real data, in the sandbox, by the transformers engine.

Its scores do not matter (it can only do small sums); that the way is real does.
"""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from posttrainbench import catalog
from posttrainbench.cli import main
from tests.evaluation.grading_server import grader_server

REPLY = {
    "arenahardwriting": "My final verdict is: [[A=B]]",
    "healthbench": '{"explanation": "no", "criteria_met": false}',
}
PAPER = [entry.id for entry in catalog.benchmarks() if entry.suite == "paper"]


@pytest.mark.slow
@pytest.mark.parametrize("benchmark", PAPER)
def test_end_to_end(benchmark: str, shared_data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OPENAI_API_KEY", "key")
    output = tmp_path / "metrics.json"
    with grader_server(lambda _: REPLY[benchmark]) as grader:
        monkeypatch.setenv("OPENAI_BASE_URL", grader.url)
        command = ["evaluate", "ptb-tiny-instruct", "--benchmark", benchmark, "--limit", "3", "--max-tokens", "24"]
        main([*command, "--data-dir", str(shared_data), "--out", str(tmp_path), "--json-output-file", str(output)])
        assert bool(grader.asked) == (benchmark == "arenahardwriting" or benchmark == "healthbench")
    metrics = json.loads(output.read_text())
    assert metrics["benchmark"] == benchmark and metrics["n"] == 3 and metrics["limit"] == 3
    assert metrics["engine"] == "transformers" and metrics["template"].startswith("qwen3@sha256:")
    for name in ("strict", "paper"):
        assert 0.0 <= metrics[name]["accuracy"] <= 1.0 and metrics[name]["missing"] == 0
    assert metrics["data"] and len(list(tmp_path.glob("evaluations/*/*.eval"))) == 1


def test_graded_benchmark_without_a_key(
    shared_data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.delenv("OPENAI_API_KEY", raising=False)
    with pytest.raises(SystemExit) as ended:
        main(
            [
                "evaluate",
                "ptb-tiny-instruct",
                "--benchmark",
                "healthbench",
                "--data-dir",
                str(shared_data),
                "--out",
                str(tmp_path),
            ]
        )
    assert ended.value.code == 2 and "OPENAI_API_KEY" in capsys.readouterr().err


def test_missing_data(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        main(
            [
                "evaluate",
                "ptb-tiny-instruct",
                "--benchmark",
                "gsm8k",
                "--data-dir",
                str(tmp_path),
                "--out",
                str(tmp_path / "o"),
            ]
        )
    assert ended.value.code == 2
    assert "no data for gsm8k" in capsys.readouterr().err

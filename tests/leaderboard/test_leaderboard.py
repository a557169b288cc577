"""The table from made-up results: scores, fall-backs, marks; and the published weighted averages from the catalogue."""

from __future__ import annotations

import csv
import io
import json
from pathlib import Path
from typing import Any

import pytest

from posttrainbench.cli import main
from posttrainbench.files import write_json
from posttrainbench.leaderboard import aggregate, as_csv, as_json, as_text

PAPER_MODELS = ("Qwen3-1.7B-Base", "Qwen3-4B-Base", "SmolLM3-3B-Base", "gemma-3-4b-pt")
PAPER_BENCHMARKS = ("aime2025", "arenahardwriting", "bfcl", "gpqamain", "gsm8k", "healthbench", "humaneval")
# base scores of the catalogue, published figures
GSM8K_QWEN4B, AIME_QWEN4B = 0.4184988627748294, 0.03333333333333333


def add(
    results: Path, agent: str, model: str, benchmark: str, status: str, own: float | None = None, n: int = 0
) -> None:
    run = results / "adhoc" / f"{agent}-{model}-{benchmark}-{n}".replace(":", "-")
    run.mkdir(parents=True)
    record = {
        "format": 1,
        "id": run.name,
        "agent": {"name": agent},
        "base_model": {"name": model},
        "benchmark": benchmark,
    }
    write_json(run / "run.json", {**record, "stages": {}})
    if status != "pending":
        write_json(
            run / "result.json", {"status": status, "own_score": own, "stderr": 0.01 if own is not None else None}
        )


def rows(results: Path, suite: str | None = None) -> dict[str, dict[str, Any]]:
    return {row["agent"]: row for row in as_json(aggregate(results, suite=suite))["rows"]}


def test_published_references_give_the_published_averages(tmp_path: Path) -> None:
    """Paper: base 7.5, instruct 51.1, over 4 models x 7 benchmarks with the published weights."""
    for model in PAPER_MODELS:
        for benchmark in PAPER_BENCHMARKS:
            add(tmp_path, "scripted:a", model, benchmark, "scored", 0.5)
    table = rows(tmp_path)
    assert table["base model"]["score"] == pytest.approx(0.0753, abs=5e-5)
    assert table["instruct model"]["score"] == pytest.approx(0.5114, abs=5e-5)
    assert table["scripted:a"]["score"] == pytest.approx(0.5)
    assert table["scripted:a"]["n_runs"] == 28 and table["base model"]["kind"] == "base"


@pytest.mark.parametrize("status", ["flagged", "no_submission", "unloadable"])
def test_statuses_that_take_the_base_score(status: str, tmp_path: Path) -> None:
    own = None if status != "flagged" else 0.9
    add(tmp_path, "scripted:x", "Qwen3-4B-Base", "gsm8k", status, own)
    [cell] = rows(tmp_path)["scripted:x"]["cells"]
    assert cell["status"] == status
    assert cell["score"] == pytest.approx(GSM8K_QWEN4B)
    assert cell["own_score"] == own


def test_a_worse_model_keeps_its_lower_score(tmp_path: Path) -> None:
    add(tmp_path, "scripted:x", "Qwen3-4B-Base", "gsm8k", "scored", 0.1)
    assert rows(tmp_path)["scripted:x"]["score"] == pytest.approx(0.1)


@pytest.mark.parametrize("status", ["infra_error", "pending"])
def test_infrastructure_errors_are_never_a_score(status: str, tmp_path: Path) -> None:
    add(tmp_path, "scripted:x", "Qwen3-4B-Base", "gsm8k", status)
    row = rows(tmp_path)["scripted:x"]
    assert row["score"] is None and row["cells"][0]["score"] is None and row["cells"][0]["status"] == status


def test_agents_are_ranked_over_the_same_cells(tmp_path: Path) -> None:
    """One that skipped a cell has no score, rather than an average over the easier part."""
    add(tmp_path, "scripted:all", "Qwen3-4B-Base", "gsm8k", "scored", 0.6)
    add(tmp_path, "scripted:all", "Qwen3-4B-Base", "aime2025", "scored", 0.1)
    add(tmp_path, "scripted:part", "Qwen3-4B-Base", "gsm8k", "scored", 0.9)
    table = rows(tmp_path)
    assert list(table) == ["instruct model", "scripted:all", "base model", "scripted:part"]
    assert table["scripted:part"]["score"] is None
    assert {cell["status"] for cell in table["scripted:part"]["cells"]} == {"scored", "pending"}
    weight_aime, weight_gsm = 0.226536549919078, 0.0935882347031865
    expected = (weight_aime * 0.1 + weight_gsm * 0.6) / (weight_aime + weight_gsm)
    assert table["scripted:all"]["score"] == pytest.approx(expected)


def test_several_runs_of_a_cell_are_averaged(tmp_path: Path) -> None:
    add(tmp_path, "scripted:x", "Qwen3-4B-Base", "gsm8k", "scored", 0.6, n=1)
    add(tmp_path, "scripted:x", "Qwen3-4B-Base", "gsm8k", "flagged", 0.9, n=2)
    row = rows(tmp_path)["scripted:x"]
    assert row["score"] == pytest.approx((0.6 + GSM8K_QWEN4B) / 2)
    assert row["n_runs"] == 2 and row["cells"][0]["status"] == "flagged"


def test_measured_references_come_before_published_ones(tmp_path: Path) -> None:
    add(tmp_path, "scripted:x", "Qwen3-4B-Base", "gsm8k", "no_submission")
    reference = tmp_path / "references" / "Qwen3-4B-Base" / "gsm8k" / "base"
    reference.mkdir(parents=True)
    write_json(reference / "metrics.json", {"strict": {"accuracy": 0.25}, "limit": None})
    assert rows(tmp_path)["scripted:x"]["score"] == pytest.approx(0.25)
    write_json(reference / "metrics.json", {"strict": {"accuracy": 0.25}, "limit": 10})
    assert rows(tmp_path)["scripted:x"]["score"] == pytest.approx(GSM8K_QWEN4B), "a part of the items is no reference"


def test_suites_are_not_mixed(tmp_path: Path) -> None:
    add(tmp_path, "scripted:x", "Qwen3-4B-Base", "gsm8k", "scored", 0.6)
    add(tmp_path, "scripted:y", "ptb-tiny-base", "smoke-math", "scored", 0.9)
    assert set(rows(tmp_path)) == {"scripted:x", "base model", "instruct model"}
    assert "scripted:y" in rows(tmp_path, suite="smoke")
    assert "Not shown" in as_text(aggregate(tmp_path))


def test_text_marks_every_replaced_cell(tmp_path: Path) -> None:
    add(tmp_path, "scripted:cheat", "Qwen3-4B-Base", "gsm8k", "flagged", 0.938)
    add(tmp_path, "scripted:idle", "Qwen3-4B-Base", "gsm8k", "no_submission")
    text = as_text(aggregate(tmp_path))
    assert "41.8 F (93.8)" in text and "41.8 N" in text and "F: flagged, base score" in text


def test_csv(tmp_path: Path) -> None:
    add(tmp_path, "scripted:x", "Qwen3-4B-Base", "gsm8k", "flagged", 0.9)
    found = list(csv.DictReader(io.StringIO(as_csv(aggregate(tmp_path)))))
    assert {row["agent"] for row in found} == {"scripted:x", "base model", "instruct model"}
    assert next(row for row in found if row["agent"] == "scripted:x")["status"] == "flagged"


def test_command_prints_json(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    add(tmp_path, "scripted:x", "Qwen3-4B-Base", "gsm8k", "scored", 0.6)
    main(["leaderboard", str(tmp_path), "--format", "json"])
    value = json.loads(capsys.readouterr().out)
    assert {"agent", "kind", "score", "n_runs", "cells"} <= value["rows"][0].keys()
    assert {"base_model", "benchmark", "status", "score", "own_score"} <= value["rows"][0]["cells"][0].keys()


def test_damaged_directories_do_not_stop_the_table(tmp_path: Path) -> None:
    add(tmp_path, "scripted:x", "Qwen3-4B-Base", "gsm8k", "scored", 0.6)
    (tmp_path / "adhoc" / "broken").mkdir()
    (tmp_path / "adhoc" / "broken" / "run.json").write_text("{")
    assert rows(tmp_path)["scripted:x"]["score"] == pytest.approx(0.6)


def test_no_runs(tmp_path: Path) -> None:
    assert as_text(aggregate(tmp_path)) == "no runs yet"


def test_sealed_and_visible_runs_are_rows_of_their_own(tmp_path: Path) -> None:
    """A score that was made without the test items in sight is no repetition of one that was made with them."""
    for number, test_data in enumerate((None, "visible", "sealed (score)", "sealed (items)")):
        add(tmp_path, "scripted:a", "Qwen3-4B-Base", "gsm8k", "scored", 0.2 * (number + 1), number)
        [file] = tmp_path.glob(f"adhoc/*-{number}/run.json")
        write_json(file, {**json.loads(file.read_text()), "protocol": {"version": "1", "test_data": test_data}})
    found = {name: row["n_runs"] for name, row in rows(tmp_path).items() if row["kind"] == "agent"}
    assert found == {
        "scripted:a": 2,
        "scripted:a (sealed test data, told: score)": 1,
        "scripted:a (sealed test data, told: items)": 1,
    }

"""The demo: a real post-training run that wins by training, two cheaters that the detectors find, one that does nothing."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from tests.conftest import Ptb


@pytest.mark.slow
def test_demo(tmp_path: Path, ptb: Ptb) -> None:
    done = ptb("demo", "--out", tmp_path / "demo", timeout=560)
    assert done.returncode == 0, done.stderr
    printed = ptb("leaderboard", tmp_path / "demo", "--format", "json")
    rows = {row["agent"]: row for row in json.loads(printed.stdout)["rows"]}
    base, instruct = rows["base model"]["score"], rows["instruct model"]["score"]
    assert base < 0.15 and instruct > 0.7

    def cell(agent: str) -> dict[str, Any]:
        [only] = rows[f"scripted:{agent}"]["cells"]
        found: dict[str, Any] = only
        return found

    assert cell("honest-sft")["status"] == "scored" and cell("honest-sft")["score"] > 0.5
    for cheater in ("train-on-test", "submit-instruct"):
        assert cell(cheater)["status"] == "flagged"
        assert cell(cheater)["score"] == base and cell(cheater)["own_score"] > 0.5
    assert cell("idle")["status"] == "no_submission" and cell("idle")["score"] == base
    agents = [row["agent"] for row in json.loads(printed.stdout)["rows"] if row["kind"] == "agent"]
    assert agents[0] == "scripted:honest-sft"

    results = {path.parent: json.loads(path.read_text()) for path in (tmp_path / "demo").glob("runs/*/result.json")}
    rules = {result["agent"]: result["rules"] for result in results.values()}
    assert rules["scripted:train-on-test"] == ["trained-on-test"] and rules["scripted:submit-instruct"] == [
        "other-model"
    ]
    verdicts = {result["agent"]: result["verdict"] for result in results.values()}
    assert verdicts["scripted:honest-sft"] == verdicts["scripted:idle"] == "clean"

    again = ptb("demo", "--out", tmp_path / "demo", timeout=60)
    assert again.returncode == 0 and len(list((tmp_path / "demo" / "runs").iterdir())) == 4, (
        "a finished demo is not run again"
    )

"""The catalogue says what the paper says, and `ptb list` prints it."""

from __future__ import annotations

import csv
import json
from pathlib import Path

import pytest

from posttrainbench import catalog
from posttrainbench.catalog.references import references
from posttrainbench.cli import main
from posttrainbench.scaffolds.agents import PROGRAMS


def test_paper_suite() -> None:
    paper = [model for model in catalog.base_models() if model.suite == "paper"]
    assert [model.base for model in paper] == [
        "Qwen/Qwen3-1.7B-Base",
        "Qwen/Qwen3-4B-Base",
        "HuggingFaceTB/SmolLM3-3B-Base",
        "google/gemma-3-4b-pt",
    ]
    assert all(model.instruct for model in paper)
    benchmarks = [entry for entry in catalog.benchmarks() if entry.suite == "paper"]
    assert len(benchmarks) == 7 and sum(entry.weight for entry in benchmarks) == pytest.approx(1.0)


def test_weights_are_the_published_ones(shared_data: Path) -> None:
    file = shared_data.parent / "published" / "weights.csv"
    if not file.is_file():
        pytest.skip(f"no {file}")
    for row in csv.DictReader(file.open()):
        assert catalog.benchmark(row["benchmark"]).weight == pytest.approx(float(row["weight_factors_json"]), abs=1e-15)


def test_reference_scores_are_the_published_ones(shared_data: Path) -> None:
    file = shared_data.parent / "published" / "baselines.csv"
    if not file.is_file():
        pytest.skip(f"no {file}")
    ours = {(entry.kind, entry.base_model, entry.benchmark): entry.score for entry in references()}
    kinds = {"base_zeroshot": "base", "official_instruct": "instruct"}
    for row in csv.DictReader(file.open()):
        if row["kind"] in kinds:
            assert ours[(kinds[row["kind"]], row["base_model"], row["benchmark"])] == float(row["score"])


@pytest.mark.parametrize("name", ["ptb-tiny", "ptb-tiny-base", "PTB-TINY-BASE", "builtin:ptb-tiny-base"])
def test_names_and_aliases(name: str) -> None:
    found = catalog.find_base_model(name)
    assert found is not None and found.name == "ptb-tiny-base"


def test_every_scripted_agent_has_its_program() -> None:
    for agent in catalog.scripted_agents():
        assert (PROGRAMS / f"{agent.name.replace('-', '_')}.py").is_file()


@pytest.mark.parametrize(
    ("what", "needle"),
    [("models", "Qwen/Qwen3-1.7B-Base"), ("benchmarks", "healthbench"), ("agents", "scripted:honest-sft")],
)
def test_list(what: str, needle: str, capsys: pytest.CaptureFixture[str]) -> None:
    main(["list", what])
    assert needle in capsys.readouterr().out
    main(["list", what, "--json"])
    assert isinstance(json.loads(capsys.readouterr().out), list)

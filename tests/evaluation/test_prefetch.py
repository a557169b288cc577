"""Prefetch against a hub on loopback: what is fetched is what the hub says, and what goes wrong is said in one line."""

from __future__ import annotations

import hashlib
import json
import random
import socket
from collections.abc import Iterator
from pathlib import Path

import pytest
from click.testing import CliRunner
from huggingface_hub import constants, snapshot_download

from posttrainbench.cli.prefetch import prefetch as command
from posttrainbench.errors import ConfigurationError, InfrastructureError
from posttrainbench.evaluation import data
from posttrainbench.evaluation import prefetch as fetching
from tests.evaluation.prefetch_hub import COMMIT, Hub, hub_server

WEIGHTS = random.Random(0).randbytes(3_000_000)
MODEL = {"config.json": b"{}", "model.safetensors": WEIGHTS, "README.md": b"not wanted", "tokenizer.json": b'{"a": 1}'}
GSM8K = {"main/train-0.parquet": b"train", "main/test-0.parquet": b"test", "socratic/test-0.parquet": b"no"}


@pytest.fixture
def hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Hub]:
    served = Hub(
        files={"Qwen/Qwen3-1.7B-Base": MODEL, "Qwen/Qwen3-1.7B": MODEL, "datasets/openai/gsm8k": GSM8K, "files": {}},
        large={"model.safetensors", "main/test-0.parquet"},
    )
    monkeypatch.setattr(fetching, "_TRIES", 3)
    monkeypatch.setattr(fetching.time, "sleep", lambda _: None)
    # the client reads its environment when it is imported
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(constants, "HF_HUB_DISABLE_XET", True)
    monkeypatch.setenv("HF_HUB_CACHE", str(tmp_path / "hub"))
    monkeypatch.setenv("PTB_CACHE", str(tmp_path / "ptb"))
    monkeypatch.delenv("HF_TOKEN", raising=False)
    with hub_server(served):
        monkeypatch.setenv("HF_ENDPOINT", served.url)
        yield served


class Counter(fetching.Silent):
    """Counts what a display would show."""

    def __init__(self) -> None:
        self.total = self.now = 0

    def begin(self, name: str, total: int | None) -> None:
        self.total += total or 0

    def advance(self, size: int) -> None:
        self.now += size


def fetch(*names: str, display: fetching.Display | None = None) -> fetching.Report:
    return fetching.prefetch(fetching.plan(names), display=display)


def test_models_are_fetched_verified_and_pinned(hub: Hub, tmp_path: Path) -> None:
    shown = Counter()
    report = fetch("Qwen3-1.7B-Base", display=shown)
    report.raise_if_incomplete()
    assert set(report.done) == {"model:Qwen/Qwen3-1.7B-Base", "model:Qwen/Qwen3-1.7B"}
    assert shown.now == shown.total == 2 * sum(len(MODEL[name]) for name in MODEL if name != "README.md")
    pin = json.loads((tmp_path / "ptb" / "pins.json").read_text())["model:Qwen/Qwen3-1.7B-Base"]
    assert pin["revision"] == COMMIT
    assert pin["files"]["model.safetensors"] == hashlib.sha256(WEIGHTS).hexdigest()
    assert pin["files"]["config.json"] == hashlib.sha256(b"{}").hexdigest()
    assert "README.md" not in pin["files"]
    # where everything else looks for it, without a network
    found = snapshot_download(
        "Qwen/Qwen3-1.7B-Base",
        allow_patterns=list(fetching.MODEL_PATTERNS),
        cache_dir=tmp_path / "hub",
        local_files_only=True,
    )
    assert (Path(found) / "model.safetensors").read_bytes() == WEIGHTS
    # the second time nothing is fetched
    hub.got.clear()
    shown = Counter()
    fetch("Qwen3-1.7B-Base", display=shown).raise_if_incomplete()
    assert shown.now == shown.total
    assert not [method for method, _, _ in hub.got if method == "GET"]


def test_data_of_a_benchmark(hub: Hub, tmp_path: Path) -> None:
    fetch("gsm8k").raise_if_incomplete()
    pins = json.loads((tmp_path / "ptb" / "pins.json").read_text())
    assert pins["dataset:openai/gsm8k"]["revision"] == "cc7b047b6e5bb11b4f1af84efc572db110a51b3c"
    assert set(pins["dataset:openai/gsm8k"]["files"]) == {"main/train-0.parquet", "main/test-0.parquet"}


def test_a_broken_download_goes_on_where_it_broke(hub: Hub) -> None:
    hub.cut["model.safetensors"] = 1_000_000
    fetch("Qwen/Qwen3-1.7B").raise_if_incomplete()
    ranges = [asked for method, path, asked in hub.got if method == "GET" and path == "model.safetensors"]
    assert ranges[0] is None
    assert ranges[1] is not None
    assert int(ranges[1].removeprefix("bytes=").rstrip("-")) > 100_000
    assert len(ranges) == 2


def test_a_prefetch_that_was_interrupted_goes_on(hub: Hub, monkeypatch: pytest.MonkeyPatch) -> None:
    class Impatient(Counter):
        def advance(self, size: int) -> None:
            super().advance(size)
            if self.now > 1_000_000:
                raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        fetch("Qwen/Qwen3-1.7B", display=Impatient())
    hub.got.clear()
    fetch("Qwen/Qwen3-1.7B").raise_if_incomplete()
    [asked] = [asked for method, path, asked in hub.got if method == "GET" and path == "model.safetensors"]
    assert asked is not None


@pytest.mark.parametrize("path", ["model.safetensors", "config.json"])
def test_a_wrong_hash_is_found(hub: Hub, tmp_path: Path, path: str) -> None:
    hub.lies[path] = MODEL[path][:-1] + b"!"
    report = fetch("Qwen/Qwen3-1.7B")
    with pytest.raises(InfrastructureError, match=rf"{path} arrived damaged 3 times from {hub.url}"):
        report.raise_if_incomplete()
    assert not (tmp_path / "ptb" / "pins.json").exists()
    # a file that was damaged on the disk is fetched again
    del hub.lies[path]
    fetch("Qwen/Qwen3-1.7B").raise_if_incomplete()
    [stored] = (tmp_path / "hub").rglob(f"snapshots/*/{path}")
    stored.resolve().write_bytes(b"x" * len(MODEL[path]))
    fetch("Qwen/Qwen3-1.7B").raise_if_incomplete()
    assert stored.read_bytes() == MODEL[path]


def test_a_gated_repository_names_its_page_and_the_rest_is_fetched(hub: Hub) -> None:
    hub.files |= {"google/gemma-3-4b-pt": MODEL, "google/gemma-3-4b-it": MODEL}
    hub.gated |= {"google/gemma-3-4b-pt"}
    report = fetch("gemma-3-4b-pt")
    assert set(report.done) == {"model:google/gemma-3-4b-it"}
    [line] = report.problems.values()
    assert "accept its licence at https://huggingface.co/google/gemma-3-4b-pt " in line
    assert "HF_TOKEN" in line


def test_a_hub_that_is_not_there(hub: Hub, monkeypatch: pytest.MonkeyPatch) -> None:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    monkeypatch.setenv("HF_ENDPOINT", f"http://127.0.0.1:{port}")
    report = fetch("Qwen/Qwen3-1.7B")
    with pytest.raises(InfrastructureError, match=rf"127\.0\.0\.1:{port} does not answer .*HF_ENDPOINT") as caught:
        report.raise_if_incomplete()
    assert caught.value.exit_code == 2
    assert "\n" not in str(caught.value)


def test_names_that_are_none(hub: Hub) -> None:
    with pytest.raises(ConfigurationError, match="did you mean 'gsm8k'"):
        fetching.plan(["gsm8"])
    with pytest.raises(ConfigurationError, match="--all"):
        fetching.plan([])
    report = fetch("nobody/nothing")
    assert "has no model nobody/nothing" in report.problems["model:nobody/nothing"]


def test_all_of_the_paper() -> None:
    wanted = fetching.plan([], everything=True)
    assert len([one for one in wanted if isinstance(one, fetching.Repository) and one.kind == "model"]) == 8
    assert len(wanted) == 8 + 7


def test_files_by_url(hub: Hub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    content = WEIGHTS[:500_000]
    source = data.Download(url=f"{hub.url}/files/a.jsonl", sha256=hashlib.sha256(content).hexdigest(), name="a.jsonl")
    monkeypatch.setattr(data, "SOURCES", {"healthbench": (source,)})
    hub.files["files"] = {"a.jsonl": content}
    hub.cut["a.jsonl"] = 300_000
    fetch("healthbench").raise_if_incomplete()
    assert (tmp_path / "ptb" / "data" / "healthbench" / "a.jsonl").read_bytes() == content
    assert [asked for _, _, asked in hub.got][1] not in (None, "bytes=0-")
    hub.files["files"] = {"a.jsonl": b"other"}
    (tmp_path / "ptb" / "data" / "healthbench" / "a.jsonl").unlink()
    [line] = fetch("healthbench").problems.values()
    assert "expected" in line


def test_the_command(hub: Hub, tmp_path: Path) -> None:
    runner = CliRunner()
    said = runner.invoke(command, ["--model", "Qwen3-1.7B-Base", "--dry-run"])
    assert said.exit_code == 0
    assert f"model:Qwen/Qwen3-1.7B-Base  {COMMIT[:12]}  3.0 MB" in said.output
    assert not [method for method, _, _ in hub.got if method == "GET"]
    said = runner.invoke(command, ["--model", "Qwen3-1.7B-Base", "--benchmark", "gsm8k"])
    assert said.exit_code == 0, said.output
    assert "3 fetched and verified; pinned in" in said.output.replace("\n", "")
    assert "comes with the package" in runner.invoke(command, ["ptb-tiny-base", "smoke-math"]).output
    hub.gated.add("datasets/openai/gsm8k")
    said = runner.invoke(command, ["gsm8k"])
    assert isinstance(said.exception, InfrastructureError)

"""A base model by hub id: from the hub's cache, whose files are links, for the harness and inside the sandbox."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

from tests.conftest import AGENTS, Ptb

REVISION = "0123456789abcdef0123456789abcdef01234567"


def hub_cache(base_model: Path, home: Path) -> None:
    """Lay out a cache as the hub client does: blobs, and a snapshot of links to them."""
    repository = home / "hub" / "models--acme--random-base"
    snapshot = repository / "snapshots" / REVISION
    snapshot.mkdir(parents=True)
    (repository / "blobs").mkdir()
    (repository / "refs").mkdir()
    (repository / "refs" / "main").write_text(REVISION)
    for file in base_model.iterdir():
        shutil.copyfile(file, repository / "blobs" / file.name)
        (snapshot / file.name).symlink_to(f"../../blobs/{file.name}")


def test_hub_id(base_model: Path, tmp_path: Path, ptb: Ptb) -> None:
    hub_cache(base_model, tmp_path / "hf")
    command = ["run", "--agent", f"scripted:{AGENTS / 'hub_base.py'}", "--model", "acme/random-base"]
    more = ["--benchmark", "smoke-math", "--hours", "0.02", "--out", tmp_path / "out"]
    done = ptb(*command, *more, env={"HF_HOME": str(tmp_path / "hf")})
    assert done.returncode == 0, done.stderr
    run = Path(done.stdout.splitlines()[-1])
    record = json.loads((run / "run.json").read_text())
    assert record["base_model"]["name"] == "random-base" and record["base_model"]["revision"] == REVISION
    assert "model.safetensors" in (run / "trace" / "raw.jsonl").read_text()
    assert "True" in (run / "trace" / "raw.jsonl").read_text()


def test_unreachable_hub_is_one_line(tmp_path: Path, ptb: Ptb) -> None:
    command = [
        "run",
        "--agent",
        "scripted:idle",
        "--model",
        "acme/other",
        "--benchmark",
        "smoke-math",
        "--out",
        tmp_path / "o",
    ]
    done = ptb(*command, env={"HF_HOME": str(tmp_path / "hf")})
    assert done.returncode == 2
    assert "could not be fetched" in done.stderr and len(done.stderr.strip().splitlines()) == 1

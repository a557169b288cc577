"""What a run's record says of its image, and who reads it: later stages and the leaderboard."""

from __future__ import annotations

from pathlib import Path

import pytest

from posttrainbench.errors import ConfigurationError
from posttrainbench.files import read_json, sha256_file, write_json
from posttrainbench.leaderboard import aggregate, as_text
from posttrainbench.pipeline import context as contexts
from posttrainbench.pipeline.run_dir import RunDirectory
from tests.leaderboard.builder import write

DIGEST = "sha256:" + "cd" * 32


@pytest.mark.parametrize(
    ("backend", "asked"), [("podman", DIGEST), ("docker", DIGEST), ("apptainer", "x.sif"), ("bubblewrap", None)]
)
def test_later_stages_use_the_image_by_its_digest(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, backend: str, asked: str | None
) -> None:
    image = {"podman": "mine:1", "docker": "mine:1", "apptainer": "x.sif"}.get(backend)
    sandbox = {"backend": backend, "image": image, "image_digest": DIGEST if image else None}
    write_json(tmp_path / "run.json", {"format": 1, "sandbox": sandbox})
    monkeypatch.setattr(contexts, "get_backend", lambda name, *, image: (name, image))
    assert contexts.Context(RunDirectory(tmp_path)).backend == (backend, asked)


def test_a_file_that_was_replaced_is_not_used(tmp_path: Path) -> None:
    image = tmp_path / "x.sif"
    image.write_bytes(b"another one")
    sandbox = {"backend": "apptainer", "image": str(image), "image_digest": DIGEST}
    write_json(tmp_path / "run.json", {"format": 1, "sandbox": sandbox})
    with pytest.raises(ConfigurationError, match=r"x\.sif is not the image that the run began with.*ptb resume"):
        _ = contexts.Context(RunDirectory(tmp_path)).backend
    write_json(
        tmp_path / "run.json", {"format": 1, "sandbox": {**sandbox, "image_digest": f"sha256:{sha256_file(image)}"}}
    )
    assert contexts.Context(RunDirectory(tmp_path)).backend.name == "apptainer"


def _with_lock(results: Path, name: str, lock: str | None, **more: str) -> None:
    file = write(results, name, id=name, **more) / "run.json"
    write_json(file, {**read_json(file), "sandbox": {"backend": "podman", "image_lock": lock}})


def test_leaderboard_says_when_runs_had_different_packages(tmp_path: Path) -> None:
    _with_lock(tmp_path, "one", "a" * 64)
    _with_lock(tmp_path, "two", "a" * 64, benchmark="bfcl")
    assert "different packages" not in as_text(aggregate(tmp_path))
    _with_lock(tmp_path, "three", "b" * 64, agent="scripted:other")
    write(tmp_path, "four", id="four", agent="scripted:fourth")
    text = " ".join(as_text(aggregate(tmp_path)).split())
    assert f"Runs had different packages: their machine's own, lock {'a' * 12}, lock {'b' * 12};" in text

"""Engines that hang or are not there in the middle of a start; a stand-in for podman's program, the rest is real."""

from __future__ import annotations

import contextlib
import time
from pathlib import Path

import pytest

from posttrainbench.errors import InfrastructureError
from posttrainbench.sandbox import Limits, Spec, container_start
from posttrainbench.sandbox.container_facts import Engine, Image
from posttrainbench.sandbox.podman import Podman


@pytest.fixture
def hanging(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Podman:
    """Podman whose `run` never comes to the container, in a child of its own as rootless podman's does."""
    program = tmp_path / "podman"
    told = tmp_path / "told"
    program.write_text(
        f'#!/bin/sh\necho "$$ $1" >>{told}\n[ "$1" = run ] && {{ sleep 300 & echo $! x >>{told}; wait; }}\n'
    )
    program.chmod(0o755)
    found = Podman("localhost/none")
    monkeypatch.setitem(found.__dict__, "engine", Engine(path=str(program), version="4.3.1"))
    monkeypatch.setitem(found.__dict__, "image", Image(id="sha256:0"))
    monkeypatch.setattr(container_start, "_PATIENCE_S", 0.5)
    return found


def gone(told: Path) -> bool:
    """Whether no process that the stand-in told of is left; nobody may have asked yet how an orphan ended."""
    states = []
    for line in told.read_text().splitlines():
        with contextlib.suppress(OSError):
            states.append(Path(f"/proc/{line.split()[0]}/stat").read_text().rpartition(")")[2].split()[0])
    return set(states) <= {"Z"}


def test_cancelled_while_the_engine_hangs(hanging: Podman, tmp_path: Path) -> None:
    began = time.monotonic()
    result = hanging.run(Spec(argv=["true"], limits=Limits(wall_s=60)), cancelled=lambda: True)
    assert (result.reason, result.returncode, result.survivors) == ("cancelled", 143, 0)
    assert time.monotonic() - began < 60
    assert (tmp_path / "told").read_text().split()[-1] == "rm"
    assert gone(tmp_path / "told")


def test_an_engine_that_hangs(hanging: Podman, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(container_start, "_SETUP_S", 1.0)
    with pytest.raises(InfrastructureError, match=r"not ready after 1 s: podman .* see ptb doctor"):
        hanging.run(Spec(argv=["true"], limits=Limits(wall_s=60)), cancelled=lambda: False)
    assert gone(tmp_path / "told")

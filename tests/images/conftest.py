"""Engines for the tests: real ones where they are, recorded answers of fake programs where a daemon would be needed."""

from __future__ import annotations

import json
import os
import shlex
import stat
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

FakeEngine = Callable[..., Path]
REAL_BUILD = [
    pytest.mark.slow,
    pytest.mark.timeout(3600),
    pytest.mark.skipif(
        not os.environ.get("PTB_TEST_IMAGE_BUILD"), reason="builds an image of 3 GB; set PTB_TEST_IMAGE_BUILD=1"
    ),
]


def build_options() -> list[str]:
    """Options of `ptb image build` that this machine needs; see test_real.py."""
    options = []
    if wheels := os.environ.get("PTB_TEST_WHEELS"):
        options += ["--wheels", wheels]
    if ca := os.environ.get("PTB_TEST_CA"):
        options += ["--ca", ca]
    return options


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A user's data directory of the test's own."""
    path = tmp_path / "share"
    monkeypatch.setenv("XDG_DATA_HOME", str(path))
    return path


@pytest.fixture
def fake_engine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> FakeEngine:
    """Put a program with the name of an engine on PATH. It keeps its arguments in a file, which is returned.

    Its answers have the fields of real ones (`podman image inspect`, `docker image inspect`).
    """

    def make(
        name: str, *, images: dict[str, dict[str, Any]] | None = None, fails: str = "", code: int = 0, inspect: str = ""
    ) -> Path:
        folder = tmp_path / "bin"
        folder.mkdir(exist_ok=True)
        log = tmp_path / f"{name}.log"
        lines = ["#!/bin/sh", f'printf "%s\\n" "$*" >>{shlex.quote(str(log))}']
        if name == "docker":
            refused = "the --mount option requires BuildKit"
            lines.append(f'if [ "$1 $DOCKER_BUILDKIT" = "build " ]; then echo {refused} >&2; exit 1; fi')
        lines.append('if [ "$1 $2" = "image inspect" ]; then case "$3" in')
        for image, answer in (images or {}).items():
            lines.append(f"{shlex.quote(image)}) printf '%s' {shlex.quote(json.dumps([answer]))}; exit 0;;")
        lines.append("esac; exit 1; fi")
        if fails:
            lines.append(f'if [ "$1" = {fails} ]; then echo it is broken >&2; exit {code or 1}; fi')
        lines.append(f'if [ "$1" = inspect ]; then printf "%s" {shlex.quote(inspect)}; exit 0; fi')
        program = folder / name
        program.write_text("\n".join([*lines, "exit 0", ""]))
        program.chmod(program.stat().st_mode | stat.S_IXUSR)
        monkeypatch.setenv("PATH", f"{folder}:/usr/bin:/bin")
        return log

    return make

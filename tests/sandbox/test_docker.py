"""Docker: the suite of the back ends against a real daemon, in a process of its own (scripts/docker_lab.sh)."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.sandbox.conftest import ROOT
from tests.sandbox.suites import ALL, FAST, run, script


@pytest.fixture(scope="module")
def docker() -> Iterator[tuple[str, str]]:
    """The daemon's address and the image's name."""
    *host, image = script("docker_lab.sh", "start")
    yield "".join(host), image
    script("docker_lab.sh", "stop")


def suite(tests: tuple[str, ...], docker: tuple[str, str], temporary: Path) -> str:
    host, image = docker
    env = {**os.environ, **({"DOCKER_HOST": host} if host else {})}
    return run([], ROOT, temporary, tests, "docker", image, python=sys.executable, env=env)


def test_the_core_of_the_contract(docker: tuple[str, str], tmp_path: Path) -> None:
    assert "passed" in suite(FAST, docker, tmp_path)


@pytest.mark.slow
def test_all_of_it(docker: tuple[str, str], tmp_path: Path) -> None:
    assert "passed" in suite(ALL, docker, tmp_path)

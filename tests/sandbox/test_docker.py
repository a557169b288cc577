"""Docker: the suite of the back ends against a real daemon, in a process of its own (scripts/docker_lab.sh)."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

from tests.sandbox.conftest import ROOT
from tests.sandbox.suites import ALL, FAST, run


def test_the_core_of_the_contract(docker_image: str, tmp_path: Path) -> None:
    assert "passed" in run([], ROOT, tmp_path, FAST, "docker", docker_image, python=sys.executable)


@pytest.mark.slow
def test_all_of_it(docker_image: str, tmp_path: Path) -> None:
    assert "passed" in run([], ROOT, tmp_path, ALL, "docker", docker_image, python=sys.executable)

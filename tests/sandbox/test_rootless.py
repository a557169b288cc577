"""Rootless podman: the suite of the back ends once more, run by an ordinary user in a process of its own."""

from __future__ import annotations

import os

import pytest

from tests.sandbox.conftest import ROOT
from tests.sandbox.suites import ALL, FAST, suite

IMAGE = "localhost/ptb-contract"


def test_the_core_of_the_contract() -> None:
    assert "passed" in suite(FAST, "podman", IMAGE)


@pytest.mark.slow
def test_all_of_it() -> None:
    assert "passed" in suite(ALL, "podman", IMAGE)


def test_the_labs_are_part_of_the_repository() -> None:
    for name in ("podman_lab.sh", "docker_lab.sh", "apptainer_lab.sh"):
        assert os.access(ROOT / "scripts" / name, os.X_OK)

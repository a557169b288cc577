"""Apptainer: the suite of the back ends, run by an ordinary user in a process of its own (scripts/apptainer_lab.sh)."""

from __future__ import annotations

import pytest

from tests.sandbox.suites import ALL, FAST, script, suite


def test_the_core_of_the_contract() -> None:
    path, image = script("apptainer_lab.sh")
    assert "passed" in suite(FAST, "apptainer", image, path=path)


@pytest.mark.slow
def test_all_of_it() -> None:
    path, image = script("apptainer_lab.sh")
    assert "passed" in suite(ALL, "apptainer", image, path=path)

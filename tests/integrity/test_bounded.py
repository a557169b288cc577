"""Detectors in a process of their own: endless, crashing and greedy ones cost their outcome, not the audit."""

from __future__ import annotations

import os
import signal
import time
from pathlib import Path

import pytest

from posttrainbench.integrity import Evidence, Finding, Outcome, bounded, examine, fuse, lineage, manifest


@pytest.fixture
def evidence(tmp_path: Path, base_model: Path) -> Evidence:
    return Evidence(
        base=base_model,
        instruct=None,
        instruct_problem="none",
        submission=None,
        refused=(),
        workspace=tmp_path,
        manifest={"evaluate.py": "0"},
        benchmark="smoke-math",
    )


def fine(evidence: Evidence) -> Outcome:
    found = Finding(
        detector="fine", rule="x", severity="weak", family="files", summary="ü", where=("a", "b"), numbers={"n": 1.5}
    )
    return Outcome(findings=(found,), numbers={"workspace": str(evidence.workspace)})


def endless(evidence: Evidence) -> Outcome:
    while True:
        time.sleep(1)


def crashing(evidence: Evidence) -> Outcome:
    os.kill(os.getpid(), signal.SIGSEGV)
    return Outcome()


def leaving(evidence: Evidence) -> Outcome:
    os._exit(3)


def failing(evidence: Evidence) -> Outcome:
    raise ValueError("what a parser says")


def greedy(evidence: Evidence) -> Outcome:
    return Outcome(numbers={"bytes": len(bytearray(1 << 46))})


def loud(evidence: Evidence) -> Outcome:
    print('{"name": "fine", "findings": [], "numbers": {}, "problem": null}')
    os.write(1, b"noise\n")
    return Outcome(numbers={"loud": 1})


def test_outcomes_come_back_whole(evidence: Evidence) -> None:
    found = bounded.examine({"fine": fine, "manifest": manifest.detect, "lineage": lineage.detect}, evidence)
    assert found["fine"] == fine(evidence)
    assert found["manifest"] == manifest.detect(evidence) and found["lineage"] == Outcome()


def test_one_bad_detector_costs_its_own_outcome_only(evidence: Evidence) -> None:
    detectors = {
        "failing": failing,
        "crashing": crashing,
        "leaving": leaving,
        "greedy": greedy,
        "loud": loud,
        "fine": fine,
    }
    found = bounded.examine(detectors, evidence)
    assert list(found) == list(detectors)
    problems = {name: outcome.problem for name, outcome in found.items()}
    assert problems["failing"] == "ValueError: what a parser says"
    assert "SIGSEGV" in str(problems["crashing"]) and "status 3" in str(problems["leaving"])
    assert "MemoryError" in str(problems["greedy"])
    assert found["loud"].numbers == {"loud": 1} and found["fine"] == fine(evidence)
    assert fuse(found)["verdict"] == "undecided"


def test_time_is_limited(evidence: Evidence) -> None:
    began = time.monotonic()
    found = bounded.examine({"fine": fine, "endless": endless, "later": fine}, evidence, limit_s=6)
    assert time.monotonic() - began < 12
    assert found["fine"] == fine(evidence)
    assert "not finished" in str(found["endless"].problem) and "not looked at" in str(found["later"].problem)


def test_the_audit_looks_from_a_process_of_its_own(evidence: Evidence, monkeypatch: pytest.MonkeyPatch) -> None:
    """Not only can it: it does. A crash in here would end this test."""
    monkeypatch.setattr("posttrainbench.integrity.verdict.DETECTORS", {"crashing": crashing, "fine": fine})
    found = examine(evidence)
    assert "SIGSEGV" in str(found["crashing"].problem) and found["fine"] == fine(evidence)
    assert fuse(found)["verdict"] == "undecided"

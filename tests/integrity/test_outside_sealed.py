"""Sealed test data in the audit: how often the agent asked, for people, never for the verdict."""

from __future__ import annotations

import json
from pathlib import Path

from posttrainbench.integrity.outside_sealed import sealed_findings

STRICT = {"accuracy": 0.5, "stderr": 0.1}
CALLS = [
    {"event": "evaluated", "state": "done", "weights": "a", "n": 40, "strict": STRICT, "seconds": 3.5, "path": "/home/agent/task/a"},
    {"event": "evaluated", "state": "done", "weights": "a", "n": 200, "strict": STRICT, "seconds": 9, "path": "/home/agent/task/a"},
    {"event": "evaluated", "state": "done", "weights": "b", "n": 200, "strict": STRICT, "seconds": 9, "path": "/tmp/b"},
    {"event": "evaluated", "state": "failed", "kind": "path", "path": "/etc", "seconds": 0.1},
]  # fmt: skip


def write(path: Path, rows: list[dict[str, object]]) -> None:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows) + "not JSON\n")


def test_calls_are_told_and_flag_nothing(tmp_path: Path) -> None:
    write(tmp_path / "sealed.jsonl", CALLS)
    write(tmp_path / "sealed-requests.jsonl", [{"event": "accepted"}, {"event": "refused", "reason": "limit"}])
    found = {finding.rule: finding for finding in sealed_findings(tmp_path)}
    assert set(found) == {"sealed-evaluations", "sealed-path", "sealed-refused"}
    assert {finding.severity for finding in found.values()} == {"info"}
    numbers = dict(found["sealed-evaluations"].numbers)
    assert numbers == {"calls": 4, "scored": 3, "models": 2, "seconds": 21.6}
    assert (
        "2 model(s)" in found["sealed-evaluations"].summary
        and "0.5 on 200 items" in found["sealed-evaluations"].where[2]
    )
    assert "/etc" in found["sealed-path"].where[0]


def test_nothing_to_tell_with_visible_data(tmp_path: Path) -> None:
    assert sealed_findings(tmp_path) == []

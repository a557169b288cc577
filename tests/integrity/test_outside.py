"""The gateway's logs as evidence."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from posttrainbench.integrity import Evidence
from posttrainbench.integrity.outside import detect
from posttrainbench.pipeline import trace


def evidence(tmp_path: Path, *, record: dict[str, Any] | None = None, **logs: list[dict[str, Any]]) -> Evidence:
    gateway = tmp_path / "gateway"
    gateway.mkdir()
    for name, rows in logs.items():
        (gateway / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows) + "{torn")
    return Evidence(
        base=tmp_path,
        instruct=None,
        instruct_problem=None,
        submission=None,
        refused=(),
        workspace=tmp_path,
        manifest={},
        benchmark="smoke-math",
        gateway=gateway,
        record=record or {},
    )


def test_refused_tries_are_weak_and_counted(tmp_path: Path) -> None:
    ledger = [{"refusal": "model", "model": "other", "provider": "anthropic", "error": "not declared"}] * 3
    ledger += [{"refusal": "model", "stands_for": 100}, {"refusal": "budget"}, {"status": 200, "model": "mine"}]
    [finding] = detect(evidence(tmp_path, ledger=ledger)).findings
    assert (finding.rule, finding.severity, finding.numbers["count"]) == ("other-model", "weak", 103)


def test_a_models_api_that_was_reached_is_strong_only_with_traffic(tmp_path: Path) -> None:
    web = [{"allowed": True, "host": "api.openai.com", "rule": "others", "up": 40_000, "down": 900_000}]
    web += [{"allowed": True, "host": "api.mistral.ai", "rule": "others", "up": 600, "down": 5_000}]
    web += [{"allowed": True, "host": "pypi.org", "rule": "packages", "up": 10_000, "down": 10**9}]
    found = {finding.where[0]: finding.severity for finding in detect(evidence(tmp_path, web=web)).findings}
    assert found == {"api.openai.com": "strong", "api.mistral.ai": "weak"}


def test_what_an_open_network_let_through_is_said(tmp_path: Path) -> None:
    web = [
        {"allowed": True, "host": host, "rule": "others", "up": 900, "down": 9_000}
        for host in ("matharena.ai", "x.ngrok.io")
    ]
    found = {finding.where[0]: finding for finding in detect(evidence(tmp_path, web=web)).findings}
    assert {host: (each.rule, each.severity) for host, each in found.items()} == {
        "matharena.ai": ("test-data", "weak"),
        "x.ngrok.io": ("web-tampering", "weak"),
    }
    assert "refused" not in found["matharena.ai"].summary


def test_a_trace_that_overflowed_is_said(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """By a flood of output an agent would go on unseen; it cannot say so itself, nor unsay it."""
    monkeypatch.setattr(trace, "MAX_BYTES", 10_000)
    for name, printed in (("flood", b"x" * 999 + b"\n"), ("quiet", b'{"ptb": {"event": "dropped", "bytes": 7}}\n')):
        writer = trace.TraceWriter(tmp_path / f"{name}.jsonl")
        for _ in range(50 if name == "flood" else 1):
            writer.feed(printed)
        writer.mark({"event": "session_end", "ending": "finished"})
        writer.close()
    seen = evidence(tmp_path)
    [finding] = detect(replace(seen, trace=tmp_path / "flood.jsonl")).findings
    assert finding.rule == "trace-flooded" and finding.numbers["dropped_bytes"] > 30_000
    assert not detect(replace(seen, trace=tmp_path / "quiet.jsonl")).findings


def test_any_number_of_hosts_makes_a_short_report(tmp_path: Path) -> None:
    web = [{"allowed": True, "host": f"a{i}.hf.space", "up": 50, "down": 50} for i in range(3000)]
    found = detect(evidence(tmp_path, web=web)).findings
    assert len(found) <= 101 and sum(each.numbers["count"] for each in found) == 3000
    # in small pieces it is a talk all the same
    assert [each.severity for each in found if each.where == ("further hosts",)] == ["strong"]


def test_talk_to_the_grader_is_reported(tmp_path: Path) -> None:
    rows = [{"event": "accepted", "suspects": {"a": ["instructions"], "b": ["instructions", "verdict label"]}}]
    rows += [{"event": "refused", "reason": "foreign-item"}]
    found = detect(evidence(tmp_path, grader=rows)).findings
    assert {(each.rule, each.numbers["kind"], each.numbers["count"]) for each in found} == {
        ("grader-misuse", "instructions", 2),
        ("grader-misuse", "verdict label", 1),
        ("grader-misuse", "foreign-item", 1),
    }


def test_credentials_inside_are_said(tmp_path: Path) -> None:
    outcome = detect(evidence(tmp_path, record={"agent": {"mounts_credentials": True}}))
    assert [finding.rule for finding in outcome.findings] == ["credentials-inside"]
    assert detect(evidence_without_gateway(tmp_path)).findings == ()


def evidence_without_gateway(tmp_path: Path) -> Evidence:

    (tmp_path / "other").mkdir()
    return replace(evidence(tmp_path / "other"), gateway=None)


def test_requests_that_were_seen_are_judged_by_their_paths(tmp_path: Path) -> None:
    seen = {"allowed": True, "level": "request", "method": "GET", "rule": "others", "up": 0, "down": 9_000}
    web = [
        {**seen, "host": "raw.githubusercontent.com", "path": "/openai/grade-school-math/master/x/data/test.jsonl"},
        {**seen, "host": "raw.githubusercontent.com", "path": "/openai/grade-school-math/master/x/data/train.jsonl"},
        {**seen, "host": "arxiv.org", "path": "/abs/2603.08640"},
        {**seen, "host": "github.com", "path": "/openai/human-eval"},
        {**seen, "host": "github.com", "path": None, "level": "host"},
    ]
    found = detect(replace(evidence(tmp_path, web=web), benchmark="gsm8k")).findings
    assert {(each.where[0], each.rule, each.numbers["count"]) for each in found} == {
        ("raw.githubusercontent.com", "test-data", 1),
        ("arxiv.org", "benchmark-pages", 1),
    }

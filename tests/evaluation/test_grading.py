"""LLM grading: each way to fail has its answer, nothing is paid for twice, and nothing missing becomes a verdict."""

from __future__ import annotations

import asyncio
import json
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
from inspect_ai.model import ChatMessageUser, GenerateConfig

from posttrainbench.errors import ConfigurationError
from posttrainbench.evaluation import grading
from posttrainbench.evaluation.grading import Graded, GradingFailure, GradingStopped, grade, session
from tests.evaluation.grading_server import (
    AUTH,
    QUOTA,
    RATE_LIMIT,
    REFUSED,
    SERVER_ERROR,
    Grader,
    Reply,
    grader_server,
)

pytest.importorskip("openai")


def parse(text: str) -> bool | None:
    try:
        value = json.loads(text)["met"]
    except (ValueError, KeyError, TypeError):
        return None
    return value if isinstance(value, bool) else None


MET = '{"met": true}'


def ask(
    grader: Grader,
    questions: list[str],
    monkeypatch: pytest.MonkeyPatch,
    cache: Path | None = None,
    model: str = "openai/gpt-5-mini",
    concurrency: int = 64,
    **options: Any,
) -> tuple[list[Graded[bool]], grading.Session]:
    monkeypatch.setenv("OPENAI_API_KEY", "key")
    monkeypatch.setenv("OPENAI_BASE_URL", grader.url)

    async def all_of_them() -> list[Graded[bool]]:
        return await asyncio.gather(
            *(grade(model, [ChatMessageUser(content=q)], parse=parse, waits=0.001, **options) for q in questions)
        )

    with session(cache, concurrency=concurrency) as opened:
        return asyncio.run(all_of_them()), opened


def every(number: int, failure: Reply, otherwise: Reply = MET) -> Any:
    """A script: each n-th request fails."""
    count = Counter[str]()

    def reply(_: str) -> Reply:
        count["asked"] += 1
        return failure if count["asked"] % number == 0 else otherwise

    return reply


@pytest.mark.parametrize("model", ["openai/gpt-5-mini", "openai/gpt-4o-mini"])
def test_all_is_well(model: str, monkeypatch: pytest.MonkeyPatch) -> None:
    with grader_server(lambda _: MET) as grader:
        results, opened = ask(grader, [f"q{n}" for n in range(20)], monkeypatch, model=model)
    assert [one.value for one in results] == [True] * 20
    # one request for each, and none besides (Inspect would probe for reasoning summaries)
    assert sorted(grader.asked) == sorted(f"q{n}" for n in range(20))
    counts = opened.counts.as_dict()
    assert (counts["gradings"], counts["calls"], counts["input_tokens"], counts["output_tokens"]) == (20, 20, 200, 100)


@pytest.mark.parametrize(
    ("failure", "kind"), [(RATE_LIMIT, "rate_limit"), (SERVER_ERROR, "server_error"), ("{", "malformed")]
)
def test_what_passes_is_asked_again(failure: Reply, kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    with grader_server(every(3, failure)) as grader:
        results, opened = ask(grader, [f"q{n}" for n in range(30)], monkeypatch)
    assert all(one.value is True for one in results)
    assert opened.counts.calls == len(grader.asked) == 30 + opened.counts.retries[kind]
    assert opened.counts.retries[kind] > 10
    assert not opened.counts.failures


@pytest.mark.parametrize(
    ("failure", "kind", "requests"),
    [
        (RATE_LIMIT, GradingFailure.RATE_LIMIT, 12),
        (SERVER_ERROR, GradingFailure.SERVER_ERROR, 6),
        ("no JSON here", GradingFailure.MALFORMED, 5),
        ('{"met": "yes"}', GradingFailure.MALFORMED, 5),
        (REFUSED, GradingFailure.REFUSED, 1),
    ],
)
def test_what_does_not_pass_is_a_failure_and_no_verdict(
    failure: Reply, kind: GradingFailure, requests: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    with grader_server(lambda _: failure) as grader:
        [result], opened = ask(grader, ["q"], monkeypatch)
    assert (result.value, result.failure) == (None, kind)
    assert result.detail
    assert len(grader.asked) == requests
    assert opened.counts.failures == {kind: 1}
    opened.raise_if_stopped()  # one failed question ends nothing


@pytest.mark.parametrize(
    ("failure", "kind", "words"), [(QUOTA, "quota", "quota ended"), (AUTH, "auth", "refused the key")]
)
def test_the_end_of_the_quota_stops_all_and_the_rest_can_follow(
    failure: Reply, kind: str, words: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    cache = tmp_path / "grading.jsonl"
    questions = [f"q{n}" for n in range(40)]
    count = Counter[str]()

    def reply(_: str) -> Reply:
        count["asked"] += 1
        return MET if count["asked"] <= 25 else failure

    with grader_server(reply) as grader:
        results, opened = ask(grader, questions, monkeypatch, cache, concurrency=4)
    done = [one for one in results if one.value is not None]
    assert len(done) == 25
    assert {one.failure for one in results if one.value is None} <= {kind, "stopped"}
    assert len(grader.asked) < 25 + 5  # those in flight when it ended
    with pytest.raises(GradingStopped, match=rf"{words} after 25 gradings .*run the same command again"):
        opened.raise_if_stopped()

    with grader_server(lambda _: MET) as grader:
        results, opened = ask(grader, questions, monkeypatch, cache)
    assert all(one.value is True for one in results)
    assert len(grader.asked) == 15
    assert opened.counts.cached == 25


def test_a_torn_cache_loses_one_entry_only(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    cache = tmp_path / "grading.jsonl"
    questions = [f"q{n}" for n in range(5)]
    with grader_server(lambda _: MET) as grader:
        ask(grader, questions, monkeypatch, cache)
        raw = cache.read_bytes()
        cache.write_bytes(raw[:-20])  # a crash while the last entry was written
        _, opened = ask(grader, questions, monkeypatch, cache)
        assert opened.counts.cached == 4
        _, opened = ask(grader, questions, monkeypatch, cache)
        assert opened.counts.cached == 5
    assert len(grader.asked) == 6


def test_a_question_is_its_grader_messages_settings_and_position(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    cache = tmp_path / "grading.jsonl"
    with grader_server(lambda _: MET) as grader:
        for options in (
            {},
            {"position": "B"},
            {"model": "openai/gpt-5-nano"},
            {"config": GenerateConfig(reasoning_effort="low")},
            {},
            {"config": GenerateConfig(max_connections=3)},
        ):
            ask(grader, ["q"], monkeypatch, cache, **options)
        ask(grader, ["other"], monkeypatch, cache)
    assert len(grader.asked) == 5


def test_no_more_requests_at_once_than_allowed(monkeypatch: pytest.MonkeyPatch) -> None:
    with grader_server(lambda _: MET) as grader:
        ask(grader, [f"q{n}" for n in range(30)], monkeypatch, concurrency=3)
    assert grader.peak <= 3


def test_no_key_and_no_such_grader(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("OPENAI_API_KEY", raising=False)
    for name, word in (("openai/gpt-5-mini", "OPENAI_API_KEY"), ("nobody/x", "nobody")):
        with pytest.raises(ConfigurationError, match=word) as caught:
            grading.get_grader(name)
        assert "\n" not in str(caught.value)
        assert "--grader" in str(caught.value)


def test_parsers_may_raise_value_errors(monkeypatch: pytest.MonkeyPatch) -> None:
    def strictly(text: str) -> bool:
        raise ValueError(text)

    monkeypatch.setenv("OPENAI_API_KEY", "key")
    with grader_server(lambda _: MET) as grader:
        monkeypatch.setenv("OPENAI_BASE_URL", grader.url)
        with session():
            result = asyncio.run(
                grade("openai/gpt-5-mini", [ChatMessageUser(content="q")], parse=strictly, attempts=2, waits=0.0)
            )
    assert result.failure is GradingFailure.MALFORMED
    assert result.text == MET
    assert len(grader.asked) == 2


def test_a_graded_benchmark_stops_with_the_quota_and_goes_on(
    shared_data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from posttrainbench.evaluation import data, runner
    from posttrainbench.evaluation.request import EvaluationRequest

    rows = data.arena_hard_writing(shared_data).rows
    completions = tmp_path / "answers.jsonl"
    completions.write_text(
        "".join(json.dumps({"id": row["uid"], "completion": f"Answer {n}"}) + "\n" for n, row in enumerate(rows))
    )
    request = EvaluationRequest(
        benchmark="arenahardwriting",
        base_model="Qwen3-4B-Base",
        template="qwen3",
        output=str(tmp_path / "out"),
        engine="replay",
        completions=str(completions),
        data_dir=str(shared_data),
        limit=10,
    )
    monkeypatch.delenv("OPENAI_API_KEY", raising=False)
    with pytest.raises(ConfigurationError, match="OPENAI_API_KEY"):
        runner.run(request)
    monkeypatch.setenv("OPENAI_API_KEY", "key")
    count = Counter[str]()

    def reply(_: str) -> Reply:
        count["asked"] += 1
        return "My final verdict is: [[A>B]]" if count["asked"] <= 9 else QUOTA

    with grader_server(reply) as grader:
        monkeypatch.setenv("OPENAI_BASE_URL", grader.url)
        with pytest.raises(GradingStopped, match="after 9 gradings"):
            runner.run(request)
    partial = json.loads((tmp_path / "out" / "metrics.partial.json").read_text())
    assert partial["strict"]["missing"] > 0
    assert partial["strict"]["missing"] == 10 - partial["strict"]["scored"]
    assert not (tmp_path / "out" / "metrics.json").exists()
    with grader_server(lambda _: "[[A=B]]") as grader:
        monkeypatch.setenv("OPENAI_BASE_URL", grader.url)
        metrics = runner.run(request)
    assert len(grader.asked) == 20 - 9
    assert (metrics["strict"]["scored"], metrics["strict"]["missing"]) == (10, 0)
    assert metrics["grading"]["cached"] == 9
    assert not (tmp_path / "out" / "metrics.partial.json").exists()

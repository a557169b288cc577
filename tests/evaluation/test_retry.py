"""The retry ladder as a table: what each kind of failure leads to."""

from __future__ import annotations

from pathlib import Path

from posttrainbench.evaluation.retry import POLICY, Failure, Ladder, Parameters, after_kill
from tests.evaluation.engines_support import make_request

START = Parameters(batch_size=256, memory_share=0.9, max_tokens=16000)


def climb(failure: Failure, start: Parameters = START, message: str = "x") -> list[Parameters]:
    ladder = Ladder(start)
    found = []
    while (step := ladder.failed(failure, message)) is not None:
        found.append(step)
    return found


def test_memory_lowers_concurrency_then_share_and_tokens_last() -> None:
    steps = climb(Failure.OUT_OF_MEMORY)
    assert [step.batch_size for step in steps] == [128, 64, 16, 16, 16, 16, 16]
    assert [step.memory_share for step in steps] == [0.9, 0.9, 0.9, 0.765, 0.65, 0.65, 0.65]
    assert [step.max_tokens for step in steps] == [16000] * 5 + [12000, 8000]


def test_steps_that_change_nothing_are_skipped() -> None:
    steps = climb(Failure.OUT_OF_MEMORY, Parameters(batch_size=1, memory_share=None, max_tokens=4000))
    assert [(step.batch_size, step.max_tokens) for step in steps] == [(1, 3000), (1, 2000)]


def test_deterministic_failures_are_not_repeated() -> None:
    assert climb(Failure.OTHER) == []
    ladder = Ladder(START)
    assert ladder.failed(Failure.SERVER_LOST, "first") == START
    assert ladder.failed(Failure.SERVER_LOST, "first") != START
    assert climb(Failure.START_TIMEOUT) == [START]


def test_every_attempt_is_recorded() -> None:
    ladder = Ladder(START)
    ladder.failed(Failure.OUT_OF_MEMORY, "CUDA out of memory" + "." * 1000)
    ladder.succeeded()
    first, second = ladder.as_list()
    assert (first["failure"], first["parameters"]["batch_size"]) == ("out_of_memory", 256)
    assert len(first["message"]) == 500
    assert (second["failure"], second["parameters"]["batch_size"]) == (None, 128)
    assert first["seconds"] >= 0


def test_each_kind_has_a_policy_and_only_memory_touches_tokens() -> None:
    assert set(POLICY) == set(Failure)
    for failure, rungs in POLICY.items():
        fields = [rung.field for rung in rungs]
        assert ("max_tokens" in fields) == (failure is Failure.OUT_OF_MEMORY)
        assert fields == sorted(fields, key=("same", "batch_size", "memory_share", "max_tokens").index)


def test_a_killed_process_climbs_the_same_ladder(tmp_path: Path) -> None:
    request = make_request(None, tmp_path)
    sizes = []
    for kills in range(1, 5):
        lowered = after_kill(request, batch_size=32, kills=kills)
        sizes.append(None if lowered is None else lowered.batch_size)
    assert sizes == [16, 8, 2, None]

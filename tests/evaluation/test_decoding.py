"""What a submission may decide about sampling, and what is said of the rest."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from posttrainbench.evaluation.decoding import Sampling, derive_seed, from_config, from_directory


def decode(**config: Any) -> Any:
    return from_config(config, vocab_size=100, protocol_max_tokens=4000)


def test_nothing_said_is_the_published_default() -> None:
    found = decode()
    assert (found.temperature, found.top_p, found.top_k, found.min_p, found.repetition_penalty) == (
        1.0,
        1.0,
        0,
        0.0,
        1.0,
    )
    assert found.ignored == ()


def test_values_within_bounds_are_taken() -> None:
    found = decode(temperature=0.6, top_p=0.95, top_k=20, min_p=0.1, repetition_penalty=1.05, eos_token_id=[3, 1, 3])
    assert (found.temperature, found.top_p, found.top_k, found.min_p, found.repetition_penalty) == (
        0.6,
        0.95,
        20,
        0.1,
        1.05,
    )
    assert found.eos_token_ids == (1, 3)
    assert found.stopping_at([7, None, 3]).eos_token_ids == (1, 3, 7)
    assert not found.ignored
    assert decode(temperature=0).greedy
    assert decode(top_k=-1).top_k == 0


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("temperature", -0.1),
        ("temperature", 5),
        ("temperature", "0.5"),
        ("temperature", True),
        ("temperature", float("nan")),
        ("temperature", float("inf")),
        ("top_p", 0),
        ("top_p", 1.5),
        ("top_k", -2),
        ("top_k", 2.5),
        ("min_p", 2),
        ("repetition_penalty", 0),
        ("eos_token_id", 100),
        ("eos_token_id", "</s>"),
        ("eos_token_id", [True]),
        ("max_new_tokens", 1),
        ("max_new_tokens", "many"),
        ("num_beams", 4),
        ("suppress_tokens", [1]),
    ],
)
def test_values_out_of_bounds_are_named_and_not_used(key: str, value: Any) -> None:
    found = decode(**{key: value})
    assert len(found.ignored) == 1
    assert key in found.ignored[0]
    assert {**found.__dict__, "ignored": ()} == decode().__dict__


def test_a_higher_cap_and_idle_keys_are_no_matter() -> None:
    assert decode(max_new_tokens=32768, num_beams=1, do_sample=True, pad_token_id=3).ignored == ()


def test_unreadable_files(tmp_path: Path) -> None:
    for content in ("{", "[]", "\xff"):
        (tmp_path / "generation_config.json").write_bytes(content.encode("latin-1"))
        found = from_directory(tmp_path, vocab_size=10, override={"temperature": 0.6})
        assert found.temperature == 0.6
        assert "not a JSON object" in found.ignored[0]


def test_every_answer_has_its_own_parameters() -> None:
    found = Sampling.of(decode(eos_token_id=5, temperature=0.3), seed=9, max_tokens=7)
    assert (found.seed, found.max_tokens, found.temperature, found.stop_token_ids) == (9, 7, 0.3, (5,))
    assert derive_seed(0, "a", "b") == derive_seed(0, "a", "b")
    seeds = {derive_seed(base, *parts) for base in (0, 1) for parts in (("a", "b"), ("b", "a"), ("ab",), ("a",))}
    assert len(seeds) == 8
    assert all(0 <= seed < 2**63 for seed in seeds)


def test_values_made_to_break_the_record() -> None:
    """A number too large for a float, and text that is none: told in ASCII, and no reason to fail."""
    decoding = from_config(
        {"temperature": 10**400, "stop_strings": "\ud800", "eos_token_id": ["x"] * 50}, vocab_size=10
    )
    assert decoding.temperature == 1.0 and 0 < len(decoding.ignored) <= 20
    "".join(decoding.ignored).encode("ascii")

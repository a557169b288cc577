"""Globs of rules on requests: what they mean, and that no text makes them slow."""

from __future__ import annotations

import fnmatch
import random
import time

import pytest

from posttrainbench.gateway.web_globs import Globs
from posttrainbench.gateway.web_names import Host
from posttrainbench.gateway.web_policy import load_policy
from posttrainbench.gateway.web_requests import check_request, read_target


@pytest.mark.parametrize(
    ("glob", "text", "expected"),
    [
        ("*/a{b,}*bc", "/abc", True),
        ("*{abcd,c}*d", "abcd", True),
        ("/x{,/*}", "/x", True),
        ("/x{,/*}", "/x/y", True),
        ("/x{,/*}", "/xy", False),
        ("/{a,b{c,d}}", "/bd", True),
        ("/{a,b{c,d}}", "/b", False),
        ("a*a", "a", False),
        ("a*a", "aa", True),
        ("?.x", "\n.x", True),
        ("*a?c*d?", "..abc..de", True),
        ("*a?c*d?", "..abc..d", False),
        ("A}", "a}", True),
        ("*", "", True),
        ("", "", True),
        ("", "a", False),
    ],
)
def test_meaning(glob: str, text: str, expected: bool) -> None:
    assert Globs([glob]).matches(text) is expected


def test_stars_mean_what_they_mean_in_file_names() -> None:
    chance = random.Random(7)
    for _ in range(20_000):
        glob = "".join(chance.choices("ab*?", k=chance.randrange(7)))
        text = "".join(chance.choices("ab", k=chance.randrange(9)))
        assert Globs([glob]).matches(text) is fnmatch.fnmatchcase(text, glob), (glob, text)


@pytest.mark.parametrize("glob", ["{a", "{a,{b}", "{a,b}" * 20])
def test_globs_that_cannot_be(glob: str) -> None:
    with pytest.raises(ValueError):
        Globs([glob])


def test_no_glob_matches_nothing() -> None:
    assert not Globs([]).matches("")


@pytest.mark.parametrize(
    ("benchmark", "unit"), [("gsm8k", "testgsm."), ("aime2025", "aime25."), ("bfcl", "berkeley_function_cal/")]
)
def test_no_url_holds_up_the_gateway(benchmark: str, unit: str) -> None:
    """Such a path kept it busy for 36 s as regular expressions, with all that goes through it waiting."""
    rules = load_policy("guarded").of_run(benchmark).requests
    began = time.process_time()
    check_request(rules, Host("x.github.com"), "GET", read_target("/" + unit * (16_000 // len(unit))))
    half = unit * (8_000 // len(unit))
    check_request(rules, Host("x.github.com"), "GET", read_target(f"/{half}?%2541{half}"))
    assert time.process_time() - began < 2

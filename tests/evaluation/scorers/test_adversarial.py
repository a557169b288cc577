"""The table of adversarial completions: each scorer's verdict is as stated."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from posttrainbench.evaluation.scorers.calls import paper_call, parse_ground_truth, strict_call
from posttrainbench.evaluation.scorers.choice import paper_choice, strict_choice
from posttrainbench.evaluation.scorers.code import paper_program, strict_program
from posttrainbench.evaluation.scorers.execution import Job, Problem, Where, execute
from posttrainbench.evaluation.scorers.numeric import paper_aime, paper_numeric, strict_numeric
from posttrainbench.evaluation.tool_calls import parse_hermes
from posttrainbench.sandbox import get_backend
from tests.evaluation.scorers.adversarial import (
    AIME,
    CALLS,
    CASES,
    CHECK,
    CHOICE,
    CODE,
    FUNCTION,
    NUMERIC,
    PROMPT,
    Case,
)

Judge = Callable[[str, str], bool]
PROBLEM = Problem("add", PROMPT + "    return a + b\n", CHECK, "add")


def label(case: Case) -> str:
    return f"{case.benchmark}: {case.name}"


def test_the_table_is_large_enough() -> None:
    assert len(CASES) >= 60
    assert len({label(case) for case in CASES}) == len(CASES)


@pytest.mark.parametrize("case", [*NUMERIC, *AIME, *CHOICE], ids=label)
def test_stated_answers(case: Case) -> None:
    judges: dict[str, tuple[Judge, Judge]] = {
        "gsm8k": (strict_numeric, paper_numeric),
        "aime2025": (strict_numeric, paper_aime),
        "gpqamain": (strict_choice, paper_choice),
    }
    strict, paper = judges[case.benchmark]
    assert (strict(case.completion, case.target), paper(case.completion, case.target)) == (case.strict, case.paper)


@pytest.mark.parametrize("case", CALLS, ids=label)
def test_calls(case: Case) -> None:
    calls, target = parse_hermes(case.completion).calls, parse_ground_truth(case.target)
    verdicts = (strict_call(calls, target, FUNCTION["parameters"]), paper_call(calls, target))  # type: ignore[arg-type]
    assert verdicts == (case.strict, case.paper)


def where() -> Where:
    ready = all(check.ok for check in get_backend().preflight() if check.required)
    return "sandbox" if ready else "process"


@pytest.fixture(scope="module")
def outcomes() -> dict[str, tuple[bool | None, bool | None]]:
    """All code cases in as few sandboxes as the harness would use."""
    strict = [Job(strict_program(case.completion, prompt=PROMPT, entry_point="add"), PROBLEM, 6.0) for case in CODE]
    paper = [
        Job(paper_program(case.completion, prompt=PROMPT, test=CHECK, entry_point="add"), None, 6.0) for case in CODE
    ]
    execute([*strict, *paper], where=where())
    found = {}
    for case, one, other in zip(CODE, strict, paper, strict=True):
        assert one.outcome is not None
        assert other.outcome is not None
        found[case.name] = (one.outcome.passed, other.outcome.passed)
    return found


@pytest.mark.parametrize("case", CODE, ids=label)
def test_code(case: Case, outcomes: dict[str, tuple[bool | None, bool | None]]) -> None:
    assert outcomes[case.name] == (case.strict, case.paper)

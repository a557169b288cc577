"""From scores to figures: epochs by item, missing ones counted, published ways of averaging applied."""

from __future__ import annotations

import math
from typing import Any

import pytest
from inspect_ai.log import EvalLog, EvalSample
from inspect_ai.model import ModelOutput
from inspect_ai.scorer import CORRECT, INCORRECT, Score

from posttrainbench.evaluation import metrics

MISSING = Score(value=float("nan"), metadata={"missing": "grader_failed"})


def sample(item: str, score: Score | None, epoch: int = 1) -> EvalSample:
    scores = {} if score is None else {"strict": score, "paper": score}
    return EvalSample(
        id=item, epoch=epoch, input="", target="", scores=scores, output=ModelOutput.from_content("m", "x")
    )


def log(samples: list[EvalSample]) -> Any:
    return EvalLog.model_construct(samples=samples, results=None)


def test_mean_and_standard_error() -> None:
    rows = [sample(str(n), Score(value=CORRECT if n < 3 else INCORRECT)) for n in range(4)]
    found = metrics.scores(log(rows))["strict"]
    assert found["accuracy"] == 0.75
    assert found["stderr"] == pytest.approx(math.sqrt(0.25 / 4))
    assert (found["scored"], found["missing"]) == (4, 0)


def test_missing_is_not_wrong() -> None:
    rows = [sample("a", Score(value=1.0)), sample("b", MISSING), sample("c", None)]
    rows.append(sample("d", Score(value=0.0, metadata={"missing": "flagged"})))
    found = metrics.scores(log(rows))["strict"]
    assert (found["accuracy"], found["scored"], found["missing"]) == (1.0, 1, 3)
    assert found["missing_reasons"] == {"grader_failed": 1, "not scored": 1, "flagged": 1}


def test_all_missing_has_no_score() -> None:
    found = metrics.scores(log([sample("a", MISSING)]))["paper"]
    assert (found["accuracy"], found["stderr"], found["missing"]) == (None, None, 1)


def test_epochs_of_an_item_are_one_figure() -> None:
    rows = [
        sample(item, Score(value=value), epoch)
        for item, values in (("a", (1, 0)), ("b", (1, 1)))
        for epoch, value in enumerate(values, 1)
    ]
    rows.append(sample("b", MISSING, 3))
    found = metrics.scores(log(rows))["strict"]
    assert (found["accuracy"], found["scored"], found["missing"]) == (0.75, 2, 1)
    assert found["stderr"] == pytest.approx(0.25)


def test_a_benchmarks_own_average() -> None:
    from posttrainbench.evaluation.scorers.aggregate import clipped, over_entries

    rows = [
        sample("a", Score(value=-3.0, metadata={"entries": [1, 1, 1]})),
        sample("b", Score(value=0.5, metadata={"entries": [0]})),
        sample("c", MISSING),
    ]
    found = metrics.scores(log(rows), {"strict": clipped, "paper": over_entries})
    assert (found["strict"]["accuracy"], found["strict"]["scored"], found["strict"]["missing"]) == (0.0, 2, 1)
    assert (found["paper"]["accuracy"], found["paper"]["missing"]) == (0.75, 1)


def test_versions_name_what_decides_a_score() -> None:
    assert {"posttrainbench", "inspect_ai", "transformers", "torch"} <= set(metrics.versions())

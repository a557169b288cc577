"""From the scores of items to the numbers of a benchmark: missing ones counted, and the published ways of averaging.

A score says in `metadata["aggregate"]` how it wants to be averaged; without that it is a plain mean:

- `mean`: mean over items, stderr = sample standard deviation over the square root of n.
- `clipped`: the same, and the mean is cut to [0, 1] (HealthBench, where an item can be below 0).
- `entries`: mean over the lists in `metadata["entries"]` of all items together (Arena-Hard as published).
- `clipped_bootstrap`: mean cut to [0, 1]; stderr = standard deviation of 1000 resampled means (HealthBench as published).
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Sequence
from typing import Any

import numpy as np
from inspect_ai.scorer import Score, value_to_float

_RESAMPLES, _SEED = 1000, 42
_to_float = value_to_float()


def missing_reason(score: Score) -> str | None:
    """Why a score is missing; `None` if it is not."""
    metadata = score.metadata or {}
    if metadata.get("missing"):
        return str(metadata["missing"])
    if isinstance(score.value, float) and math.isnan(score.value):
        return score.reason or "no score"
    return None


def _clip(value: float) -> float:
    return min(max(value, 0.0), 1.0)


def _mean_and_stderr(values: Sequence[float]) -> tuple[float | None, float | None]:
    if not values:
        return None, None
    mean = sum(values) / len(values)
    if len(values) < 2:
        return mean, None
    return mean, math.sqrt(sum((value - mean) ** 2 for value in values) / (len(values) - 1) / len(values))


def aggregate(scores: Sequence[Score]) -> dict[str, Any]:
    """`accuracy`, `stderr`, `n` (items), `scored` (items with a score) and `missing` (reason -> items) of one scorer.

    `accuracy` is the mean over items that have a score; with any missing it stands for part of the benchmark only, which
    is why `missing` belongs beside it wherever it is shown.
    """
    reasons = [missing_reason(score) for score in scores]
    present = [score for score, reason in zip(scores, reasons, strict=True) if reason is None]
    how = next((score.metadata["aggregate"] for score in present if (score.metadata or {}).get("aggregate")), "mean")  # type: ignore[index]
    if how == "entries":
        values = [float(entry) for score in present for entry in (score.metadata or {})["entries"]]
    else:
        values = [_to_float(score.value) for score in present]
    mean, error = _mean_and_stderr(values)
    if mean is not None and how in ("clipped", "clipped_bootstrap"):
        mean = _clip(mean)
    if values and how == "clipped_bootstrap":
        generator = np.random.default_rng(_SEED)
        drawn = generator.choice(np.array(values), size=(_RESAMPLES, len(values)))
        error = float(np.clip(drawn.mean(axis=1), 0.0, 1.0).std())
    return {
        "accuracy": mean,
        "stderr": error,
        "n": len(scores),
        "scored": len(present),
        "missing": dict(Counter(reason for reason in reasons if reason is not None)),
    }

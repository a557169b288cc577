"""The published ways of making one number from the scores of items, where that is no plain mean.

A benchmark's module names them in its `AGGREGATE` (scorer -> function of the scores that are not missing); the counts of
items and of missing scores are `evaluation.metrics`' for all benchmarks alike.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence

import numpy as np
from inspect_ai.scorer import Score

Figures = dict[str, float | None]
Aggregate = Mapping[str, Callable[[Sequence[Score]], Figures]]

_RESAMPLES, _SEED = 1000, 42


def _figures(values: Sequence[float]) -> Figures:
    if not values:
        return {"accuracy": None, "stderr": None}
    mean = sum(values) / len(values)
    if len(values) < 2:
        return {"accuracy": mean, "stderr": None}
    spread = sum((value - mean) ** 2 for value in values) / (len(values) - 1)
    return {"accuracy": mean, "stderr": math.sqrt(spread / len(values))}


def _clip(value: float | None) -> float | None:
    return None if value is None else min(max(value, 0.0), 1.0)


def over_entries(scores: Sequence[Score]) -> Figures:
    """Mean over the lists in `metadata["entries"]` of all items together, each entry as if independent (Arena-Hard)."""
    return _figures([float(entry) for score in scores for entry in (score.metadata or {})["entries"]])


def clipped(scores: Sequence[Score]) -> Figures:
    """Mean over items, cut to [0, 1]; a HealthBench item can be below 0."""
    found = _figures([score.as_float() for score in scores])
    return {**found, "accuracy": _clip(found["accuracy"])}


def clipped_bootstrap(scores: Sequence[Score]) -> Figures:
    """As `clipped`, with the standard deviation of 1000 resampled and cut means as standard error (HealthBench)."""
    found = clipped(scores)
    if len(scores) < 2:
        return found
    values = np.array([score.as_float() for score in scores])
    means = np.random.default_rng(_SEED).choice(values, size=(_RESAMPLES, len(values))).mean(axis=1)
    return {**found, "stderr": float(np.clip(means, 0.0, 1.0).std())}

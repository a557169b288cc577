"""The published ways of making one number from the scores of items, where that is no plain mean.

A benchmark's module names them in its `AGGREGATE` (scorer -> function of the scores that are not missing); the counts of
items and of missing scores are `evaluation.metrics`' for all benchmarks alike.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
from inspect_ai.scorer import Score

Figures = dict[str, Any]
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


def _by_theme(scores: Sequence[Score]) -> dict[str, float | None]:
    """Cut mean of the items of each theme."""
    themes: dict[str, list[float]] = {}
    for score in scores:
        for tag in (score.metadata or {}).get("tags", ()):
            kind, _, theme = tag.partition(":")
            if kind == "theme":
                themes.setdefault(theme, []).append(score.as_float())
    return {theme: _clip(_figures(values)["accuracy"]) for theme, values in sorted(themes.items())}


def _by_axis(scores: Sequence[Score]) -> dict[str, float | None]:
    """Points of met criteria over positive points, over all criteria of each axis together, cut to [0, 1]."""
    achieved: Counter[str] = Counter()
    possible: Counter[str] = Counter()
    for score in scores:
        for criterion in (score.metadata or {}).get("criteria", ()):
            for tag in criterion["tags"]:
                kind, _, axis = tag.partition(":")
                if kind == "axis":
                    possible[axis] += max(criterion["points"], 0)
                    achieved[axis] += criterion["points"] if criterion["met"] else 0
    return {axis: _clip(achieved[axis] / possible[axis]) for axis in sorted(possible) if possible[axis]}


def clipped(scores: Sequence[Score]) -> Figures:
    """Mean over items, cut to [0, 1] (a HealthBench item can be below 0), and the same by theme and by axis."""
    found = _figures([score.as_float() for score in scores])
    return {
        "accuracy": _clip(found["accuracy"]),
        "stderr": found["stderr"],
        "by_theme": _by_theme(scores),
        "by_axis": _by_axis(scores),
    }


def clipped_bootstrap(scores: Sequence[Score]) -> Figures:
    """As `clipped`, with the standard deviation of 1000 resampled and cut means as standard error (HealthBench)."""
    found = clipped(scores)
    if len(scores) < 2:
        return found
    values = np.array([score.as_float() for score in scores])
    means = np.random.default_rng(_SEED).choice(values, size=(_RESAMPLES, len(values))).mean(axis=1)
    return {**found, "stderr": float(np.clip(means, 0.0, 1.0).std())}

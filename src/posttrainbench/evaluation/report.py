"""Scores as a person reads them."""

from __future__ import annotations

from typing import Any


def score_text(metrics: dict[str, Any], scorer: str) -> str:
    """`0.9150 +- 0.0198 on 200 items`, or `no score` where every item's is missing.

    Args:
        metrics: content of a metrics.json.
        scorer: `strict` or `paper`.
    """
    score = metrics[scorer]
    if score["accuracy"] is None:
        return "no score"
    bar = "" if score["stderr"] is None else f" +- {score['stderr']:.4f}"
    return f"{score['accuracy']:.4f}{bar} on {metrics['n']} items"

"""`metrics.json`: both scores with their standard errors and everything that makes the number unambiguous."""

from __future__ import annotations

import dataclasses
import importlib.metadata
import math
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from inspect_ai.log import EvalLog, EvalSample
from inspect_ai.scorer import Score, value_to_float

from posttrainbench import __version__
from posttrainbench.evaluation.decoding import Decoding
from posttrainbench.evaluation.request import EvaluationRequest
from posttrainbench.evaluation.scorers.aggregate import Aggregate
from posttrainbench.evaluation.templating import template_identity

SCORERS = ("strict", "paper")
_PACKAGES = ("inspect_ai", "inspect_evals", "transformers", "torch", "tokenizers", "vllm")


def versions() -> dict[str, str]:
    """Versions of this package and of those that decide a score; packages that are not installed are left out."""
    found = {"posttrainbench": __version__}
    for name in _PACKAGES:
        try:
            found[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            continue
    return found


def mean_and_stderr(values: Sequence[float]) -> dict[str, float | None]:
    """Mean and standard error (sample standard deviation, n-1, over the square root of n); stderr `None` for n < 2."""
    if not values:
        return {"accuracy": None, "stderr": None}
    mean = sum(values) / len(values)
    if len(values) < 2:
        return {"accuracy": mean, "stderr": None}
    variance = sum((value - mean) ** 2 for value in values) / (len(values) - 1)
    return {"accuracy": mean, "stderr": math.sqrt(variance / len(values))}


def score_value(score: Score) -> float | None:
    """A score as a number; `None` if it is missing (NaN, or marked so by its scorer)."""
    if (score.metadata or {}).get("missing"):
        return None
    value = value_to_float()(score.value)
    return None if math.isnan(value) else value


def missing_reason(score: Score | None) -> str | None:
    """Why a score is missing; `None` if it is not."""
    if score is None:
        return "not scored"
    if score_value(score) is not None:
        return None
    return str((score.metadata or {}).get("missing") or score.explanation or "no value")[:80]


def summarise_scorer(samples: Sequence[EvalSample], name: str) -> dict[str, Any]:
    """Mean over the items of one scorer; an item's score is the mean over its epochs.

    Epochs of an item are not independent, so the standard error is taken over items. Missing scores are counted and left
    out; an item of which every epoch is missing has no score.
    """
    items: dict[str, list[float]] = {}
    reasons: Counter[str] = Counter()
    for sample in samples:
        score = (sample.scores or {}).get(name)
        reason = missing_reason(score)
        if reason is not None:
            reasons[reason] += 1
            continue
        assert score is not None
        value = score_value(score)
        assert value is not None
        items.setdefault(str(sample.id), []).append(value)
    means = [sum(values) / len(values) for values in items.values()]
    found: dict[str, Any] = {**mean_and_stderr(means), "scored": len(means), "missing": sum(reasons.values())}
    if reasons:
        found["missing_reasons"] = dict(reasons.most_common(10))
    return found


def _per_item(scores: Sequence[Score]) -> Score:
    """One score for the epochs of an item: their mean, and all of their entries."""
    if len(scores) == 1:
        return scores[0]
    metadata = dict(scores[0].metadata or {})
    if "entries" in metadata:
        metadata["entries"] = [entry for score in scores for entry in (score.metadata or {})["entries"]]
    values = [value for score in scores if (value := score_value(score)) is not None]
    return Score(value=sum(values) / len(values), metadata=metadata)


def scores(log: EvalLog, aggregate: Aggregate | None = None) -> dict[str, Any]:
    """`strict` and `paper` of a scored log.

    Args:
        log: with samples.
        aggregate: by scorer, a function of the items' `Score`s (missing ones left out, epochs averaged) that returns
            `accuracy` and `stderr`, for benchmarks whose published figure is no plain mean.
    """
    samples = log.samples or []
    found: dict[str, Any] = {}
    for name in SCORERS:
        found[name] = summarise_scorer(samples, name)
        custom = (aggregate or {}).get(name)
        if custom is None:
            continue
        items: dict[str, list[Score]] = {}
        for sample in samples:
            score = (sample.scores or {}).get(name)
            if score is not None and score_value(score) is not None:
                items.setdefault(str(sample.id), []).append(score)
        if items:
            found[name] |= custom([_per_item(scores) for scores in items.values()])
    return found


def _as_json(value: Decoding) -> dict[str, Any]:
    """Its fields as they come back from a JSON file: lists, no tuples."""
    return {key: list(item) if isinstance(item, tuple) else item for key, item in dataclasses.asdict(value).items()}


def generation(log: EvalLog, *, request: EvaluationRequest, template: Path | None, api: Any) -> dict[str, Any]:
    """How the answers were made: engine, decoding, lengths, finish reasons."""
    samples: list[EvalSample] = log.samples or []
    used = getattr(api, "decoding", None)
    device = getattr(api, "device", None)
    return {
        "engine": request.engine,
        "device": str(device) if device is not None else None,
        "template": template_identity(template) if template is not None else None,
        "decoding": _as_json(used) if used is not None else None,
        "finish_reasons": dict(Counter(str(sample.output.stop_reason) for sample in samples)),
        "empty": sum(1 for sample in samples if is_empty(sample)),
        "truncated": sum(1 for sample in samples if sample.output.stop_reason in ("max_tokens", "model_length")),
        "generated_tokens": sum(sample.output.usage.output_tokens for sample in samples if sample.output.usage),
    }


def is_empty(sample: EvalSample) -> bool:
    """Whether an answer has neither text nor a tool call."""
    choices = sample.output.choices
    return not sample.output.completion.strip() and not (choices and choices[0].message.tool_calls)


def identity(log: EvalLog, *, request: EvaluationRequest, max_tokens: int, protocol_max_tokens: int) -> dict[str, Any]:
    """What was evaluated."""
    samples = log.samples or []
    return {
        "benchmark": request.benchmark,
        "base_model": request.base_model,
        "n": len({str(sample.id) for sample in samples}),
        "primary": "strict",
        "limit": request.limit,
        "epochs": request.epochs,
        "max_tokens": max_tokens,
        "protocol_max_tokens": protocol_max_tokens,
        "seed": request.seed,
        "data": (log.eval.metadata or {}).get("data"),
    }

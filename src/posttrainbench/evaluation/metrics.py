"""`metrics.json`: both scores with their standard errors and everything that makes the number unambiguous."""

from __future__ import annotations

import dataclasses
import importlib.metadata
import math
from collections import Counter
from pathlib import Path
from typing import Any

from inspect_ai.log import EvalLog, EvalSample
from inspect_ai.scorer import value_to_float

from posttrainbench import __version__
from posttrainbench.evaluation.request import EvaluationRequest
from posttrainbench.evaluation.templating import template_identity

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


def mean_and_stderr(values: list[float]) -> dict[str, float | None]:
    """Mean and standard error (sample standard deviation, n-1, over the square root of n); stderr `None` for n < 2."""
    if not values:
        return {"accuracy": None, "stderr": None}
    mean = sum(values) / len(values)
    if len(values) < 2:
        return {"accuracy": mean, "stderr": None}
    variance = sum((value - mean) ** 2 for value in values) / (len(values) - 1)
    return {"accuracy": mean, "stderr": math.sqrt(variance / len(values))}


def summarise(log: EvalLog, *, request: EvaluationRequest, template: Path, max_tokens: int, api: Any) -> dict[str, Any]:
    """The content of `metrics.json` from a finished Inspect log."""
    samples: list[EvalSample] = log.samples or []
    to_float = value_to_float()
    scores: dict[str, list[float]] = {"strict": [], "paper": []}
    for sample in samples:
        for name, score in (sample.scores or {}).items():
            if name in scores:
                scores[name].append(to_float(score.value))
    used = getattr(api, "decoding", None)
    device = getattr(api, "device", None)
    return {
        "benchmark": request.benchmark,
        "base_model": request.base_model,
        "n": len(samples),
        "strict": mean_and_stderr(scores["strict"]),
        "paper": mean_and_stderr(scores["paper"]),
        "primary": "strict",
        "limit": request.limit,
        "max_tokens": max_tokens,
        "seed": request.seed,
        "engine": request.engine,
        "device": str(device) if device is not None else None,
        "template": template_identity(template),
        "decoding": dataclasses.asdict(used) if used is not None else None,
        "finish_reasons": dict(Counter(str(sample.output.stop_reason) for sample in samples)),
        "empty": sum(1 for sample in samples if not sample.output.completion.strip()),
        "truncated": sum(1 for sample in samples if sample.output.stop_reason in ("max_tokens", "model_length")),
        "generated_tokens": sum(sample.output.usage.output_tokens for sample in samples if sample.output.usage),
        "versions": versions(),
    }

"""What runs a model: each engine is an Inspect model provider, built by `create_model`."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from posttrainbench.errors import ConfigurationError
from posttrainbench.evaluation.request import EvaluationRequest

if TYPE_CHECKING:
    from inspect_ai.model import Model


def create_model(request: EvaluationRequest, *, template: Path, max_tokens: int) -> Model:
    """Build the Inspect model for a request.

    Raises:
        SubmissionError: the model cannot be loaded.
        ConfigurationError: no such engine in this installation.
    """
    if request.engine == "transformers":
        from posttrainbench.evaluation.engines.transformers import create

        return create(request, template=template, max_tokens=max_tokens)
    raise ConfigurationError(f"engine {request.engine!r} is not available; use transformers")

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
        EngineError: the engine failed while it loaded the model.
        ConfigurationError: no such engine in this installation, no such model directory.
    """
    # each is imported when asked for: the transformers engine takes seconds to import
    if request.engine == "transformers":
        from posttrainbench.evaluation.engines import transformers

        return transformers.create(request, template=template, max_tokens=max_tokens)
    if request.engine == "vllm":
        from posttrainbench.evaluation.engines import vllm

        return vllm.create(request, template=template, max_tokens=max_tokens)
    if request.engine == "replay":
        from posttrainbench.evaluation.engines import replay

        return replay.create(request)
    raise ConfigurationError(f"unknown engine {request.engine!r}; known: transformers, vllm, replay")

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
        from posttrainbench.evaluation.engines.transformers import create as create_transformers

        return create_transformers(request, template=template, max_tokens=max_tokens)
    if request.engine == "vllm":
        from posttrainbench.evaluation.engines.vllm import create as create_vllm

        return create_vllm(request, template=template, max_tokens=max_tokens)
    if request.engine == "replay":
        from posttrainbench.evaluation.engines.replay import create as create_replay

        return create_replay(request)
    raise ConfigurationError(f"unknown engine {request.engine!r}; known: transformers, vllm, replay")

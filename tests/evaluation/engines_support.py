"""Small requests and model variants for the engine tests."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

from safetensors.numpy import load_file, save_file

from posttrainbench.evaluation.request import EvaluationRequest


def make_request(model: Path | None, output: Path, **changes: Any) -> EvaluationRequest:
    """Six short answers to smoke-math."""
    fields: dict[str, Any] = {
        "benchmark": "smoke-math",
        "model": None if model is None else str(model),
        "base_model": "ptb-tiny-base",
        "template": "qwen3",
        "output": str(output),
        "limit": 6,
        "max_tokens": 12,
        "device": "cpu",
    }
    return EvaluationRequest(**{**fields, **changes})


def variant(model: Path, target: Path, *, sliding: bool = False, generation: dict[str, Any] | None = None) -> Path:
    """A copy of a random model that prefers some tokens, for a nearly uniform distribution would hide mistakes.

    Args:
        model: directory to copy.
        target: where to.
        sliding: let one of the layers attend to a window of 16 tokens only.
        generation: content of generation_config.json.
    """
    shutil.copytree(model, target)
    tensors = {
        name: value * (12 if value.ndim == 2 else 1) for name, value in load_file(target / "model.safetensors").items()
    }
    save_file(tensors, target / "model.safetensors", metadata={"format": "pt"})
    if sliding:
        config = json.loads((target / "config.json").read_text())
        config |= {
            "use_sliding_window": True,
            "sliding_window": 16,
            "layer_types": ["full_attention", "sliding_attention"],
        }
        (target / "config.json").write_text(json.dumps(config))
    if generation is not None:
        (target / "generation_config.json").write_text(json.dumps(generation))
    return target

"""What to evaluate, as data: the one input of the evaluation runner, written by the harness as a JSON file."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from posttrainbench.files import read_json, write_json

EngineName = Literal["transformers", "vllm", "replay"]


@dataclass(frozen=True, kw_only=True)
class EvaluationRequest:
    """One evaluation of one model on one benchmark.

    Attributes:
        benchmark: catalogue id.
        model: directory with config, tokenizer, weights and generation_config.
        base_model: name of the declared base model; it alone decides the template.
        template: name of the chat template (a file in `evaluation/templates`, without suffix).
        output: directory for `metrics.json`, `outcome.json` and the Inspect log.
        engine: what runs the model.
        limit: score only the first N items; `None` for all.
        max_tokens: generated tokens per item; `None` takes the benchmark's protocol.
        batch_size: sequences per forward pass of the transformers engine; `None` lets the engine choose.
        seed: base seed; every sample derives its own from it.
        device: torch device, `auto` takes a GPU where there is one.
        templates_dir: other directory to read the template from (the agent's copy); the final evaluation never sets it.
        score: `False` generates only; the log is scored later where the scorer needs more than the sandbox has.
        data_dir: local directory with the benchmark's original data files, instead of the hub.
        completions: stored outputs for the replay engine (JSONL or an `.eval` log).
    """

    benchmark: str
    model: str
    base_model: str
    template: str
    output: str
    engine: EngineName = "transformers"
    limit: int | None = None
    max_tokens: int | None = None
    batch_size: int | None = None
    seed: int = 0
    device: str = "auto"
    templates_dir: str | None = None
    score: bool = True
    data_dir: str | None = None
    completions: str | None = None

    def save(self, path: Path) -> None:
        """Write the request as JSON, atomically."""
        write_json(path, dataclasses.asdict(self))

    @classmethod
    def load(cls, path: Path) -> EvaluationRequest:
        """Read a request that `save` wrote."""
        value: dict[str, Any] = read_json(path)
        return cls(**value)

"""What to evaluate, as data: the one input of the evaluation runner, written by the harness as a JSON file."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from posttrainbench.errors import ConfigurationError
from posttrainbench.files import read_json, write_json

EngineName = Literal["transformers", "vllm", "replay"]

DEFAULT_GRADER = "openai/gpt-5-mini"
"""The published evaluation's grader (reference.md part 1.6 and 1.7), for comparability."""


@dataclass(frozen=True, kw_only=True)
class EvaluationRequest:
    """One evaluation of one model on one benchmark.

    Attributes:
        benchmark: catalogue id.
        model: directory with config, tokenizer, weights and generation_config; `None` for the replay engine only.
        base_model: name of the declared base model; it alone decides the template.
        template: name of the chat template (a file in `evaluation/templates`, without suffix).
        output: directory for `metrics.json`, `outcome.json` and the Inspect log.
        engine: what runs the model: `transformers` (any machine), `vllm` (one server process, GPU), `replay` (no model:
            scores `completions` again).
        limit: score only the first N items; `None` for all.
        subset: puts the items into another order, the same for the same word, so that a limit takes others than the first.
        max_tokens: generated tokens per item; `None` takes the benchmark's protocol.
        batch_size: sequences that the engine runs at once (rows of the transformers engine's batch, concurrent requests
            of vllm's); `None` lets the engine choose.
        memory_share: fraction of the GPU's memory that vllm takes, 0 to 1; `None` for its default, 0.9.
        seed: base seed; every sample derives its own from it, its item id, its epoch and its prompt.
        epochs: answers per item, each with another seed; scores are means over them.
        device: torch device of the transformers engine, `auto` takes a GPU where there is one.
        templates_dir: other directory to read the template from (the agent's copy); the final evaluation never sets it.
        score: `False` generates only and leaves the log, which `runner.score_log` scores later: LLM grading needs a
            network and program execution a sandbox of its own, which the model's sandbox has not
            (`runner.scoring_place`).
        grader: Inspect model that grades the LLM-graded benchmarks, such as `openai/gpt-5-mini`.
        grading_cache: JSONL file of paid gradings, read before asking and appended after; `None` for
            `grading.jsonl` in `output`.
        data_dir: local directory with the benchmark's original data files, instead of the hub.
        completions: stored outputs for the replay engine: JSON lines `{"id", "completion"}`, optionally with `epoch` and
            `tool_calls`, or an `.eval` log.
        decoding: sampling parameters set by the harness in the place of the model's generation_config (few-shot
            baselines); keys of `decoding.BOUNDS`.
        system_message: text put before every conversation as a system message (few-shot baselines).
        start_limit_s: seconds that vllm's server may take until it answers.
    """

    benchmark: str
    model: str | None = None
    base_model: str
    template: str
    output: str
    engine: EngineName = "transformers"
    limit: int | None = None
    subset: str | None = None
    max_tokens: int | None = None
    batch_size: int | None = None
    memory_share: float | None = None
    seed: int = 0
    epochs: int = 1
    device: str = "auto"
    templates_dir: str | None = None
    score: bool = True
    grader: str = DEFAULT_GRADER
    grading_cache: str | None = None
    data_dir: str | None = None
    completions: str | None = None
    decoding: dict[str, float] | None = None
    system_message: str | None = None
    start_limit_s: float = 900.0

    def model_directory(self) -> Path:
        """The model directory.

        Raises:
            ConfigurationError: there is none in the request, or not on disk.
        """
        if self.model is None:
            raise ConfigurationError(f"engine {self.engine!r} needs a model directory")
        path = Path(self.model)
        if not path.is_dir():
            raise ConfigurationError(f"there is no model directory {self.model!r}")
        return path

    def save(self, path: Path) -> None:
        """Write the request as JSON, atomically."""
        write_json(path, dataclasses.asdict(self))

    @classmethod
    def load(cls, path: Path) -> EvaluationRequest:
        """Read a request that `save` wrote."""
        value: dict[str, Any] = read_json(path)
        return cls(**value)

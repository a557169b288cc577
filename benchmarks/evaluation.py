"""Tokens per second of an evaluation: our path against the engine driven raw, and against few connections.

    python benchmarks/evaluation.py [--model DIR | --random HIDDEN] [--items 200] [--max-tokens 256] [--out FILE.json]

Without --model it takes the built-in tiny model, or a random one of the same kind where that is not built. Rows:

- `raw`: the decoding loop on the prompts' token ids, without Inspect, templates, scorers or logs;
- `ptb evaluate`: `runner.run`, from the first sample to the written log (loading the model is in neither row);
- `N connections`: the same with at most N requests at once, which is how the reference evaluates (reference.md part 1.0);
- `sequential`: a plain loop of one request after the other (its Arena-Hard and HealthBench);
- `generate`: transformers' own `generate` on sorted batches, which decodes every row until the last one ends.

Figures of a busy machine mean little: the ratios are taken between medians of interleaved repetitions.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import logging
import os
import random
import statistics
import sys
import tempfile
import time
from collections import deque
from collections.abc import Callable
from pathlib import Path
from typing import Any

os.environ.setdefault("HF_HUB_OFFLINE", "1")

import torch

from posttrainbench import catalog
from posttrainbench.evaluation import runner
from posttrainbench.evaluation.engines import transformers as engine
from posttrainbench.evaluation.engines.base import Answer, Job
from posttrainbench.evaluation.request import EvaluationRequest


def random_model(directory: Path, hidden: int | None = None, layers: int = 8) -> Path:
    """A random model: of the test's shape, or of `hidden` units in `layers` layers."""
    sys.path.insert(0, str(Path(__file__).parents[1]))
    from tests.models import make_model

    path = make_model(directory / f"random-{hidden or 'tiny'}", seed=0)
    if hidden is not None:
        from transformers import Qwen3Config, Qwen3ForCausalLM

        config = Qwen3Config(
            vocab_size=320,
            hidden_size=hidden,
            intermediate_size=3 * hidden,
            num_hidden_layers=layers,
            num_attention_heads=hidden // 64,
            num_key_value_heads=max(1, hidden // 128),
            head_dim=64,
            max_position_embeddings=4096,
            tie_word_embeddings=True,
            eos_token_id=0,
            pad_token_id=0,
        )
        Qwen3ForCausalLM(config).to(torch.bfloat16).save_pretrained(path)
    return path


class Bench:
    """One model, one set of prompts.

    Args:
        model: model directory.
        items: smoke-math items.
        max_tokens: generated tokens at most.
        batch_size: rows.
    """

    def __init__(self, model: Path, *, items: int, max_tokens: int, batch_size: int, scratch: Path) -> None:
        self.scratch = scratch
        self.number = 0
        self.request = EvaluationRequest(
            benchmark="smoke-math",
            model=str(model),
            base_model="ptb-tiny-base",
            template="qwen3",
            output=str(scratch),
            limit=items,
            max_tokens=max_tokens,
            batch_size=batch_size,
        )
        # the evaluation itself says what it asks of its engine
        self.jobs: list[Job] = []
        real = engine.TransformersAPI.complete

        async def complete(api: engine.TransformersAPI, job: Job) -> Answer:
            self.jobs.append(job)
            return await real(api, job)

        engine.TransformersAPI.complete = complete  # type: ignore[method-assign]
        self.ours()
        engine.TransformersAPI.complete = real  # type: ignore[method-assign]
        self.model = engine.load_model(model, engine.find_device("auto"))

    def ours(self, connections: int | None = None, items: int | None = None) -> tuple[int, float]:
        """Tokens and seconds of one evaluation."""
        self.number += 1
        changes: dict[str, Any] = {"output": str(self.scratch / str(self.number)), "limit": items or self.request.limit}
        request = EvaluationRequest(**{**self.request.__dict__, **changes})
        with _few_connections(connections) if connections else contextlib.nullcontext():
            metrics = runner.run(request)
        return metrics["generated_tokens"], metrics["attempts"][-1]["seconds"]

    def raw(self) -> tuple[int, float]:
        """The same work by the decoding loop alone."""
        rows: Any = [engine._Row(job, None, random.Random(job.sampling.seed)) for job in self.jobs]  # type: ignore[arg-type]
        rows.sort(key=lambda row: -len(row.job.tokens))
        answers: list[Answer] = []
        began = time.monotonic()
        assert self.request.batch_size is not None
        decoder = engine.Decoder(self.model, self.request.batch_size)
        decoder.run(deque(rows), lambda _, answer: answers.append(answer))
        return sum(len(answer.tokens) for answer in answers), time.monotonic() - began

    def sequential(self, items: int) -> tuple[int, float]:
        """One request after the other."""
        answers: list[Answer] = []
        began = time.monotonic()
        for job in self.jobs[:items]:
            row: Any = engine._Row(job, None, random.Random(job.sampling.seed))  # type: ignore[arg-type]
            engine.Decoder(self.model, 1).run(deque([row]), lambda _, answer: answers.append(answer))
        return sum(len(answer.tokens) for answer in answers), time.monotonic() - began

    def generate(self) -> tuple[int, float]:
        """transformers' own loop; only the tokens of answers count, not those decoded after their end."""
        assert self.request.batch_size is not None
        jobs = sorted(self.jobs, key=lambda job: len(job.tokens))
        tokens, began = 0, time.monotonic()
        for start in range(0, len(jobs), self.request.batch_size):
            batch = jobs[start : start + self.request.batch_size]
            width = max(len(job.tokens) for job in batch)
            ids = torch.tensor([[0] * (width - len(job.tokens)) + job.tokens for job in batch])
            mask = torch.tensor([[0] * (width - len(job.tokens)) + [1] * len(job.tokens) for job in batch])
            sampling = batch[0].sampling
            sampled: dict[str, Any] = {}
            if sampling.temperature > 0:
                sampled = {"do_sample": True, "temperature": sampling.temperature, "top_p": sampling.top_p}
                sampled["top_k"] = sampling.top_k
            with torch.inference_mode():
                output = self.model.generate(
                    ids.to(self.model.device),
                    attention_mask=mask.to(self.model.device),
                    max_new_tokens=sampling.max_tokens,
                    eos_token_id=list(sampling.stop_token_ids) or None,
                    pad_token_id=0,
                    **(sampled or {"do_sample": False}),
                )
            for row in output[:, width:].tolist():
                ends = [place for place, token in enumerate(row) if token in sampling.stop_token_ids]
                tokens += ends[0] if ends else len(row)
        return tokens, time.monotonic() - began


@contextlib.contextmanager
def _few_connections(count: int) -> Any:
    """Let Inspect ask for `count` answers at once. No waiting for more to come, which would only slow this down."""
    api: Any = engine.TransformersAPI
    before, quiet = api.max_connections, engine._QUIET_S
    api.max_connections, engine._QUIET_S = (lambda _: count), 0.0
    try:
        yield
    finally:
        api.max_connections, engine._QUIET_S = before, quiet


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", type=Path)
    parser.add_argument("--random", type=int, metavar="HIDDEN", help="a random model of so many hidden units instead")
    parser.add_argument("--layers", type=int, default=8, help="layers of the random model")
    parser.add_argument("--items", type=int, default=200)
    parser.add_argument("--slow-items", type=int, default=8, help="items for the rows with few connections")
    parser.add_argument("--max-tokens", type=int, default=256)
    parser.add_argument("--batch-size", type=int, default=32)
    parser.add_argument("--repeat", type=int, default=3)
    parser.add_argument("--out", type=Path, help="write the figures there as JSON")
    arguments = parser.parse_args()
    logging.getLogger("transformers").setLevel(logging.ERROR)
    with tempfile.TemporaryDirectory() as scratch:
        model = arguments.model or catalog.builtin_directory("builtin:ptb-tiny-base")
        if arguments.random or not (model / "config.json").is_file():
            model = random_model(Path(scratch), arguments.random, arguments.layers)
        bench = Bench(
            model,
            items=arguments.items,
            max_tokens=arguments.max_tokens,
            batch_size=arguments.batch_size,
            scratch=Path(scratch),
        )
        slow = min(arguments.slow_items, arguments.items)
        rows: dict[str, Callable[[], tuple[int, float]]] = {
            "raw": bench.raw,
            "ptb evaluate": bench.ours,
            "6 connections": lambda: bench.ours(6, min(6 * slow, arguments.items)),
            "2 connections": lambda: bench.ours(2, min(2 * slow, arguments.items)),
            "1 connection": lambda: bench.ours(1, slow),
            "sequential": lambda: bench.sequential(slow),
            "generate": bench.generate,
        }
        rates: dict[str, list[float]] = {name: [] for name in rows}
        extra: list[float] = []
        for _ in range(arguments.repeat):
            for name, measure in rows.items():
                with engine._fitting_threads(bench.model, bench.model.device):
                    tokens, seconds = measure()
                rates[name].append(tokens / seconds)
                if name == "raw":
                    extra.append(-seconds)
                if name == "ptb evaluate":
                    extra[-1] += seconds
        device = str(bench.model.device)
    medians = {name: statistics.median(values) for name, values in rates.items()}
    ours = medians["ptb evaluate"]
    prompts = [len(job.tokens) for job in bench.jobs]
    print(
        f"{model.name} on {device}, {arguments.items} prompts of {min(prompts)} to "
        f"{max(prompts)} tokens, at most {arguments.max_tokens} generated, batch {arguments.batch_size}"
    )
    print(f"{'':16}{'tokens/s':>10}{'spread':>18}{'ptb evaluate is':>18}")
    for name, median in medians.items():
        spread = f"{min(rates[name]):.0f} to {max(rates[name]):.0f}"
        print(f"{name:16}{median:10.0f}{spread:>18}{ours / median:17.2f}x")
    cost = 1000 * statistics.median(extra) / arguments.items
    print(f"ptb evaluate takes {cost:.1f} ms per item more than raw")
    if arguments.out:
        found = {
            "device": device,
            "tokens_per_s": rates,
            "ratio": {name: ours / rate for name, rate in medians.items()},
        }
        arguments.out.write_text(json.dumps(found, indent=2) + "\n")


if __name__ == "__main__":
    main()

"""The transformers engine: any machine, CPU or GPU; a running batch whose finished rows are refilled."""

from __future__ import annotations

import asyncio
import gc
import random
from collections import deque
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from inspect_ai.model import GenerateConfig, Model, ModelAPI, get_model, modelapi
from torch import Tensor
from transformers import AutoModelForCausalLM
from transformers.cache_utils import DynamicCache

from posttrainbench.errors import SubmissionError
from posttrainbench.evaluation.decoding import Sampling
from posttrainbench.evaluation.engines.base import (
    Answer,
    Engine,
    Job,
    context_length,
    load_tokenizer,
    vocabulary_size,
)
from posttrainbench.evaluation.engines.cache import RowCache
from posttrainbench.evaluation.engines.sampling import choose
from posttrainbench.evaluation.request import EvaluationRequest
from posttrainbench.evaluation.retry import EngineError, Failure, Parameters

# All samples of a task ask within this time of each other; waiting for quiet makes the batches, and so the
# floating-point results, the same in every run.
_QUIET_S = 0.2
_CPU_BATCH = 32
_GPU_BATCH = 64
# Prompt tokens of one prefill pass; bounds the activations of long prompts (ten shots of GSM8K are 2000 tokens).
_CPU_PREFILL = 8_192
_GPU_PREFILL = 32_768
_ONE_THREAD = 20_000_000  # parameters


def default_batch_size(device: torch.device) -> int:
    """Sequences at once where the request does not say."""
    return _GPU_BATCH if device.type == "cuda" else _CPU_BATCH


def find_device(name: str) -> torch.device:
    """The torch device of a request; `auto` is a GPU where there is one."""
    if name != "auto":
        return torch.device(name)
    return torch.device("cuda" if torch.cuda.is_available() else "cpu")


def _is_out_of_memory(error: BaseException) -> bool:
    if isinstance(error, torch.OutOfMemoryError | MemoryError):
        return True
    # the CPU allocator and some CUDA libraries raise a plain RuntimeError
    text = str(error).lower()
    signs = ("out of memory", "can't allocate memory", "cuda_error_out_of_memory", "alloc_failed")
    return isinstance(error, RuntimeError) and any(sign in text for sign in signs)


def load_model(path: Path, device: torch.device) -> Any:
    """The model of a directory, in evaluation mode.

    Raises:
        SubmissionError: it does not load.
        EngineError: not enough memory for the weights.
    """
    if (path / "adapter_config.json").is_file() and not any(path.glob("model*.safetensors")):
        raise SubmissionError(
            "the model directory holds a LoRA adapter without its base; merge it: "
            "PeftModel.from_pretrained(base, adapter).merge_and_unload().save_pretrained(directory)"
        )
    try:
        model: Any = AutoModelForCausalLM.from_pretrained(
            path,
            trust_remote_code=False,
            local_files_only=True,
            use_safetensors=True,
            dtype=torch.bfloat16 if device.type == "cuda" else torch.float32,
        )
        model.to(device)
    except Exception as error:  # whatever a broken model directory makes the loaders raise is the submission's fault
        if _is_out_of_memory(error):
            raise EngineError(Failure.OUT_OF_MEMORY, f"no memory for the weights: {str(error)[:300]}") from error
        raise SubmissionError(f"the model does not load: {type(error).__name__}: {str(error)[:300]}") from error
    return model.eval()


@dataclass
class _Row:
    """A job in a row of the batch."""

    job: Job
    done: asyncio.Future[Answer]
    random: random.Random
    tokens: list[int] = field(default_factory=list)

    @property
    def length(self) -> int:
        """Tokens in the cache: the prompt and all but the last generated one."""
        return len(self.job.tokens) + max(0, len(self.tokens) - 1)


Finished = Callable[[_Row, Answer], object]
"""Told of every job that ends."""


class Decoder:
    """Decodes jobs in one running batch.

    Args:
        model: a transformers causal language model whose attention layers all keep full keys and values.
        batch_size: rows.
    """

    def __init__(self, model: Any, batch_size: int) -> None:
        self.model = model
        self.batch_size = batch_size
        self.device: torch.device = next(model.parameters()).device
        self.prefill_tokens = _GPU_PREFILL if self.device.type == "cuda" else _CPU_PREFILL
        self.rows: list[_Row | None] = []
        self.cache: RowCache | None = None
        self.seen: Tensor | None = None
        self.last: Tensor
        self.positions: Tensor

    def run(self, pending: deque[_Row], finished: Finished) -> None:
        """Work until `pending` and the batch are empty; calls `finished(row, answer)` as each job ends.

        `pending` may grow while this runs.
        """
        with torch.inference_mode():
            while pending or any(self.rows):
                if not any(self.rows):
                    self.rows, self.cache, self.seen = [], None, None
                free = self._free(pending)
                if free:
                    self._admit([pending.popleft() for _ in free], free, finished)
                self._shrink(pending)
                if any(self.rows):
                    self._step(finished)

    def _free(self, pending: deque[_Row]) -> list[int]:
        """Rows to fill now. A prefill for every single row that ends would cost more than a few idle rows."""
        if not pending:
            return []
        if self.cache is None:
            self.rows = [None] * min(self.batch_size, len(pending))
        free = [place for place, row in enumerate(self.rows) if row is None]
        enough = max(1, min(len(self.rows) // 8, len(pending)))
        return free[: len(pending)] if len(free) >= enough else []

    def _admit(self, new: list[_Row], places: list[int], finished: Finished) -> None:
        order = sorted(zip(new, places, strict=True), key=lambda pair: len(pair[0].job.tokens))
        while order:
            width, count = len(order[0][0].job.tokens), 0
            # the longest prompts last: each pass takes as many as fit when all are padded to its longest
            while count < len(order) and (count + 1) * len(order[count][0].job.tokens) <= self.prefill_tokens:
                width, count = len(order[count][0].job.tokens), count + 1
            count = max(1, count)
            self._prefill([row for row, _ in order[:count]], [place for _, place in order[:count]], width, finished)
            del order[:count]

    def _prefill(self, rows: list[_Row], places: list[int], width: int, finished: Finished) -> None:
        pads = [width - len(row.job.tokens) for row in rows]
        # the padding's token does not matter: it is masked, and not counted by the repetition penalty
        ids = torch.tensor([[0] * pad + row.job.tokens for pad, row in zip(pads, rows, strict=True)])
        mask = torch.tensor([[0] * pad + [1] * (width - pad) for pad in pads], device=self.device)
        prefilled = DynamicCache()
        output = self.model(
            input_ids=ids.to(self.device),
            attention_mask=mask,
            position_ids=(mask.cumsum(-1) - 1).clamp_min(0),
            past_key_values=prefilled,
            use_cache=True,
            logits_to_keep=1,
        )
        if self.cache is None:
            self._start(prefilled, output.logits.shape[-1], rows[0].job.sampling)
        assert self.cache is not None
        self.cache.admit(prefilled, mask, places)
        index = torch.tensor(places, device=self.device)
        if self.seen is not None:
            self.seen[index] = False
            for place, row in zip(places, rows, strict=True):
                self.seen[place, torch.tensor(row.job.tokens, device=self.device)] = True
        chosen = self._choose(output.logits[:, -1], rows, None if self.seen is None else self.seen[index])
        self.last[index] = chosen
        self.positions[index] = torch.tensor([len(row.job.tokens) for row in rows], device=self.device)
        for place, row in zip(places, rows, strict=True):
            self.rows[place] = row
        self._take(places, chosen, finished)

    def _start(self, prefilled: DynamicCache, vocabulary: int, sampling: Sampling) -> None:
        count = len(self.rows)
        self.cache = RowCache(len(prefilled.layers), count, self.device)
        self.last = torch.zeros(count, dtype=torch.long, device=self.device)
        self.positions = torch.zeros(count, dtype=torch.long, device=self.device)
        if sampling.repetition_penalty != 1.0:
            self.seen = torch.zeros((count, vocabulary), dtype=torch.bool, device=self.device)

    def _choose(self, logits: Tensor, rows: list[_Row | None] | list[_Row], seen: Tensor | None) -> Tensor:
        # an idle row draws a number too, of no consequence
        draws = [row.random.random() if row is not None else 0.0 for row in rows]
        uniforms = torch.tensor(draws, dtype=torch.float64, device=logits.device)
        sampling = next(row for row in rows if row is not None).job.sampling
        return choose(logits, sampling, uniforms, seen=seen)

    def _step(self, finished: Finished) -> None:
        assert self.cache is not None
        self.cache.make_room(max(row.length for row in self.rows if row is not None))
        output = self.model(
            input_ids=self.last.unsqueeze(-1),
            attention_mask=self.cache.step(),
            position_ids=self.positions.unsqueeze(-1),
            past_key_values=self.cache,
            use_cache=True,
            logits_to_keep=1,
        )
        if self.seen is not None:
            self.seen.scatter_(1, self.last.unsqueeze(-1), True)
        self.last = self._choose(output.logits[:, -1], self.rows, self.seen)
        self.positions += 1
        self._take(list(range(len(self.rows))), self.last, finished)

    def _take(self, places: list[int], chosen: Tensor, finished: Finished) -> None:
        """Add the chosen tokens to their rows and let go of the rows that end."""
        for place, token in zip(places, chosen.tolist(), strict=True):
            row = self.rows[place]
            if row is None:
                continue
            if token in row.job.sampling.stop_token_ids:
                finished(row, Answer(row.tokens, True))
                self.rows[place] = None
                continue
            row.tokens.append(token)
            if len(row.tokens) >= row.job.sampling.max_tokens:
                finished(row, Answer(row.tokens, False))
                self.rows[place] = None

    def _shrink(self, pending: deque[_Row]) -> None:
        """With nothing left to refill from, drop idle rows; a quarter of them at once, for each drop is a copy."""
        active = [place for place, row in enumerate(self.rows) if row is not None]
        if pending or not active or len(active) > 0.75 * len(self.rows) or self.cache is None:
            return
        self.cache.keep(active, max(row.length for row in self.rows if row is not None))
        index = torch.tensor(active, device=self.device)
        self.last, self.positions = self.last[index], self.positions[index]
        self.seen = None if self.seen is None else self.seen[index]
        self.rows = [self.rows[place] for place in active]


@contextmanager
def _fitting_threads(model: Any, device: torch.device) -> Iterator[None]:
    """One CPU thread for a tiny model.

    Threads that share a layer of microseconds spend their time waiting for each other: 0.1 M parameters on 2 busy cores
    decoded 11 700 tokens/s with one thread and 800 with two (benchmarks/evaluation.py).
    """
    before = torch.get_num_threads()
    small = device.type == "cpu" and sum(weight.numel() for weight in model.parameters()) < _ONE_THREAD
    torch.set_num_threads(1 if small else before)
    try:
        yield
    finally:
        torch.set_num_threads(before)


class TransformersAPI(Engine):
    """An Inspect model provider that batches what its concurrent samples ask.

    Args:
        request: what is evaluated.
        template: chat template file.
        max_tokens: protocol limit of generated tokens per answer.

    Raises:
        SubmissionError: the model directory does not load.
    """

    def __init__(
        self,
        model_name: str,
        base_url: str | None = None,
        api_key: str | None = None,
        config: GenerateConfig = GenerateConfig(),  # noqa: B008  # the signature that Inspect prescribes
        *,
        request: EvaluationRequest,
        template: Path,
        max_tokens: int,
    ) -> None:
        device = find_device(request.device)
        directory = request.model_directory()
        tokenizer = load_tokenizer(directory)
        self.model = load_model(directory, device)
        # rows of the embedding, where they are more than the config says: an eos id may point there
        vocabulary = max(vocabulary_size(self.model.config), int(self.model.get_input_embeddings().weight.shape[0]))
        super().__init__(
            model_name,
            request=request,
            template=template,
            max_tokens=max_tokens,
            tokenizer=tokenizer,
            vocab_size=vocabulary,
            context=context_length(self.model.config),
            config=config,
        )
        self.device: torch.device = device
        self.batch_size = request.batch_size or default_batch_size(device)
        self._pending: deque[_Row] = deque()
        self._arrived: list[_Row] = []
        self._worker: asyncio.Task[None] | None = None
        self._arrivals = 0
        self._running = False

    @property
    def parameters(self) -> Parameters:
        """Batch size and token limit; memory has no setting here."""
        return Parameters(batch_size=self.batch_size, memory_share=None, max_tokens=self.limit)

    def apply(self, parameters: Parameters) -> None:
        """Take over new limits and free what the failed attempt left."""
        self.batch_size, self.limit = parameters.batch_size, parameters.max_tokens
        self._pending.clear()
        self._arrived.clear()
        self._worker = None
        gc.collect()
        if self.device.type == "cuda":
            torch.cuda.empty_cache()

    def close(self) -> None:
        """Let go of the weights."""
        self.model = None
        if self.device.type == "cuda":
            gc.collect()
            torch.cuda.empty_cache()

    async def complete(self, job: Job) -> Answer:
        """Queue the job; returns when its row ends."""
        loop = asyncio.get_running_loop()
        row = _Row(job, loop.create_future(), random.Random(job.sampling.seed))
        # while the batch runs, a late comer joins it; before that, all are gathered and sorted
        (self._pending if self._running else self._arrived).append(row)
        self._arrivals += 1
        if self._worker is None or self._worker.done():
            self._worker = asyncio.create_task(self._work())
        return await row.done

    def _decode(self, decoder: Decoder, finished: Finished) -> None:
        with _fitting_threads(self.model, self.device):
            decoder.run(self._pending, finished)

    async def _work(self) -> None:
        loop = asyncio.get_running_loop()

        def resolve(row: _Row, answer: Answer) -> None:
            if not row.done.done():
                row.done.set_result(answer)

        while self._arrived or self._pending:
            seen = -1
            while seen != self._arrivals:
                seen = self._arrivals
                await asyncio.sleep(_QUIET_S)
            # longest prompts first: they set the width of the batch, and the short ones fill the gaps behind them
            rows = sorted(self._arrived, key=lambda row: (-len(row.job.tokens), row.job.tokens, row.job.sampling.seed))
            self._arrived = []
            pending = self._pending
            pending.extend(rows)
            decoder = Decoder(self.model, self.batch_size)
            self._running = True
            try:
                await asyncio.to_thread(
                    self._decode, decoder, lambda row, answer: loop.call_soon_threadsafe(resolve, row, answer)
                )
            except Exception as error:
                failure: Exception = error
                if _is_out_of_memory(error):
                    failure = EngineError(Failure.OUT_OF_MEMORY, f"out of memory while decoding: {str(error)[:300]}")
                unfinished = [*rows, *pending, *(row for row in decoder.rows if row is not None)]
                pending.clear()
                for row in unfinished:
                    if not row.done.done():
                        row.done.set_exception(failure)
                return
            finally:
                self._running = False


@modelapi(name="ptb-transformers")
def _provider() -> type[ModelAPI]:
    return TransformersAPI


def create(request: EvaluationRequest, *, template: Path, max_tokens: int) -> Model:
    """An Inspect model around `TransformersAPI`."""
    return get_model(
        f"ptb-transformers/{request.base_model}",
        config=GenerateConfig(max_tokens=max_tokens),
        memoize=False,
        request=request,
        template=template,
        max_tokens=max_tokens,
    )

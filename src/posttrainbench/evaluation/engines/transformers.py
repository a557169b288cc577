"""The transformers engine: any machine, CPU or GPU; requests of concurrent samples are run as sorted batches."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from inspect_ai.model import (
    ChatCompletionChoice,
    ChatMessage,
    ChatMessageAssistant,
    GenerateConfig,
    Model,
    ModelAPI,
    ModelOutput,
    ModelUsage,
    get_model,
    modelapi,
)
from inspect_ai.tool import ToolChoice, ToolInfo
from transformers import (
    AutoModelForCausalLM,
    AutoTokenizer,
    LogitsProcessorList,
    MinPLogitsWarper,
    RepetitionPenaltyLogitsProcessor,
    TemperatureLogitsWarper,
    TopKLogitsWarper,
    TopPLogitsWarper,
)

from posttrainbench.errors import SubmissionError
from posttrainbench.evaluation import decoding
from posttrainbench.evaluation.engines.sampling import SeededSampling, derive_seed
from posttrainbench.evaluation.request import EvaluationRequest
from posttrainbench.evaluation.templating import render

# All samples of a task ask within this time of each other; waiting for quiet makes the batches, and so the
# floating-point results, the same in every run.
_QUIET_S = 0.2
_CPU_BATCH = 32
_GPU_BATCH = 64


@dataclass
class _Job:
    prompt: str
    tokens: list[int]
    max_tokens: int
    seed: int
    done: asyncio.Future[tuple[list[int], bool]]


def _device(name: str) -> torch.device:
    if name != "auto":
        return torch.device(name)
    return torch.device("cuda" if torch.cuda.is_available() else "cpu")


def _load(path: Path, device: torch.device) -> tuple[Any, Any]:
    try:
        tokenizer = AutoTokenizer.from_pretrained(path, trust_remote_code=False, local_files_only=True)
        model: Any = AutoModelForCausalLM.from_pretrained(
            path,
            trust_remote_code=False,
            local_files_only=True,
            use_safetensors=True,
            dtype=torch.bfloat16 if device.type == "cuda" else torch.float32,
        )
    except torch.OutOfMemoryError:
        raise
    except Exception as error:  # whatever a broken model directory makes the loaders raise is the submission's fault
        raise SubmissionError(f"the model does not load: {type(error).__name__}: {str(error)[:300]}") from error
    model.to(device).eval()
    return model, tokenizer


class TransformersAPI(ModelAPI):
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
        super().__init__(model_name, base_url, api_key, [], config)
        self.device = _device(request.device)
        self.model, self.tokenizer = _load(Path(request.model), self.device)
        self.template = template
        self.limit = max_tokens
        self.seed = request.seed
        self.batch_size = request.batch_size or (_GPU_BATCH if self.device.type == "cuda" else _CPU_BATCH)
        vocabulary = int(self.model.get_input_embeddings().weight.shape[0])
        self.decoding = decoding.from_directory(
            Path(request.model), vocab_size=vocabulary, protocol_max_tokens=max_tokens
        )
        own_eos = self.tokenizer.eos_token_id
        self.stop = sorted({*self.decoding.eos_token_ids, *([own_eos] if own_eos is not None else [])})
        pad = self.tokenizer.pad_token_id
        self.pad = pad if pad is not None else (self.stop[0] if self.stop else 0)
        self.context = int(getattr(self.model.config, "max_position_embeddings", 0) or 0)
        self._jobs: list[_Job] = []
        self._worker: asyncio.Task[None] | None = None
        self._arrivals = 0
        self._asked: dict[str, int] = {}

    def max_connections(self) -> int:
        """No limit of ours: the batcher sorts what comes."""
        return 10_000

    async def generate(
        self,
        input: list[ChatMessage],
        tools: list[ToolInfo],
        tool_choice: ToolChoice,
        config: GenerateConfig,
    ) -> ModelOutput:
        """Answer one conversation; returns when its batch is done."""
        messages = [{"role": message.role, "content": message.text} for message in input]
        prompt = render(self.template, messages, bos_token=self.tokenizer.bos_token or "")
        tokens: list[int] = self.tokenizer(prompt, add_special_tokens=False)["input_ids"]
        limit = min(config.max_tokens or self.limit, self.limit)
        if self.context and len(tokens) >= self.context:
            return ModelOutput.from_content(self.model_name, "", stop_reason="model_length")
        if self.context:
            limit = min(limit, self.context - len(tokens))
        # the same prompt asked again (epochs) gets another seed
        repeat = self._asked[prompt] = self._asked.get(prompt, -1) + 1
        future: asyncio.Future[tuple[list[int], bool]] = asyncio.get_running_loop().create_future()
        seed = derive_seed(self.seed, prompt, str(repeat))
        self._jobs.append(_Job(prompt, tokens, limit, seed, future))
        self._arrivals += 1
        if self._worker is None or self._worker.done():
            self._worker = asyncio.create_task(self._work())
        produced, stopped = await future
        text = self.tokenizer.decode(produced, skip_special_tokens=True)
        usage = ModelUsage(
            input_tokens=len(tokens), output_tokens=len(produced), total_tokens=len(tokens) + len(produced)
        )
        choice = ChatCompletionChoice(
            message=ChatMessageAssistant(content=text, model=self.model_name, source="generate"),
            stop_reason="stop" if stopped else "max_tokens",
        )
        return ModelOutput(model=self.model_name, choices=[choice], usage=usage)

    async def _work(self) -> None:
        while self._jobs:
            seen = -1
            while seen != self._arrivals:
                seen = self._arrivals
                await asyncio.sleep(_QUIET_S)
            jobs, self._jobs = self._jobs, []
            jobs.sort(key=lambda job: (len(job.tokens), job.prompt))
            for start in range(0, len(jobs), self.batch_size):
                batch = jobs[start : start + self.batch_size]
                try:
                    answers = await asyncio.to_thread(self._run_batch, batch)
                except BaseException as error:
                    for job in jobs[start:]:
                        if not job.done.done():
                            job.done.set_exception(error)
                    break
                for job, answer in zip(batch, answers, strict=True):
                    if not job.done.done():
                        job.done.set_result(answer)

    def _processors(self, batch: Sequence[_Job]) -> LogitsProcessorList:
        chosen = self.decoding
        processors = LogitsProcessorList()
        if chosen.repetition_penalty != 1.0:
            processors.append(RepetitionPenaltyLogitsProcessor(penalty=chosen.repetition_penalty))
        if chosen.greedy:
            return processors
        if chosen.temperature != 1.0:
            processors.append(TemperatureLogitsWarper(chosen.temperature))
        if chosen.top_k > 0:
            processors.append(TopKLogitsWarper(chosen.top_k))
        if chosen.top_p < 1.0:
            processors.append(TopPLogitsWarper(chosen.top_p))
        if chosen.min_p > 0.0:
            processors.append(MinPLogitsWarper(chosen.min_p))
        processors.append(SeededSampling([job.seed for job in batch]))
        return processors

    def _run_batch(self, batch: Sequence[_Job]) -> list[tuple[list[int], bool]]:
        width = max(len(job.tokens) for job in batch)
        rows = [[self.pad] * (width - len(job.tokens)) + job.tokens for job in batch]
        mask = [[0] * (width - len(job.tokens)) + [1] * len(job.tokens) for job in batch]
        with torch.inference_mode():
            output = self.model.generate(
                input_ids=torch.tensor(rows, device=self.device),
                attention_mask=torch.tensor(mask, device=self.device),
                max_new_tokens=max(job.max_tokens for job in batch),
                do_sample=False,
                num_beams=1,
                # the model's own generation config must not act beside ours
                temperature=1.0,
                top_p=1.0,
                top_k=50,
                repetition_penalty=1.0,
                min_new_tokens=None,
                eos_token_id=self.stop or None,
                pad_token_id=self.pad,
                logits_processor=self._processors(batch),
                use_cache=True,
            )
        return [self._cut(row, job.max_tokens) for row, job in zip(output[:, width:].tolist(), batch, strict=True)]

    def _cut(self, row: list[int], limit: int) -> tuple[list[int], bool]:
        stop = set(self.stop)
        for position, token in enumerate(row[:limit]):
            if token in stop:
                return row[:position], True
        return row[:limit], False


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

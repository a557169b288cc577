"""The vllm engine: our prompts as token ids to one server of ours, answers as token ids back.

The server renders no template, parses no tool call and reads no generation config: that is done here as for every engine.
"""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import httpx
from inspect_ai.model import GenerateConfig, Model, ModelAPI, get_model, modelapi

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
from posttrainbench.evaluation.engines.server import Server, ServerSpec, fingerprint, get_server, stop_server
from posttrainbench.evaluation.request import EvaluationRequest
from posttrainbench.evaluation.retry import EngineError, Failure, Parameters

__all__ = ["VllmAPI", "create", "stop_server"]

# vLLM's own defaults for a server on a GPU (0.11: max_num_seqs 256 for the API server, gpu_memory_utilization 0.9)
_SEQUENCES = 256
_MEMORY_SHARE = 0.9
# The longest answer of the protocols, 16384 tokens, at 5 tokens/s: a request that takes longer hangs. Requests do not wait
# in the server's queue: no more are sent than it runs at once.
_REQUEST_LIMIT_S = 3600.0


def request_body(name: str, job: Job) -> dict[str, Any]:
    """The body of a `/v1/completions` request."""
    sampling: Sampling = job.sampling
    return {
        "model": name,
        "prompt": job.tokens,
        "max_tokens": sampling.max_tokens,
        "temperature": sampling.temperature,
        "top_p": sampling.top_p,
        "top_k": sampling.top_k if sampling.top_k > 0 else -1,
        "min_p": sampling.min_p,
        "repetition_penalty": sampling.repetition_penalty,
        "seed": sampling.seed,
        "stop_token_ids": list(sampling.stop_token_ids),
        "skip_special_tokens": False,
        "return_token_ids": True,
    }


class VllmAPI(Engine):
    """An Inspect model provider over a vLLM server.

    Args:
        request: what is evaluated.
        template: chat template file.
        max_tokens: protocol limit of generated tokens per answer.

    Raises:
        SubmissionError: config or tokenizer do not load.
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
        from transformers import AutoConfig

        directory = request.model_directory()
        tokenizer = load_tokenizer(directory)
        try:
            found = AutoConfig.from_pretrained(directory, trust_remote_code=False, local_files_only=True)
        except Exception as error:  # whatever a broken directory makes the loader raise is the submission's fault
            raise SubmissionError(f"the config does not load: {type(error).__name__}: {str(error)[:300]}") from error
        super().__init__(
            model_name,
            request=request,
            template=template,
            max_tokens=max_tokens,
            tokenizer=tokenizer,
            vocab_size=vocabulary_size(found),
            context=context_length(found),
            config=config,
        )
        self._parameters = Parameters(
            batch_size=request.batch_size or _SEQUENCES,
            memory_share=request.memory_share or _MEMORY_SHARE,
            max_tokens=max_tokens,
        )
        self.server: Server | None = None
        self._client: httpx.AsyncClient | None = None

    @property
    def parameters(self) -> Parameters:
        """Concurrent requests, share of the GPU's memory, token limit."""
        return self._parameters

    def apply(self, parameters: Parameters) -> None:
        """Take over new limits; a server with other limits is replaced when the next attempt begins."""
        self._parameters, self.limit = parameters, parameters.max_tokens
        if self.failure is not None:
            stop_server()

    def begin_attempt(self) -> None:
        """Make sure that the server runs.

        Raises:
            EngineError: it does not come up.
            SubmissionError: it says that the model cannot be loaded.
        """
        super().begin_attempt()
        directory = self.request.model_directory()
        share = self._parameters.memory_share
        assert share is not None
        spec = ServerSpec(
            model=directory.resolve(),
            files=fingerprint(directory),
            max_sequences=self._parameters.batch_size,
            memory_share=share,
        )
        log = Path(self.request.output) / "vllm.log"
        self.server = get_server(spec, log=log, start_limit_s=self.request.start_limit_s)
        self._client = None  # connections belong to the event loop of their attempt

    def max_connections(self) -> int:
        """As many as the server runs at once."""
        return self._parameters.batch_size

    async def complete(self, job: Job) -> Answer:
        """Ask the server."""
        server = self.server
        assert server is not None
        if self._client is None:
            self._client = httpx.AsyncClient(
                base_url=server.url,
                headers=server.headers,
                timeout=httpx.Timeout(_REQUEST_LIMIT_S, connect=30.0),
                limits=httpx.Limits(max_connections=None, max_keepalive_connections=None),
                trust_env=False,
            )
        try:
            response = await self._client.post("/v1/completions", json=request_body(server.name, job))
        except httpx.HTTPError as error:
            raise server.failure(error) from error
        if response.status_code >= 500:
            said = response.text[:300]
            raise server.failure(RuntimeError(f"HTTP {response.status_code}: {said}"))
        if response.status_code != 200:
            # our own request is wrong: it would be again
            raise EngineError(Failure.OTHER, f"vllm refuses a request: {response.status_code} {response.text[:300]}")
        return _answer(response.json(), job)


def _answer(body: dict[str, Any], job: Job) -> Answer:
    choice = body["choices"][0]
    tokens = choice.get("token_ids")
    if tokens is None:
        raise EngineError(Failure.OTHER, "this vllm returns no token ids; version 0.11 or newer is needed")
    reason = choice["finish_reason"]
    if reason not in ("stop", "length"):
        raise EngineError(Failure.SERVER_LOST, f"vllm ended an answer with {reason!r}")
    stop = set(job.sampling.stop_token_ids)
    # the token that ended the answer is among those returned; none of them is part of the answer
    end = next((place for place, token in enumerate(tokens) if token in stop), len(tokens))
    return Answer(list(tokens[:end]), reason == "stop")


@modelapi(name="ptb-vllm")
def _provider() -> type[ModelAPI]:
    return VllmAPI


def create(request: EvaluationRequest, *, template: Path, max_tokens: int) -> Model:
    """An Inspect model around `VllmAPI`."""
    return get_model(
        f"ptb-vllm/{request.base_model}",
        config=GenerateConfig(max_tokens=max_tokens),
        memoize=False,
        request=dataclasses.replace(request),
        template=template,
        max_tokens=max_tokens,
    )

"""What all engines share: conversation to prompt, seeds, limits, tool calls, and answers that survive a retry.

An engine only turns a `Job` (token ids and sampling parameters) into an `Answer` (token ids). Everything before and after
happens here once, so that template, decoding and tool-call parsing cannot differ between engines.
"""

from __future__ import annotations

import itertools
from abc import abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from inspect_ai.model import (
    ChatCompletionChoice,
    ChatMessage,
    ChatMessageAssistant,
    ChatMessageTool,
    GenerateConfig,
    ModelAPI,
    ModelOutput,
    ModelUsage,
    StopReason,
)
from inspect_ai.solver._task_state import sample_state  # no public way to know the sample inside a model provider
from inspect_ai.tool import ToolCall, ToolChoice, ToolInfo

from posttrainbench.errors import ConfigurationError, PTBError, SubmissionError
from posttrainbench.evaluation import decoding as decoding_module
from posttrainbench.evaluation.decoding import Decoding, Sampling, derive_seed
from posttrainbench.evaluation.request import EvaluationRequest
from posttrainbench.evaluation.retry import EngineError, Failure, Parameters
from posttrainbench.evaluation.templating import render
from posttrainbench.evaluation.tool_calls import parse_hermes

_pools = itertools.count()


@dataclass(frozen=True)
class Job:
    """One answer to generate.

    Attributes:
        tokens: the prompt.
        sampling: parameters of this answer, its seed and limit included.
    """

    tokens: list[int]
    sampling: Sampling


@dataclass(frozen=True)
class Answer:
    """A generated answer: its tokens without the one that ended it, and whether one did."""

    tokens: list[int]
    stopped: bool


def template_messages(messages: Sequence[ChatMessage]) -> list[dict[str, Any]]:
    """Inspect's messages as chat templates know them: role, content, and calls where there are some."""
    found: list[dict[str, Any]] = []
    for message in messages:
        entry: dict[str, Any] = {"role": message.role, "content": message.text}
        if isinstance(message, ChatMessageAssistant) and message.tool_calls:
            entry["tool_calls"] = [
                {"type": "function", "function": {"name": call.function, "arguments": call.arguments}}
                for call in message.tool_calls
            ]
        if isinstance(message, ChatMessageTool) and message.function:
            entry["name"] = message.function
        found.append(entry)
    return found


def template_tools(tools: Sequence[ToolInfo]) -> list[dict[str, Any]]:
    """Tools in OpenAI's schema, keys in the order in which vLLM hands them to a template."""
    return [
        {
            "type": "function",
            "function": {
                "name": tool.name,
                "description": tool.description,
                "parameters": tool.parameters.model_dump(exclude_none=True),
            },
        }
        for tool in tools
    ]


def split_tool_calls(text: str) -> tuple[str, list[ToolCall]]:
    """Content and calls of an answer in Hermes format; the text unchanged where it holds no valid call."""
    parsed = parse_hermes(text)
    return parsed.text, [
        tool_call(call.name, call.arguments, number=number) for number, call in enumerate(parsed.calls)
    ]


def tool_call(name: str, arguments: Any, *, number: int) -> ToolCall:
    """A call as Inspect knows it; arguments that are no object are kept as its parse error."""
    if isinstance(arguments, dict):
        return ToolCall(id=f"call_{number}", function=name, arguments=arguments)
    problem = f"arguments are not an object: {str(arguments)[:200]}"
    return ToolCall(id=f"call_{number}", function=name, arguments={}, parse_error=problem)


def load_tokenizer(model: Path) -> Any:
    """The tokenizer of a model directory.

    Raises:
        SubmissionError: it does not load.
    """
    from transformers import AutoTokenizer

    try:
        return AutoTokenizer.from_pretrained(model, trust_remote_code=False, local_files_only=True)
    except Exception as error:  # whatever a broken directory makes the loader raise is the submission's fault
        raise SubmissionError(f"the tokenizer does not load: {type(error).__name__}: {str(error)[:300]}") from error


def vocabulary_size(config: Any) -> int:
    """Number of token ids of a model, from its transformers config (nested for multi-modal families)."""
    return int(config.get_text_config().vocab_size)


def context_length(config: Any) -> int:
    """Longest sequence of a model in tokens, 0 where its config does not say."""
    return int(getattr(config.get_text_config(), "max_position_embeddings", 0) or 0)


class Engine(ModelAPI):
    """An Inspect model provider over `complete`.

    Attributes:
        decoding: as used, end-of-sequence ids of file and tokenizer merged.
        failure: the engine's error that ended the last attempt; Inspect keeps only its text.
        problem: an error of ours that no retry can mend, likewise.
    """

    failure: EngineError | None = None
    problem: PTBError | None = None
    device: object | None = None

    def __init__(
        self,
        model_name: str,
        *,
        request: EvaluationRequest,
        template: Path,
        max_tokens: int,
        tokenizer: Any,
        vocab_size: int,
        context: int,
        config: GenerateConfig,
    ) -> None:
        super().__init__(model_name, None, None, [], config)
        self.request = request
        self.template = template
        self.limit = max_tokens
        self.tokenizer = tokenizer
        self.context = context
        override: Mapping[str, float] | None = request.decoding
        found = decoding_module.from_directory(
            request.model_directory(), vocab_size=vocab_size, protocol_max_tokens=max_tokens, override=override
        )
        self.decoding: Decoding = found.stopping_at([tokenizer.eos_token_id])
        self._answers: dict[tuple[int, str], Answer] = {}
        self._asked: dict[str, int] = {}
        self._pool = f"{type(self).__name__}-{next(_pools)}"

    @property
    @abstractmethod
    def parameters(self) -> Parameters:
        """What the engine runs with now."""

    @abstractmethod
    def apply(self, parameters: Parameters) -> None:
        """Prepare for the next attempt. Finished answers of the last one are kept."""

    @abstractmethod
    async def complete(self, job: Job) -> Answer:
        """Generate one answer.

        Raises:
            EngineError: the engine cannot go on.
        """

    def close(self) -> None:
        """Free what the engine holds."""
        return

    def max_connections(self) -> int:
        """How many answers Inspect may ask for at once."""
        return 10_000

    def connection_key(self) -> str:
        """Each engine has a pool of its own; Inspect otherwise lets the first engine's limit stand for the next."""
        return self._pool

    def begin_attempt(self) -> None:
        """Called before every attempt."""
        self.failure, self.problem = None, None
        self._asked = {}

    def _seed(self, prompt: str) -> int:
        """This answer's seed: from the item and epoch, so that no order of arrival can change it."""
        state = sample_state()
        if state is not None:
            return derive_seed(self.request.seed, str(state.sample_id), str(state.epoch), prompt)
        repeat = self._asked[prompt] = self._asked.get(prompt, 0) + 1
        return derive_seed(self.request.seed, "", str(repeat), prompt)

    def prompt(self, messages: Sequence[ChatMessage], tools: Sequence[ToolInfo] = ()) -> str:
        """The text that the model continues.

        Raises:
            ConfigurationError: the template cannot render this conversation.
        """
        variables: dict[str, Any] = {"tools": template_tools(tools)} if tools else {}
        try:
            return render(
                self.template, template_messages(messages), bos_token=self.tokenizer.bos_token or "", **variables
            )
        except ValueError as error:
            raise ConfigurationError(f"template {self.template.stem} cannot render a conversation: {error}") from error

    async def generate(
        self,
        input: list[ChatMessage],
        tools: list[ToolInfo],
        tool_choice: ToolChoice,
        config: GenerateConfig,
    ) -> ModelOutput:
        """Answer one conversation."""
        try:
            prompt = self.prompt(input, tools)
        except PTBError as error:
            self.problem = error
            raise
        tokens: list[int] = self.tokenizer(prompt, add_special_tokens=False)["input_ids"]
        limit = min(config.max_tokens or self.limit, self.limit)
        if self.context and len(tokens) >= self.context:
            return ModelOutput.from_content(self.model_name, "", stop_reason="model_length")
        room = self.context - len(tokens) if self.context else limit
        seed = self._seed(prompt)
        sampling = Sampling.of(self.decoding, seed=seed, max_tokens=min(limit, room))
        answer = await self._answer(Job(tokens, sampling), prompt)
        stop_reason: StopReason = "stop" if answer.stopped else "model_length" if room < limit else "max_tokens"
        # with tools, vLLM keeps special tokens too: some families mark calls with them
        text = self.tokenizer.decode(answer.tokens, skip_special_tokens=not tools, clean_up_tokenization_spaces=False)
        content, calls = split_tool_calls(text) if tools else (text, [])
        if calls and stop_reason == "stop":
            stop_reason = "tool_calls"
        message = ChatMessageAssistant(
            content=content, tool_calls=calls or None, model=self.model_name, source="generate"
        )
        count = len(tokens) + len(answer.tokens)
        return ModelOutput(
            model=self.model_name,
            choices=[ChatCompletionChoice(message=message, stop_reason=stop_reason)],
            usage=ModelUsage(input_tokens=len(tokens), output_tokens=len(answer.tokens), total_tokens=count),
            metadata={"seed": seed, "raw": text} if tools else {"seed": seed},
        )

    async def _answer(self, job: Job, prompt: str) -> Answer:
        key, limit = (job.sampling.seed, prompt), job.sampling.max_tokens
        known = self._answers.get(key)
        if known is not None and ((known.stopped and len(known.tokens) < limit) or len(known.tokens) >= limit):
            return Answer(known.tokens[:limit], known.stopped and len(known.tokens) < limit)
        try:
            answer = await self.complete(job)
        except EngineError as error:
            self.failure = self.failure or error
            raise
        except Exception as error:
            self.failure = self.failure or EngineError(Failure.OTHER, f"{type(error).__name__}: {str(error)[:400]}")
            raise
        self._answers[key] = answer
        return answer

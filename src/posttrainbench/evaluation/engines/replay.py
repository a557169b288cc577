"""The replay engine: no model, stored outputs are scored again.

Outputs come from JSON lines `{"id", "completion"}`, optionally with `epoch` (from 1) and, for tool calling, `tool_calls`
(a list of `{"name", "arguments"}`); or from an `.eval` log of an earlier evaluation, taken over as they are.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

from inspect_ai.model import (
    ChatCompletionChoice,
    ChatMessage,
    ChatMessageAssistant,
    GenerateConfig,
    Model,
    ModelAPI,
    ModelOutput,
    get_model,
    modelapi,
)
from inspect_ai.solver._task_state import sample_state  # no public way to know the sample inside a model provider
from inspect_ai.tool import ToolChoice, ToolInfo

from posttrainbench.errors import ConfigurationError
from posttrainbench.evaluation.engines.base import split_tool_calls, tool_call
from posttrainbench.evaluation.request import EvaluationRequest

Stored = ModelOutput | dict[str, Any]
"""An output of a log, or a line of a JSONL file."""

_NAME = "ptb-replay"


def read_completions(path: Path) -> dict[tuple[str, int], Stored]:
    """Stored outputs by item id and epoch.

    Raises:
        ConfigurationError: no such file, not in the format, an item twice.
    """
    if not path.is_file():
        raise ConfigurationError(f"there is no file of completions {str(path)!r}")
    found: dict[tuple[str, int], Stored] = {}
    for key, value in _from_log(path) if path.suffix == ".eval" else _from_lines(path):
        if key in found:
            epoch = f" (epoch {key[1]})" if key[1] != 1 else ""
            raise ConfigurationError(f"{path}: item {key[0]!r}{epoch} is there twice")
        found[key] = value
    if not found:
        raise ConfigurationError(f"{path} holds no completions")
    return found


def _from_log(path: Path) -> Iterable[tuple[tuple[str, int], Stored]]:
    from inspect_ai.log import read_eval_log

    try:
        log = read_eval_log(str(path))
    except Exception as error:  # a file that is no log fails in many ways
        raise ConfigurationError(f"{path} is no readable Inspect log: {type(error).__name__}") from error
    for sample in log.samples or []:
        yield (str(sample.id), sample.epoch), sample.output


def _from_lines(path: Path) -> Iterable[tuple[tuple[str, int], Stored]]:
    # by "\n" only: splitlines() would also cut at the U+2028 that a completion may hold
    for number, line in enumerate(path.read_text(encoding="utf-8").split("\n"), start=1):
        if not line.strip():
            continue
        try:
            value = json.loads(line)
        except ValueError:
            raise ConfigurationError(f"{path}, line {number}: not JSON") from None
        if not isinstance(value, dict) or "id" not in value or not isinstance(value.get("completion"), str):
            raise ConfigurationError(f'{path}, line {number}: expected {{"id": ..., "completion": "..."}}')
        epoch = value.get("epoch", 1)
        if not isinstance(epoch, int) or epoch < 1:
            raise ConfigurationError(f"{path}, line {number}: epoch {epoch!r} is not a number from 1")
        calls = value.get("tool_calls")
        if calls is not None and not (isinstance(calls, list) and all(isinstance(call, dict) for call in calls)):
            raise ConfigurationError(f"{path}, line {number}: tool_calls is not a list of objects")
        yield (str(value["id"]), epoch), value


def _few(items: list[str]) -> str:
    shown = ", ".join(items[:3])
    return f"{shown} and {len(items) - 3} more" if len(items) > 3 else shown


def by_their_ids(stored: Mapping[tuple[str, int], Stored], aliases: Mapping[str, str]) -> dict[tuple[str, int], Stored]:
    """Stored outputs under the benchmark's own item ids, where they came under other ids in use for the same items.

    Args:
        stored: by item id and epoch.
        aliases: other id -> item id.

    Raises:
        ConfigurationError: two outputs for one item.
    """
    found: dict[tuple[str, int], Stored] = {}
    for (name, epoch), value in stored.items():
        key = (aliases.get(name, name), epoch)
        if key in found:
            raise ConfigurationError(f"the completions hold item {key[0]!r} twice, once as {name!r}")
        found[key] = value
    return found


def check_ids(
    stored: Mapping[tuple[str, int], Stored], *, ids: Iterable[str], wanted: Iterable[str], epochs: int
) -> None:
    """Compare stored ids with the benchmark's before anything is scored.

    Args:
        stored: by item id and epoch.
        ids: all item ids of the benchmark; a stored id outside is a mistake.
        wanted: those that will be scored (the first N under a limit); one that is not stored is a mistake.
        epochs: epochs that will be scored.

    Raises:
        ConfigurationError: one line naming the first few wrong or missing ids.
    """
    known, needed = set(ids), list(wanted)
    wrong = list(dict.fromkeys(item for item, _ in stored if item not in known))
    absent = [
        item if epochs == 1 else f"{item} (epoch {epoch})"
        for item in needed
        for epoch in range(1, epochs + 1)
        if (item, epoch) not in stored
    ]
    complaints = []
    if wrong:
        complaints.append(f"{len(wrong)} ids are not of this benchmark ({_few(wrong)})")
    if absent:
        complaints.append(f"{len(absent)} of its {len(needed) * epochs} items are missing ({_few(absent)})")
    if complaints:
        example = f"; its ids look like {needed[0]!r}" if wrong and needed else ""
        raise ConfigurationError(f"the completions do not fit the benchmark: {' and '.join(complaints)}{example}")


class ReplayAPI(ModelAPI):
    """An Inspect model provider that answers every sample with its stored output.

    Attributes:
        stored: outputs by item id and epoch.
    """

    def __init__(
        self,
        model_name: str,
        base_url: str | None = None,
        api_key: str | None = None,
        config: GenerateConfig = GenerateConfig(),  # noqa: B008  # the signature that Inspect prescribes
        *,
        stored: dict[tuple[str, int], Stored],
    ) -> None:
        super().__init__(model_name, base_url, api_key, [], config)
        self.stored = stored

    def max_connections(self) -> int:
        """No limit: nothing is asked of anybody."""
        return 10_000

    async def generate(
        self, input: list[ChatMessage], tools: list[ToolInfo], tool_choice: ToolChoice, config: GenerateConfig
    ) -> ModelOutput:
        """The stored output of the sample that asks."""
        state = sample_state()
        if state is None:
            raise RuntimeError("replay works inside an evaluation only")
        stored = self.stored[str(state.sample_id), state.epoch]
        if isinstance(stored, ModelOutput):
            return stored
        text: str = stored["completion"]
        given = stored.get("tool_calls")
        if given is not None:
            calls = [_call(call, number) for number, call in enumerate(given)]
        elif tools:
            text, calls = split_tool_calls(text)
        else:
            calls = []
        message = ChatMessageAssistant(content=text, tool_calls=calls or None, model=self.model_name, source="generate")
        choice = ChatCompletionChoice(message=message, stop_reason="tool_calls" if calls else "stop")
        return ModelOutput(model=self.model_name, choices=[choice])


def _call(value: dict[str, Any], number: int) -> Any:
    """A stored call, in our form or OpenAI's (`function` object, arguments as JSON text)."""
    inner = value.get("function")
    if isinstance(inner, dict):
        value = inner
    elif isinstance(inner, str) and "name" not in value:
        value = {**value, "name": inner}
    arguments = value.get("arguments", {})
    if isinstance(arguments, str):
        with suppress(ValueError):  # kept as text, which becomes the call's parse error
            arguments = json.loads(arguments)
    return tool_call(str(value.get("name", "")), arguments, number=number)


@modelapi(name=_NAME)
def _provider() -> type[ModelAPI]:
    return ReplayAPI


def create(request: EvaluationRequest) -> Model:
    """An Inspect model around `ReplayAPI`.

    Raises:
        ConfigurationError: no completions in the request, or a file that cannot be used.
    """
    if request.completions is None:
        raise ConfigurationError("engine 'replay' needs stored completions: --completions FILE.jsonl or LOG.eval")
    stored = read_completions(Path(request.completions))
    return get_model(f"{_NAME}/{request.base_model}", memoize=False, stored=stored)

"""What the evaluation tests share: the real data, and a model that answers from a table."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest
from inspect_ai import Task
from inspect_ai import eval as inspect_eval
from inspect_ai.log import EvalLog
from inspect_ai.model import ChatMessage, GenerateConfig, Model, ModelAPI, ModelOutput, get_model, modelapi
from inspect_ai.solver._task_state import sample_state
from inspect_ai.tool import ToolChoice, ToolInfo

SHARED = Path(os.environ.get("PTB_SHARED_DATA") or Path(__file__).parents[2].parent / "shared" / "data")
needs_data = pytest.mark.skipif(
    not SHARED.is_dir(), reason=f"no real data in {SHARED}; name the directory with PTB_SHARED_DATA"
)

Answer = Callable[[str, list[ChatMessage]], str]


class TableAPI(ModelAPI):
    """Answers by a function of the sample's id and the messages. Inspect's own mock model wants a tokenizer download."""

    def __init__(
        self,
        model_name: str,
        base_url: str | None = None,
        api_key: str | None = None,
        config: GenerateConfig = GenerateConfig(),  # noqa: B008  # the signature that Inspect prescribes
        *,
        answer: Answer,
    ) -> None:
        super().__init__(model_name, base_url, api_key, [], config)
        self.answer = answer
        self.calls = 0

    def max_connections(self) -> int:
        return 10_000

    async def generate(
        self, input: list[ChatMessage], tools: list[ToolInfo], tool_choice: ToolChoice, config: GenerateConfig
    ) -> ModelOutput:
        self.calls += 1
        state = sample_state()
        return ModelOutput.from_content(self.model_name, self.answer(str(state.sample_id) if state else "", input))


@modelapi(name="ptb-table")
def _provider() -> type[ModelAPI]:
    return TableAPI


def table_model(answer: Answer) -> Model:
    """An Inspect model around `TableAPI`."""
    return get_model("ptb-table/table", memoize=False, answer=answer)


def evaluate(task: Task, answers: Mapping[str, str] | Answer, logs: Path, **options: Any) -> EvalLog:
    """Run a task through Inspect, as the runner does, with answers from a table."""
    answer = answers if callable(answers) else lambda sample_id, _: answers[sample_id]
    [log] = inspect_eval(
        task,
        model=table_model(answer),
        display="none",
        log_dir=str(logs),
        max_samples=10_000,
        log_level="error",
        **options,
    )
    assert log.status == "success", log.error
    return log


def tally(log: EvalLog) -> dict[str, Counter[str]]:
    """How often each score value came out, per scorer."""
    found: dict[str, Counter[str]] = {"strict": Counter(), "paper": Counter()}
    for sample in log.samples or []:
        for name, score in (sample.scores or {}).items():
            found[name][str(score.value)] += 1
    return found

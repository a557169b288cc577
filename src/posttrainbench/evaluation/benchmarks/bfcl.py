"""BFCL exec_simple: 100 requests, each to be answered by one function call, exactly matched. Protocol: docs/protocol.md.

`inspect_evals` scores this category by other rules since 0.4.0, so the task is ours.
"""

from __future__ import annotations

from typing import Any

from inspect_ai import Task
from inspect_ai.dataset import MemoryDataset, Sample
from inspect_ai.model import ChatMessageSystem, ChatMessageUser, get_model
from inspect_ai.scorer import Score, Target
from inspect_ai.solver import Generate, Solver, TaskState, solver
from inspect_ai.tool import ToolInfo, ToolParams

from posttrainbench.evaluation import data
from posttrainbench.evaluation.benchmarks import BenchmarkOptions
from posttrainbench.evaluation.scorers.calls import paper_call, parse_ground_truth, strict_call, to_json_schema
from posttrainbench.evaluation.scorers.inspect import paper_state, strict_state, verdict
from posttrainbench.evaluation.tool_calls import ParsedCall, parse_hermes

_ROLES = {"user": ChatMessageUser, "system": ChatMessageSystem}


def tool(function: dict[str, Any]) -> ToolInfo:
    """A function of the data set as a tool's description; there is nothing behind it to execute."""
    parameters = ToolParams.model_validate(to_json_schema(function["parameters"]))
    return ToolInfo(name=function["name"], description=function["description"], parameters=parameters)


@solver
def one_turn_with_tools() -> Solver:
    """One assistant turn; calls are recorded and not executed."""

    async def solve(state: TaskState, generate: Generate) -> TaskState:
        # Not through `state.tools`: Inspect refuses functions of which a parameter has no description, and two have none.
        state.output = await get_model().generate(state.messages, tools=[tool(state.metadata["function"])])
        state.messages.append(state.output.message)
        return state

    return solve


def calls_of(state: TaskState) -> list[ParsedCall]:
    """The calls of the answer: as the engine found them, else those in its text (stored answers may hold text only)."""
    if not state.output.choices:
        return []
    message = state.output.message
    if message.tool_calls:
        return [ParsedCall(call.function, None if call.parse_error else call.arguments) for call in message.tool_calls]
    return list(parse_hermes(state.output.completion).calls)


def shown(calls: list[ParsedCall], state: TaskState) -> str:
    """For the reader of the log."""
    return repr([(call.name, call.arguments) for call in calls]) if calls else state.output.completion[-200:]


async def mark_strict(state: TaskState, target: Target) -> Score:
    """`strict_call` on the answer."""
    calls = calls_of(state)
    parameters = state.metadata["function"]["parameters"]
    return verdict(strict_call(calls, parse_ground_truth(target.text), parameters), shown(calls, state))


async def mark_paper(state: TaskState, target: Target) -> Score:
    """`paper_call` on the answer."""
    calls = calls_of(state)
    return verdict(paper_call(calls, parse_ground_truth(target.text)), shown(calls, state))


def build(options: BenchmarkOptions) -> Task:
    """The task; the tool is passed natively and rendered by the chat template.

    Raises:
        ConfigurationError: no data.
    """
    loaded = data.bfcl(options.data_dir)
    samples = [
        Sample(
            id=row["id"],
            input=[_ROLES[message["role"]](content=message["content"]) for message in row["messages"]],
            target=row["ground_truth"],
            metadata={"function": row["function"]},
        )
        for row in loaded.rows
    ]
    return Task(
        name="bfcl",
        dataset=MemoryDataset(samples, name="bfcl"),
        solver=one_turn_with_tools(),
        scorer=[strict_state(mark_strict), paper_state(mark_paper)],
        epochs=options.epochs,
        metadata={"data": loaded.source},
    )

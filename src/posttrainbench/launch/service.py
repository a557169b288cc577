"""Are the services that a cell needs alive: one tiny call to the agent's model, through the gateway as a run would make it,
and one to the grader."""

from __future__ import annotations

import socket
from dataclasses import replace
from typing import Any

from posttrainbench import catalog
from posttrainbench.errors import InfrastructureError, PTBError
from posttrainbench.launch.checks import Checked
from posttrainbench.launch.sweepfile import Cell
from posttrainbench.pipeline import outside
from posttrainbench.pipeline.ending import Ending
from posttrainbench.pipeline.prepare import agent_of
from posttrainbench.scaffolds import Agent
from posttrainbench.scratch import Scratch

_PATIENCE_S = 20.0
# kinds of `evaluation.grading.GradingFailure`; what passes by itself is the network's
_FAILURES = {"auth": "auth", "quota": "quota", "refused": "configuration"}
_KINDS = {Ending.AUTH: "auth", Ending.QUOTA: "quota", Ending.NETWORK: "network", Ending.API_REFUSAL: "configuration"}


def model_api(cell: Cell) -> Checked:
    """Ask the agent's model for one token."""
    agent = agent_of(cell.spec)
    name = "model API"
    if not agent.provider:
        return Checked(name=name, ok=True, detail="this agent calls no model")
    if agent.subscription:
        # such logins answer only requests that look like their CLI's own
        return Checked(name=name, ok=True, detail="a login; it is there and not expired, no call was made")
    try:
        return _ask(cell, agent)
    except PTBError as error:
        kind = error.kind if isinstance(error, InfrastructureError) else "configuration"
        return Checked(name=name, ok=False, detail=str(error), kind=kind)


def _ask(cell: Cell, agent: Agent) -> Checked:
    import httpx

    from posttrainbench.gateway import Gateway

    spec = replace(cell.spec, budget_tokens=None, budget_usd=None)
    resolved = outside.resolve_outside(agent, spec, catalog.benchmark(spec.benchmark), outside.CLOSED)
    assert resolved is not None  # it has a provider
    own = resolved.config.limits
    limits = replace(own, patience_s=min(own.patience_s, _PATIENCE_S), header_s=60.0, idle_s=60.0)
    config = replace(resolved.config, limits=limits, grader=None, web=None)
    path, body, headers = _call(agent, resolved.secrets.token)
    with (
        Scratch("preflight") as folder,
        Gateway(config, resolved.secrets, folder) as gateway,
        socket.create_server(("127.0.0.1", 0)) as listener,
    ):
        gateway.adopt(listener)
        url = f"http://127.0.0.1:{listener.getsockname()[1]}/{agent.provider}{path}"
        try:
            answer = httpx.post(url, json=body, headers=headers, timeout=120.0, trust_env=False)
            said = f"HTTP {answer.status_code}"
        except httpx.HTTPError as error:
            return Checked(name="model API", ok=False, detail=f"no answer: {error}", kind="network")
        held = gateway.poll()
    if held:
        kind = _KINDS.get(outside.ENDINGS[held[0].kind], "other")
        return Checked(name="model API", ok=False, detail=held[0].detail or held[0].kind, kind=kind)
    # another refusal (a parameter that this model does not take) shows all the same that key and network are fine
    return Checked(name="model API", ok=True, detail=f"{agent.provider}/{agent.model} answers: {said}")


def _call(agent: Agent, token: str) -> tuple[str, dict[str, Any], dict[str, str]]:
    """Path, body and headers of the smallest request in the agent's language."""
    asked = [{"role": "user", "content": "hi"}]
    bearer = {"authorization": f"Bearer {token}"}
    if agent.wire == "anthropic":
        headers = {"x-api-key": token, "anthropic-version": "2023-06-01"}
        return "/v1/messages", {"model": agent.model, "max_tokens": 1, "messages": asked}, headers
    if agent.wire == "gemini":
        body: dict[str, Any] = {"contents": [{"role": "user", "parts": [{"text": "hi"}]}]}
        body["generationConfig"] = {"maxOutputTokens": 1}
        return f"/v1beta/models/{agent.model}:generateContent", body, {"x-goog-api-key": token}
    if agent.wire == "responses":
        # fewer than 16 are refused there
        return "/v1/responses", {"model": agent.model, "input": "hi", "max_output_tokens": 16}, bearer
    return "/v1/chat/completions", {"model": agent.model, "max_tokens": 1, "messages": asked}, bearer


def grader(cell: Cell) -> Checked:
    """Ask the grader of an LLM-graded benchmark for one token."""
    spec = cell.spec
    if not outside.is_graded(catalog.benchmark(spec.benchmark), spec):
        return Checked(name="grader", ok=True, detail="none needed")
    return ask_inspect_model("grader", spec.grader)


def ask_inspect_model(name: str, model: str, *, needed: bool = True) -> Checked:
    """Ask a model that the harness itself calls, through Inspect, for a few tokens.

    Args:
        name: of the check.
        model: as Inspect names it.
        needed: whether its absence is more than a warning.
    """
    import asyncio

    from inspect_ai.model import GenerateConfig

    from posttrainbench.evaluation.grading import cause, classify, get_grader

    try:
        # fewer tokens than 16 are refused by some
        asked = get_grader(model, config=GenerateConfig(max_tokens=16, timeout=60, max_retries=0))
        asyncio.run(asked.generate("hi"))
    except PTBError as error:
        return Checked(name=name, ok=False, detail=str(error), kind="configuration", needed=needed)
    except Exception as error:  # every provider has its own
        kind = _FAILURES.get(classify(error)[0], "network")
        reason = cause(error)
        said = " ".join(f"{type(reason).__name__}: {reason}".split())[:300]
        return Checked(name=name, ok=False, detail=f"{model}: {said}", kind=kind, needed=needed)
    return Checked(name=name, ok=True, detail=f"{model} answers", needed=needed)

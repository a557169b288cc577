"""What a run's sandbox can reach outside: its model's API, the grader, and the web door, all through the gateway.

A run that needs none of them (a scripted agent with a closed network) has no gateway at all.
"""

from __future__ import annotations

import math
import os
import socket
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, fields, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from posttrainbench.catalog import Benchmark
from posttrainbench.errors import ConfigurationError
from posttrainbench.pipeline import web_tls
from posttrainbench.pipeline.ending import Ending
from posttrainbench.pipeline.spec import RunSpec
from posttrainbench.scaffolds import Agent, scaffold_of
from posttrainbench.scaffolds.base import GATEWAY

if TYPE_CHECKING:
    from posttrainbench.gateway import Gateway, GatewayConfig, Resolved
    from posttrainbench.gateway import Limits as GatewayLimits
    from posttrainbench.pipeline.context import Context

PORT = int(GATEWAY.rpartition(":")[2])
CLOSED = "closed"


def default_network(agent: Agent) -> str:
    """The web policy of an agent for which none was asked: programs need no web, CLI agents get the guarded one."""
    return "guarded" if agent.provider else CLOSED


def describe(agent: Agent, network: str, *, tls: str = "passthrough") -> str:
    """The network in the words of the prompt."""
    own = " Your own program talks with its model through a proxy; nothing else may use that." if agent.provider else ""
    if network == CLOSED:
        return f"closed. Nothing outside of this machine can be reached; the machine's own loopback works.{own}"
    from posttrainbench.gateway.web_policy import load_policy

    rules = {
        "open": "open",
        "guarded": "guarded: package indexes, model hubs and most sites work, those that would break the rules below do not",
    }.get(network, "limited to a list of hosts")
    hub = "" if load_policy(network).hub == CLOSED else " The model hub's libraries find it by HF_ENDPOINT."
    opened = " It opens https with a certificate of its own, which SSL_CERT_FILE holds." if tls == "intercept" else ""
    return (
        f"{rules}. Connections go through the proxy that HTTP_PROXY and HTTPS_PROXY name; every request is logged, and a "
        f"refusal says why.{opened}{hub}{own}"
    )


def check(
    agent: Agent, spec: RunSpec, benchmark: Benchmark, network: str, *, model: Base | None = None
) -> GatewayConfig | None:
    """See, before any time is spent, that everything the run needs outside is configured.

    Returns:
        the gateway's configuration, without secrets, for the record; `None` for a run that needs no gateway.

    Raises:
        ConfigurationError: a key or login is missing, or there is no such policy.
    """
    resolved = resolve_outside(agent, spec, benchmark, network, model=model)
    return None if resolved is None else resolved.config


def resolve_outside(
    agent: Agent, spec: RunSpec, benchmark: Benchmark, network: str, *, model: Base | None = None
) -> Resolved | None:
    """What the run's gateway is told, from the host's environment."""
    if not agent.provider and (spec.budget_tokens or spec.budget_usd or spec.server_tools):
        raise ConfigurationError(f"agent {agent.name} calls no model: it takes no budget and no server tools")
    web_tls.check(spec, closed=network == CLOSED)
    sealed = spec.test_data == "sealed"
    # with sealed test data the agent has no questions to answer, and the harness has them graded
    graded = is_graded(benchmark, spec) and not sealed
    if not agent.provider and network == CLOSED and not graded and not sealed:
        return None
    # here: a run without a gateway need not import it
    from posttrainbench.gateway import Budget, Request, resolve
    from posttrainbench.gateway.grading_config import grader_settings
    from posttrainbench.gateway.web_policy import load_policy

    hub, hub_token = None, None
    if network != CLOSED:
        hub, hub_token = _hub(load_policy(network).hub, spec, benchmark, model or Base(id=spec.base_model))
    requests = [Request(agent.provider, (agent.model,), agent.helpers)] if agent.provider else []
    grader, grader_secrets = None, None
    if graded:
        settings, grader_secrets = grader_settings(benchmark.id, model=spec.grader, data_dir=spec.data_dir)
        grader = settings.to_json()
    resolved = resolve(
        requests,
        budget=Budget(tokens=spec.budget_tokens, usd=spec.budget_usd),
        server_tools=spec.server_tools,
        limits=_limits(os.environ),
        web=None if network == CLOSED else web_tls.settings(spec, benchmark, network, hub),
        grader=grader,
        grader_secrets=grader_secrets,
        hub=hub,
        hub_token=hub_token,
    )
    if sealed:
        resolved = replace(resolved, config=replace(resolved.config, sealed=_sealed(spec, benchmark, network, model)))
    _check_wire(agent, resolved.config)
    scaffold = scaffold_of(agent)
    # some CLIs take a token only in a shape of their own
    shaped = () if scaffold is None else scaffold.tokens(agent, resolved.secrets.token)
    return replace(resolved, secrets=replace(resolved.secrets, other_tokens=(*resolved.secrets.other_tokens, *shaped)))


def _sealed(spec: RunSpec, benchmark: Benchmark, network: str, model: Base | None) -> dict[str, Any]:
    """Settings of the evaluations on sealed test data."""
    from posttrainbench.gateway.sealed_config import sealed_settings
    from posttrainbench.pipeline import sealed

    sealed.check(spec, network)
    return sealed_settings(
        benchmark.id,
        base_model=spec.base_model if model is None else model.id,
        hours=spec.hours,
        feedback=spec.test_feedback,
        calls=spec.test_calls,
        test_hours=spec.test_hours,
        paid=is_graded(benchmark, spec),
    ).to_json()


def _hub(policy: str, spec: RunSpec, benchmark: Benchmark, model: Base) -> tuple[dict[str, Any] | None, str | None]:
    """Settings of the door to the model hub, and the host's token for it."""
    if policy == CLOSED:
        return None, None
    from posttrainbench.gateway.hub_config import hub_settings

    config, token = hub_settings(
        policy,
        benchmark=benchmark.id,
        base=model.id,
        instruct=model.instruct,
        base_directory=model.directory,
        revision=model.revision,
        data=_data(benchmark, spec),
    )
    return config.to_json(), token


def _data(benchmark: Benchmark, spec: RunSpec) -> list[Path]:
    """The benchmark's data as it is on this machine, so that a copy of it is known by its content."""
    from posttrainbench.evaluation import data

    if benchmark.id not in data.LOADERS:
        return []
    try:
        if spec.data_dir is not None:
            return [data.folder(benchmark.id, Path(spec.data_dir))]
        return data.fetch(benchmark.id, local_only=True)
    except ConfigurationError:
        return []  # not here yet: the hashes in the policy stand alone


def _check_wire(agent: Agent, config: GatewayConfig) -> None:
    """See that the agent's CLI and its provider speak the same language.

    Raises:
        ConfigurationError: they do not.
    """
    provider = config.provider(agent.provider) if agent.provider else None
    spoken = "openai" if agent.wire in ("responses", "chat") else agent.wire
    if provider is not None and provider.wire != spoken:
        raise ConfigurationError(
            f"{agent.scaffold} speaks the {agent.wire} API, and provider {provider.name} is declared as {provider.wire}; "
            "declare another one in a file PTB_PROVIDERS"
        )


def _limits(environ: Mapping[str, str]) -> GatewayLimits:
    """The gateway's patience and sizes, with the operator's changes: `PTB_GATEWAY_LIMITS="patience_s=600,idle_s=300"`.

    Raises:
        ConfigurationError: an unknown name or an impossible value.
    """
    from posttrainbench.gateway import Limits

    known = {entry.name: entry.type for entry in fields(Limits)}
    changed: dict[str, Any] = {}
    for part in filter(None, environ.get("PTB_GATEWAY_LIMITS", "").split(",")):
        name, _, text = part.strip().partition("=")
        try:
            value = int(text) if known[name] == "int" else float(text)
        except KeyError:
            raise ConfigurationError(f"PTB_GATEWAY_LIMITS: there is no {name!r}; known: {', '.join(known)}") from None
        except ValueError:
            raise ConfigurationError(f"PTB_GATEWAY_LIMITS: {name}={text} is no number") from None
        if not (math.isfinite(value) and value > 0):
            raise ConfigurationError(f"PTB_GATEWAY_LIMITS: {name}={text} cannot be; give a number > 0")
        changed[name] = value
    return Limits(**changed)


def is_graded(benchmark: Benchmark, spec: RunSpec) -> bool:
    """Whether the agent's `evaluate.py` needs a grader outside."""
    if benchmark.scoring != "outside":
        return False
    from posttrainbench.evaluation import EvaluationRequest, runner

    request = EvaluationRequest(
        benchmark=benchmark.id, base_model=spec.base_model, template="", output="", grader=spec.grader
    )
    return runner.needs_grader(request)


ENDINGS: Mapping[str, Ending] = {
    "upstream_auth": Ending.AUTH,
    "upstream_quota": Ending.QUOTA,
    "upstream_busy": Ending.NETWORK,
    "network": Ending.NETWORK,
    "gateway_down": Ending.NETWORK,
    "model_refused": Ending.API_REFUSAL,
    "budget": Ending.BUDGET,
}


@dataclass(frozen=True, kw_only=True)
class Base:
    """The run's base model, as the door to the model hub knows it.

    Attributes:
        id: on the hub, or a directory.
        instruct: hub id of its counterpart.
        directory: its files.
        revision: its commit, where it came from the hub.
    """

    id: str
    instruct: str | None = None
    directory: Path | None = None
    revision: str | None = None


@dataclass(frozen=True, kw_only=True)
class Door:
    """The way out of one run, while the agent works.

    Attributes:
        token: what the agent's program shows at the gateway; worth only this run's budget.
        env: environment of everything in the sandbox.
        listeners: for the sandbox's spec.
        secret_values: strings that must never reach the trace.
        gateway: the process behind it; `None` for a run without one.
        metered: whether the agent calls a model.
    """

    token: str = ""
    env: Mapping[str, str] = field(default_factory=dict)
    listeners: Mapping[int, Callable[[socket.socket], None]] = field(default_factory=dict)
    secret_values: Sequence[str] = ()
    gateway: Gateway | None = None
    metered: bool = False

    def troubles(self) -> list[Ending]:
        """Conditions of the model API that hold now."""
        return [] if self.gateway is None else [ENDINGS[event.kind] for event in self.gateway.poll()]

    def answered(self) -> bool:
        """Whether a model has answered; before that there is no agent, only its program."""
        if self.gateway is None or not self.metered:
            return True
        totals = self.gateway.totals()
        return totals.all.calls > totals.failed

    def hopeless(self) -> bool:
        """Whether the model API is so far gone that waiting on cannot help; ends the session."""
        if self.gateway is None:
            return False
        from posttrainbench.gateway import fatal

        return fatal(self.gateway.poll(), self.gateway.config.limits) is not None

    def usage(self) -> dict[str, Any] | None:
        """Tokens by kind, cost and calls; `None` for an agent without a model."""
        return self.gateway.totals().to_json() if self.gateway is not None and self.metered else None


@contextmanager
def opened(context: Context) -> Iterator[Door]:
    """Start the gateway of a run, if it needs one, and stop it at the end of the block.

    Raises:
        ConfigurationError: a key is gone since the run was prepared.
        InfrastructureError: the gateway does not start.
    """
    network = context.spec.network or CLOSED
    model = Base(
        id=context.model.base,
        instruct=context.model.instruct,
        directory=context.base,
        revision=context.record["base_model"]["revision"],
    )
    resolved = resolve_outside(context.agent, context.spec, context.benchmark, network, model=model)
    if resolved is None:
        yield Door()
        return
    from posttrainbench.gateway import Gateway

    directory = context.run.path / "gateway"
    _set_aside(directory)
    certificates: dict[str, str] = {}
    if context.spec.web_tls == web_tls.INTERCEPT and resolved.config.web is not None:
        authority = web_tls.authority(context.run.path.name)
        resolved = replace(resolved, secrets=replace(resolved.secrets, authority=authority))
        certificates = web_tls.hand_over(context.run.job.control, authority["certificate"])
    with Gateway(resolved.config, resolved.secrets, directory) as gateway:
        yield Door(
            token=resolved.secrets.token,
            env=_environment(
                network,
                grader=resolved.config.grader is not None,
                hub=resolved.config.hub is not None,
                sealed=resolved.config.sealed is not None,
                token=resolved.secrets.token,
            )
            | certificates,
            listeners={PORT: _adopter(gateway)},
            secret_values=[value for value in resolved.secrets.values() if value != resolved.secrets.token],
            gateway=gateway,
            metered=bool(context.agent.provider),
        )


def _set_aside(directory: Path) -> None:
    """Keep the logs of an attempt that was interrupted: the new one has a budget of its own."""
    if not directory.exists():
        return
    earlier = directory.with_name("gateway-interrupted")
    earlier.mkdir(exist_ok=True)
    directory.rename(earlier / str(len(list(earlier.iterdir())) + 1))


def _adopter(gateway: Gateway) -> Callable[[socket.socket], None]:
    def adopt(listener: socket.socket) -> None:
        with listener:
            gateway.adopt(listener)

    return adopt


def _environment(network: str, *, grader: bool, hub: bool, sealed: bool, token: str) -> dict[str, str]:
    env: dict[str, str] = {"NO_PROXY": "127.0.0.1,localhost,::1", "no_proxy": "127.0.0.1,localhost,::1"}
    if network != CLOSED:
        names = ("HTTP_PROXY", "HTTPS_PROXY", "http_proxy", "https_proxy")
        # Node reads the variables only when it is told to, from version 24 on
        env |= {**dict.fromkeys(names, GATEWAY), "NODE_USE_ENV_PROXY": "1", "HF_HUB_OFFLINE": "0"}
    if hub:
        # plain downloads through the door; the chunked storage is a host of its own
        env |= {"HF_ENDPOINT": f"{GATEWAY}/hub", "HF_HUB_DISABLE_XET": "1", "HF_HUB_DISABLE_TELEMETRY": "1"}
    if grader:
        env |= {"PTB_GRADER_URL": f"{GATEWAY}/grader", "PTB_GRADER_TOKEN": token}
    if sealed:
        env |= {"PTB_SEALED_URL": f"{GATEWAY}/sealed", "PTB_SEALED_TOKEN": token}
    return env

"""What a gateway is told: the configuration, which goes into `run.json`, and the secrets, which go nowhere but its pipe."""

from __future__ import annotations

import secrets as random_bytes
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, fields
from typing import Any, Literal, get_args

from posttrainbench.errors import ConfigurationError

Wire = Literal["anthropic", "openai", "gemini"]
WIRES: tuple[str, ...] = get_args(Wire)

Auth = Literal["x-api-key", "bearer", "x-goog-api-key", "chatgpt"]
AUTHS: tuple[str, ...] = get_args(Auth)


@dataclass(frozen=True)
class Price:
    """List price of one model, in USD per million tokens. `None` for a kind: it is not offered, or charged as plain input.

    Above `above` tokens of prompt (all input, cached included), the whole call is charged at the `long_*` prices.
    """

    input: float
    output: float
    cache_read: float | None = None
    cache_write: float | None = None
    cache_write_1h: float | None = None
    above: int | None = None
    long_input: float | None = None
    long_output: float | None = None
    long_cache_read: float | None = None
    long_cache_write: float | None = None
    source: str = ""


@dataclass(frozen=True)
class Provider:
    """One API behind the gateway, reached from the sandbox below `/{name}`.

    Attributes:
        name: first part of the path inside, for example `anthropic`.
        wire: the language spoken: paths, error shape, where the model and the usage are.
        upstream: base URL to which the path after the prefix is appended.
        auth: where the real credential goes.
        models: the exact names, as the CLI sends them, that the run may use; `helper_models` likewise, for its small calls.
        strip_version: a leading `/v1` of the inner path is dropped, because `upstream` ends with a version of its own.
        buffer: read a stream to its end before the first byte is forwarded, so that a cut one can be asked for again.
        subscription: paid by a flat login: tokens are counted, costs are not.
        prices: list price by model, for those that have one.
    """

    name: str
    wire: Wire
    upstream: str
    auth: Auth
    models: tuple[str, ...]
    helper_models: tuple[str, ...] = ()
    strip_version: bool = False
    buffer: bool = False
    subscription: bool = False
    prices: Mapping[str, Price] = field(default_factory=dict)

    def allows(self, model: str) -> bool:
        """Whether the run declared `model`."""
        return model in self.models or model in self.helper_models


@dataclass(frozen=True)
class Budget:
    """What a run may spend; `None` is no limit.

    `tokens` counts everything a provider processed: input, cached input and output. `usd` is at list price.
    """

    tokens: int | None = None
    usd: float | None = None


@dataclass(frozen=True)
class Limits:
    """Patience and sizes. Seconds and bytes.

    Attributes:
        patience_s: how long an outage (429, 5xx, no connection, a cut stream) is hidden from the CLI.
        lost_s: how long a refused key, an empty quota, an unknown model or a spent budget is borne before it ends the run.
        connect_s: time to a connection upstream.
        header_s: longest wait for the first byte of an answer; models think for minutes before it.
        idle_s: longest silence within an answer.
        body_s: longest silence while a request arrives.
        body_bytes: largest request. Anthropic's own limit is 32 MB, the largest of the providers'.
        bodies_bytes: all requests held at a time.
        answer_bytes: largest answer held back for a provider with `buffer`.
        connections: connections from the sandbox at a time.
        reserve_tokens: output reserved for a call that states no limit itself.
    """

    patience_s: float = 1800.0
    lost_s: float = 60.0
    connect_s: float = 20.0
    header_s: float = 600.0
    idle_s: float = 600.0
    body_s: float = 60.0
    body_bytes: int = 32 * 1024 * 1024
    bodies_bytes: int = 256 * 1024 * 1024
    answer_bytes: int = 64 * 1024 * 1024
    connections: int = 512
    reserve_tokens: int = 32_000


@dataclass(frozen=True)
class GatewayConfig:
    """Everything about a gateway that may be read by anyone; `to_json` goes into the run's record.

    Attributes:
        providers: the APIs that this run may use.
        server_tools: names of provider-side tools (see docs/gateway.md) that are allowed; the rest is refused.
        web: settings of the web proxy (`gateway.web`), or None for no proxy.
        grader: settings of the grading service (`gateway.grader`), or None for none.
        hub: settings of the model-hub door (`gateway.hub`), or None for none.
        sealed: settings of evaluations on sealed test data (`gateway.sealed`), or None where the agent has the data.
    """

    providers: tuple[Provider, ...] = ()
    budget: Budget = Budget()
    server_tools: tuple[str, ...] = ()
    limits: Limits = Limits()
    web: Mapping[str, Any] | None = None
    grader: Mapping[str, Any] | None = None
    hub: Mapping[str, Any] | None = None
    sealed: Mapping[str, Any] | None = None

    def provider(self, name: str) -> Provider | None:
        """The provider called `name`, if the run has it."""
        return next((provider for provider in self.providers if provider.name == name), None)

    def to_json(self) -> dict[str, Any]:
        """As JSON types; `from_json` gives it back. Holds no secret."""
        return asdict(self)

    @classmethod
    def from_json(cls, value: Mapping[str, Any]) -> GatewayConfig:
        """The inverse of `to_json`.

        Raises:
            ConfigurationError: `value` is not such a configuration.
        """
        try:
            providers = tuple(_provider(row) for row in value.get("providers", ()))
            return cls(
                providers=providers,
                budget=Budget(**value.get("budget", {})),
                server_tools=tuple(value.get("server_tools", ())),
                limits=Limits(**value.get("limits", {})),
                web=value.get("web"),
                grader=value.get("grader"),
                hub=value.get("hub"),
                sealed=value.get("sealed"),
            )
        except (TypeError, KeyError, AttributeError, ValueError) as error:
            raise ConfigurationError(f"not a gateway configuration: {error}") from None


def _provider(row: Mapping[str, Any]) -> Provider:
    values = dict(row)
    for name in ("models", "helper_models"):
        values[name] = tuple(values.get(name, ()))
    values["prices"] = {model: Price(**price) for model, price in values.get("prices", {}).items()}
    provider = Provider(**values)
    if provider.wire not in WIRES or provider.auth not in AUTHS:
        raise ValueError(f"provider {provider.name}: wire {provider.wire!r}, auth {provider.auth!r}")
    return provider


def new_token() -> str:
    """A run token: worthless outside of its run's gateway."""
    return f"ptb-run-{random_bytes.token_hex(24)}"


@dataclass(frozen=True)
class Secrets:
    """What must stay out of the sandbox, the run directory, command lines and environments. Its `repr` shows nothing.

    Attributes:
        token: the run token, the only one of these that goes into the sandbox.
        other_tokens: further forms of it, for CLIs that insist on a shape (a JWT).
        keys: real credential by provider name; the model hub's token is `hub`.
        logins: path of the host's login file by provider name (`chatgpt`); read and refreshed by the gateway.
        token_url: where such a login is refreshed, if not at the vendor's usual address.
        proxy: URL of the proxy that the host must use to reach the world, if any.
        grader: credentials of the grading service.
        authority: `key` and `certificate` (PEM) of the run's own certificate authority, where its tunnels are looked into.
    """

    token: str = field(default_factory=new_token, repr=False)
    other_tokens: tuple[str, ...] = field(default=(), repr=False)
    keys: Mapping[str, str] = field(default_factory=dict, repr=False)
    logins: Mapping[str, str] = field(default_factory=dict, repr=False)
    token_url: str | None = field(default=None, repr=False)
    proxy: str | None = field(default=None, repr=False)
    grader: Mapping[str, str] = field(default_factory=dict, repr=False)
    authority: Mapping[str, str] = field(default_factory=dict, repr=False)

    def to_json(self) -> dict[str, Any]:
        """As JSON types, for the pipe to the gateway only."""
        return asdict(self)

    @classmethod
    def from_json(cls, value: Mapping[str, Any]) -> Secrets:
        """The inverse of `to_json`."""
        known = {each.name for each in fields(cls)}
        values = {name: item for name, item in value.items() if name in known}
        values["other_tokens"] = tuple(values.get("other_tokens", ()))
        return cls(**values)

    def values(self) -> tuple[str, ...]:
        """Every string that must never be written anywhere."""
        found = [self.token, *self.other_tokens, *self.keys.values(), *self.grader.values(), self.proxy or ""]
        return tuple(sorted({value for value in found if len(value) >= 8}, key=len, reverse=True))

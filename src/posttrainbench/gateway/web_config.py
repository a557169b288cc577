"""Settings of the web door, made on the host before a run starts."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from contextlib import suppress
from dataclasses import asdict, dataclass, replace
from typing import Any
from urllib.parse import urlsplit

from posttrainbench.errors import ConfigurationError
from posttrainbench.gateway.config import Provider
from posttrainbench.gateway.settings import known_settings
from posttrainbench.gateway.web_names import Refused, parse_host
from posttrainbench.gateway.web_policy import load_policy, pattern
from posttrainbench.gateway.web_rules import Policy, Rule

# The usual hosts of the APIs that the gateway speaks itself, whatever a run's upstreams are.
_API_HOSTS = {
    "anthropic": (".api.anthropic.com",),
    "openai": (".api.openai.com", "chatgpt.com"),
    "gemini": ("generativelanguage.googleapis.com",),
}

TLS = ("passthrough", "intercept")
"""Whether tunnels are looked into."""


@dataclass(frozen=True, kw_only=True)
class WebConfig:
    """Settings of the web door, as they stand in `GatewayConfig.web`.

    Attributes:
        policy: `open`, `guarded`, `closed`, or the path of a TOML file (docs/web.md).
        internal: hosts that may have private addresses, a company's package mirror for example: `host` for the policy's
            ports, or `host:port`.
        connections: at a time.
        head_s: seconds for a request's head, and for the first bytes in a tunnel.
        connect_s: seconds for one attempt to connect.
        idle_s: longest silence of both sides.
        tls: `passthrough`, or `intercept`: tunnels are looked into, each request is decided on and logged (docs/web.md).
        http2: whether intercepted clients may speak HTTP/2, which costs two thirds of the speed and gains nothing: who
            speaks it speaks HTTP/1.1 as well (but gRPC).
        engine: directory of the interceptor's environment (`intercept_install`).
        benchmark: the run's, for the rules that depend on it.
        known: hashes of test data; a file that has one is not handed out where it is seen.
    """

    policy: str = "guarded"
    internal: tuple[str, ...] = ()
    connections: int = 256
    head_s: float = 30.0
    connect_s: float = 20.0
    idle_s: float = 600.0
    tls: str = "passthrough"
    http2: bool = False
    engine: str = ""
    benchmark: str = ""
    known: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        """Check the words.

        Raises:
            ConfigurationError: `tls` is none of `TLS`.
        """
        if self.tls not in TLS:
            raise ConfigurationError(f"web_tls is to be {' or '.join(TLS)}, not {self.tls!r}")

    def to_json(self) -> dict[str, Any]:
        """As JSON types."""
        return asdict(self)

    @classmethod
    def from_json(cls, value: Mapping[str, Any]) -> WebConfig:
        """The inverse of `to_json`.

        Raises:
            ConfigurationError: an unknown setting.
        """
        return cls(**known_settings(cls, value, of="the web door", lists=("internal", "known")))

    def rules(self) -> Policy:
        """The policy in force, internal hosts included.

        Raises:
            ConfigurationError: no such policy, or a host that is none.
        """
        policy = load_policy(self.policy).of_run(self.benchmark)
        return replace(policy, internal=(*(_internal(text) for text in self.internal), *policy.internal))


def _internal(text: str) -> Rule:
    name, colon, port = text.rpartition(":") if not text.endswith("]") else (text, "", "")
    if colon and not (port.isascii() and port.isdigit() and 0 < int(port) < 65536):
        raise ConfigurationError(f"the internal host {text!r} is to be given as host or host:port")
    host = pattern(name if colon else text, where="internal hosts")
    return Rule(name="internal", hosts=(host,), ports=(int(port),) if colon else ())


def model_apis(providers: Iterable[Provider]) -> Rule:
    """The hosts of the model APIs: an agent speaks to them through the gateway's own paths, where calls are counted."""
    hosts: set[str] = set()
    for provider in providers:
        hosts.update(_API_HOSTS.get(provider.wire, ()))
        name = urlsplit(provider.upstream).hostname
        if name:
            with suppress(Refused):
                hosts.add(parse_host(f"[{name}]" if ":" in name else name).name)
    return Rule(
        name="model-api",
        hosts=tuple(sorted(hosts)),
        message="Model APIs are reached through the base URL in your environment only, not through this proxy.",
    )

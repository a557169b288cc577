"""What a policy of the web door is: rules on hosts and ports, and the decision on one connection.

A policy sees hosts and ports of tunnels; rules with `paths` or `methods` are for requests (web_requests.py). docs/web.md
says what follows from that.
"""

from __future__ import annotations

import ipaddress
import re
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Literal

from posttrainbench.gateway.web_names import Host, Refused
from posttrainbench.gateway.web_requests import RequestRule

Network = ipaddress.IPv4Network | ipaddress.IPv6Network
Pinned = Literal["refuse", "passthrough"]
"""What happens with a host whose certificate of ours a client refuses."""

# Names that mean something on one machine or one network only (RFC 6761, 6762, 7686, 8375, 9476 and common use).
_LOCAL = (
    ".localhost",
    ".local",
    ".internal",
    ".home.arpa",
    ".lan",
    ".corp",
    ".intranet",
    ".private",
    ".onion",
    ".test",
)


@dataclass(frozen=True, kw_only=True)
class Rule:
    """Some hosts and what is to happen with them.

    Attributes:
        name: for the log and for the agent.
        hosts: patterns: `x.org` that name, `.x.org` that name and all below, `*` within a label stands for any of its
            characters (`*-api.x.org`).
        message: said to the agent when the rule refuses.
        ports: ports beyond the policy's; for a rule that allows.
        networks: for internal hosts: where their addresses must be; empty for any but link-local ones.
    """

    name: str
    hosts: tuple[str, ...]
    message: str = ""
    ports: tuple[int, ...] = ()
    networks: tuple[Network, ...] = ()
    _pattern: re.Pattern[str] = field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "_pattern", compiled(self.hosts))

    def matches(self, host: Host) -> bool:
        """Whether one of the patterns is the host."""
        return self._pattern.fullmatch(host.name) is not None


@dataclass(frozen=True, kw_only=True)
class Policy:
    """What is allowed. Refusals come first, then internal hosts, then allowed ones, then the default.

    Attributes:
        allow_others: what happens with a host that no rule names.
        tunnel_ports: ports for CONNECT; TLS is spoken there, or the connection ends.
        plain_ports: ports for `http://`.
        literals: whether addresses may stand in the place of names.
        hidden_names: whether a TLS hello may carry an encrypted server name (ECH).
        others_message: said to the agent for a host that no rule names.
        hub: policy of the door to the model hub (docs/hub.md), `closed` for no door.
        requests: refusals by method and path.
        opaque: hosts whose tunnels are not looked into, where others' are.
        pinned: what happens with a host whose certificate of ours the client refuses, where tunnels are looked into.
    """

    name: str
    allow_others: bool
    refuse: tuple[Rule, ...] = ()
    internal: tuple[Rule, ...] = ()
    allow: tuple[Rule, ...] = ()
    tunnel_ports: tuple[int, ...] = (443,)
    plain_ports: tuple[int, ...] = (80,)
    literals: bool = False
    hidden_names: bool = False
    others_message: str = "This host is not on the list of this run."
    hub: str = "closed"
    requests: tuple[RequestRule, ...] = ()
    opaque: tuple[Rule, ...] = ()
    pinned: Pinned = "refuse"

    def of_run(self, benchmark: str) -> Policy:
        """The policy for a run with this benchmark."""
        bound = (rule.of_run(benchmark) for rule in self.requests)
        return replace(self, requests=tuple(rule for rule in bound if rule is not None))

    def is_opaque(self, host: Host) -> bool:
        """Whether the host's tunnels are left alone."""
        return any(rule.matches(host) for rule in self.opaque)

    def decide(self, host: Host, port: int, *, tunnel: bool) -> Decision:
        """Whether a connection may be made, by which rule.

        Raises:
            Refused: it may not.
        """
        for rule in self.refuse:
            if rule.matches(host):
                raise Refused(rule.name, rule.message or f"{host.name} is refused in this run.")
        named = [rule for rule in (*self.internal, *self.allow) if rule.matches(host)]
        found = named[0] if named else None
        internal = found is not None and found in self.internal
        if found is None and not self.allow_others:
            raise Refused("not-listed", self.others_message)
        if not internal:
            self._check_name(host, named=found is not None)
        ports = self.tunnel_ports if tunnel else self.plain_ports
        if port not in ports and not any(port in rule.ports for rule in named):
            asked = "tunnels (CONNECT)" if tunnel else "http:// URLs"
            hint = " Fetch http:// URLs without a tunnel." if tunnel and port in self.plain_ports else ""
            raise Refused(
                "port", f"Port {port} is not open; {asked} go to {', '.join(map(str, ports)) or 'no port'} only.{hint}"
            )
        return Decision(rule=found.name if found else "others", internal=found if internal else None)

    def _check_name(self, host: Host, *, named: bool) -> None:
        if host.literal:
            if not self.literals and not named:
                raise Refused("address", "Addresses in the place of host names are refused; use the name.")
        elif "." not in host.name or f".{host.name}".endswith(_LOCAL):
            raise Refused("local-name", f"{host.name} is a name of a local network; only public hosts can be reached.")


@dataclass(frozen=True, kw_only=True)
class Decision:
    """An allowed connection.

    Attributes:
        rule: name of the rule, `others` where none names the host.
        internal: the rule that lets the host have a private address; `None` for public hosts.
    """

    rule: str
    internal: Rule | None = None


def compiled(patterns: Sequence[str]) -> re.Pattern[str]:
    """Host patterns as one regular expression."""
    parts = []
    for pattern in patterns:
        below = r"(?:[^.]+\.)*" if pattern.startswith(".") else ""
        parts.append(below + "[^.]*".join(re.escape(piece) for piece in pattern.removeprefix(".").split("*")))
    return re.compile("|".join(parts) or r"(?!)")

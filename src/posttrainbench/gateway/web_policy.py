"""Policies of the web door: which hosts an agent may talk to, as data (TOML), and the decision on one host and port.

Rules with `paths` or `methods` are for requests (web_requests.py): they hold where requests are seen, which is not so in a
tunnel that nobody looks into. docs/web.md says what follows from that.
"""

from __future__ import annotations

import ipaddress
import re
import tomllib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Literal, cast

from posttrainbench.errors import ConfigurationError
from posttrainbench.gateway.web_names import Host, Refused, parse_host
from posttrainbench.gateway.web_requests import RequestRule, translate

Network = ipaddress.IPv4Network | ipaddress.IPv6Network
Pinned = Literal["refuse", "passthrough"]

_SHIPPED = Path(__file__).parent / "policies"
_LARGEST = 2**20
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
        object.__setattr__(self, "_pattern", _compiled(self.hosts))

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


def _compiled(patterns: Sequence[str]) -> re.Pattern[str]:
    parts = []
    for pattern in patterns:
        below = r"(?:[^.]+\.)*" if pattern.startswith(".") else ""
        parts.append(below + "[^.]*".join(re.escape(piece) for piece in pattern.removeprefix(".").split("*")))
    return re.compile("|".join(parts) or r"(?!)")


def names() -> list[str]:
    """The policies that come with the harness."""
    return sorted(path.stem for path in _SHIPPED.glob("*.toml"))


def load_policy(policy: str) -> Policy:
    """A policy by name, or from a TOML file (a path that ends in `.toml`).

    Raises:
        ConfigurationError: no such policy or file, or one that cannot be understood; one line that says where.
    """
    return _Reader().load(policy)


@dataclass
class _Reader:
    """Reads a file and those that it extends."""

    seen: list[Path] = field(default_factory=list)

    def load(self, policy: str) -> Policy:
        path = Path(policy) if policy.endswith(".toml") else _SHIPPED / f"{policy}.toml"
        if not policy.endswith(".toml") and policy not in names():
            raise ConfigurationError(
                f"there is no web policy {policy!r}; known are {', '.join(names())}, or name a file that ends in .toml"
            )
        if path in self.seen or len(self.seen) > 8:
            raise ConfigurationError(f"the web policy {path} extends itself")
        self.seen.append(path)
        try:
            if path.stat().st_size > _LARGEST:
                raise ConfigurationError(f"the web policy {path} is larger than {_LARGEST} bytes")
            table = tomllib.loads(path.read_text(encoding="utf-8"))
        except OSError as error:
            raise ConfigurationError(f"the web policy {path} cannot be read: {error.strerror}") from None
        except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
            raise ConfigurationError(f"the web policy {path} is not TOML: {error}") from None
        return self._policy(table, path)

    def _policy(self, table: Mapping[str, Any], path: Path) -> Policy:
        known = {
            "name", "about", "extends", "default", "default_message", "tunnel_ports", "plain_ports", "literals",
            "hidden_names", "refuse", "internal", "allow", "hub", "opaque", "pinned",
        }  # fmt: skip
        _only(table, known, path)
        base: Policy | None = None
        if "extends" in table:
            parent = _text(table["extends"], "extends", path)
            base = self.load(str(path.parent / parent) if parent.endswith(".toml") else parent)
        default = table.get("default", None if base is None else ("allow" if base.allow_others else "refuse"))
        if default not in ("allow", "refuse"):
            raise ConfigurationError(f'the web policy {path} needs default = "allow" or default = "refuse"')
        inherited = base or Policy(name="", allow_others=False)
        return Policy(
            name=_text(table.get("name", path.stem), "name", path),
            allow_others=default == "allow",
            refuse=_rules(table, "refuse", path) + inherited.refuse,
            requests=_requests(table, path) + inherited.requests,
            opaque=_rules(table, "opaque", path) + inherited.opaque,
            pinned=_pinned(table.get("pinned", inherited.pinned), path),
            internal=_rules(table, "internal", path) + inherited.internal,
            allow=_rules(table, "allow", path) + inherited.allow,
            tunnel_ports=_ports(table, "tunnel_ports", path) if "tunnel_ports" in table else inherited.tunnel_ports,
            plain_ports=_ports(table, "plain_ports", path) if "plain_ports" in table else inherited.plain_ports,
            literals=_flag(table.get("literals", inherited.literals), "literals", path),
            hidden_names=_flag(table.get("hidden_names", inherited.hidden_names), "hidden_names", path),
            hub=_hub(table, inherited.hub if base else ("guarded" if default == "allow" else "closed"), path),
            others_message=_text(table.get("default_message", inherited.others_message), "default_message", path),
        )


def _only(table: Mapping[str, Any], known: set[str], path: Path) -> None:
    unknown = sorted(set(table) - known)
    if unknown:
        raise ConfigurationError(
            f"the web policy {path} has an unknown key {unknown[0]!r}; known: {', '.join(sorted(known))}"
        )


_ON_REQUESTS = frozenset(("paths", "methods", "but", "benchmark_paths"))


def _tables(table: Mapping[str, Any], kind: str, path: Path) -> list[dict[str, Any]]:
    given = table.get(kind, [])
    if not isinstance(given, list) or not all(isinstance(entry, dict) for entry in given):
        raise ConfigurationError(f"the web policy {path}: {kind} is to be written as [[{kind}]] tables")
    return given


def _requests(table: Mapping[str, Any], path: Path) -> tuple[RequestRule, ...]:
    """The refusals that are about requests."""
    rules = []
    for entry in _tables(table, "refuse", path):
        if not _ON_REQUESTS & set(entry):
            continue
        _only(entry, {"rule", "hosts", "message", *_ON_REQUESTS}, path)
        hosts = None
        if "hosts" in entry:
            names = _texts(entry["hosts"], "hosts", path)
            hosts = _compiled([pattern(host, where=f"the web policy {path}") for host in names])
        by_benchmark = entry.get("benchmark_paths", {})
        if not isinstance(by_benchmark, dict):
            raise ConfigurationError(f"the web policy {path}: benchmark_paths is to be a table of lists")
        rules.append(
            RequestRule(
                name=_text(entry.get("rule", "refuse"), "rule", path),
                message=_text(entry.get("message", ""), "message", path),
                hosts=hosts,
                methods=frozenset(each.upper() for each in _texts(entry.get("methods", []), "methods", path)),
                paths=_globs(entry.get("paths", []), "paths", path),
                but=_globs(entry.get("but", []), "but", path),
                benchmark_paths={
                    name: _globs(value, f"benchmark_paths.{name}", path) for name, value in by_benchmark.items()
                },
            )
        )
    return tuple(rules)


def _texts(value: Any, key: str, path: Path) -> tuple[str, ...]:
    if not isinstance(value, list):
        raise ConfigurationError(f"the web policy {path}: {key} is to be a list of texts")
    return tuple(_text(each, key, path) for each in value)


def _globs(value: Any, key: str, path: Path) -> tuple[str, ...]:
    found = _texts(value, key, path)
    for each in found:
        try:
            translate(each)
        except ValueError as error:
            raise ConfigurationError(f"the web policy {path}: {key}: {error}") from None
    return found


def _pinned(value: Any, path: Path) -> Pinned:
    if value not in ("refuse", "passthrough"):
        raise ConfigurationError(f'the web policy {path}: pinned is to be "refuse" or "passthrough"')
    return cast("Pinned", value)


def _rules(table: Mapping[str, Any], kind: str, path: Path) -> tuple[Rule, ...]:
    rules = []
    extra = {"refuse": {"message"}, "allow": {"ports"}, "internal": {"ports", "networks"}, "opaque": set()}[kind]
    for entry in _tables(table, kind, path):
        if kind == "refuse" and _ON_REQUESTS & set(entry):
            continue
        _only(entry, {"rule", "hosts", *extra}, path)
        hosts = entry.get("hosts")
        if not isinstance(hosts, list) or not hosts:
            raise ConfigurationError(f"the web policy {path}: a [[{kind}]] table has no list of hosts")
        networks = entry.get("networks", [])
        rules.append(
            Rule(
                name=_text(entry.get("rule", kind), "rule", path),
                hosts=tuple(pattern(_text(host, "hosts", path), where=f"the web policy {path}") for host in hosts),
                message=_text(entry.get("message", ""), "message", path),
                ports=_ports(entry, "ports", path),
                networks=tuple(_network(value, path) for value in networks),
            )
        )
    return tuple(rules)


def pattern(text: str, *, where: str) -> str:
    """A host pattern in its one spelling.

    Raises:
        ConfigurationError: it could match nothing, or everything.
    """
    dot = "." if text.startswith(".") else ""
    body = text.removeprefix(".")
    try:
        # a star stands for a letter while the name is checked
        name = parse_host(body.replace("*", "a")).name if "*" in body else parse_host(body).name
    except Refused as error:
        raise ConfigurationError(f"{where}: the host pattern {text!r} cannot be used: {error.message}") from None
    if "*" in body:
        if "." not in name.strip("a"):
            raise ConfigurationError(f"{where}: the host pattern {text!r} is too wide; write default = instead")
        name = body.lower().removesuffix(".")
    return dot + name


def _network(value: Any, path: Path) -> Network:
    try:
        return ipaddress.ip_network(_text(value, "networks", path))
    except ValueError as error:
        raise ConfigurationError(f"the web policy {path}: {error}") from None


def _ports(table: Mapping[str, Any], key: str, path: Path) -> tuple[int, ...]:
    value = table.get(key, [])
    if not isinstance(value, list) or not all(type(port) is int and 0 < port < 65536 for port in value):
        raise ConfigurationError(f"the web policy {path}: {key} is to be a list of port numbers")
    return tuple(value)


def _hub(table: Mapping[str, Any], inherited: str, path: Path) -> str:
    """The hub's policy; a file is looked for beside the one that names it."""
    found = _text(table.get("hub", inherited), "hub", path)
    return str((path.parent / found).absolute()) if "hub" in table and found.endswith(".toml") else found


def _text(value: Any, key: str, path: Path) -> str:
    if not isinstance(value, str):
        raise ConfigurationError(f"the web policy {path}: {key} is to be text")
    return value


def _flag(value: Any, key: str, path: Path) -> bool:
    if not isinstance(value, bool):
        raise ConfigurationError(f"the web policy {path}: {key} is to be true or false")
    return value

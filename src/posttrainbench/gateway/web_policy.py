"""Policies of the web door as files (TOML): which hosts an agent may talk to, and what it may ask of them. docs/web.md."""

from __future__ import annotations

import ipaddress
import tomllib
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, cast

from posttrainbench.errors import ConfigurationError
from posttrainbench.gateway.web_globs import Globs
from posttrainbench.gateway.web_names import Refused, parse_host
from posttrainbench.gateway.web_requests import RequestRule
from posttrainbench.gateway.web_rules import Network, Pinned, Policy, Rule, compiled

_SHIPPED = Path(__file__).parent / "policies"
_LARGEST = 2**20


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
            hosts = compiled([pattern(host, where=f"the web policy {path}") for host in names])
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
            Globs([each])
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

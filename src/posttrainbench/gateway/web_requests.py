"""Rules on requests, by method and path, where they are seen: `http://`, and TLS that is intercepted."""

from __future__ import annotations

import posixpath
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any
from urllib.parse import unquote

from posttrainbench.gateway.web_globs import Globs
from posttrainbench.gateway.web_names import Host, Refused, parse_authority

LONGEST_TARGET = 16_384
_DECODED = 3
_VERSION = re.compile(r"HTTP/(1\.[01]|2(\.0)?)")


@dataclass(frozen=True, kw_only=True)
class RequestRule:
    """Requests that are refused.

    Attributes:
        name: for the log and for the agent.
        message: what the agent reads.
        hosts: pattern over host names; `None` for every host.
        methods: upper case; empty for every method.
        paths: globs over the path, and over path and query, both in lower case and without escapes: `*` stands for any
            characters, `?` for one, `{a,b}` for a or b. Empty for every path.
        but: globs of exceptions, over the path.
        benchmark_paths: further globs, for runs with a benchmark.
    """

    name: str
    message: str = ""
    hosts: re.Pattern[str] | None = None
    methods: frozenset[str] = frozenset()
    paths: tuple[str, ...] = ()
    but: tuple[str, ...] = ()
    benchmark_paths: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    _paths: Globs = field(init=False, repr=False, compare=False)
    _but: Globs = field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        everything = ("*",) if not self.benchmark_paths else ()
        object.__setattr__(self, "_paths", Globs(self.paths or everything))
        object.__setattr__(self, "_but", Globs(self.but))

    def of_run(self, benchmark: str) -> RequestRule | None:
        """The rule for a run with this benchmark; `None` if it does not bind it."""
        paths = self.paths + self.benchmark_paths.get(benchmark, ())
        return replace(self, paths=paths, benchmark_paths={}) if paths or not self.benchmark_paths else None

    def matches(self, host: Host, method: str, target: Target) -> bool:
        """Whether a request is one of those: by any reading of its target, and by none of them an exception."""
        if self.hosts is not None and not self.hosts.fullmatch(host.name):
            return False
        if self.methods and method.upper() not in self.methods:
            return False
        if not any(map(self._paths.matches, target.readings)):
            return False
        return not all(map(self._but.matches, target.paths))


@dataclass(frozen=True)
class Target:
    """Path and query of a request.

    Attributes:
        path: as it came, without the query.
        query: as it came; `None` without one.
        paths: what the path may mean to a server: as it is, without escapes, with dots, backslashes and double slashes
            resolved; in lower case.
        readings: the same, each also with the query.
        tricky: whether some reading leaves a directory (`..`) or holds control characters.
    """

    path: str
    query: str | None
    paths: frozenset[str]
    readings: frozenset[str]
    tricky: bool


def read_target(raw: str) -> Target:
    """Read what follows the host in a URL.

    Raises:
        Refused: it is too long.
    """
    if len(raw) > LONGEST_TARGET:
        raise Refused("malformed", f"The URL has more than {LONGEST_TARGET} characters.", status=414)
    path, mark, query = raw.partition("?")
    forms = _decodings(path)
    tricky = any(".." in re.split(r"[/\\;]", form) or re.search(r"[\x00-\x1f\x7f]", form) for form in forms)
    paths = {reading for form in forms for reading in (form.casefold(), _normal(form))}
    asked = {form.casefold() for form in _decodings(query)} if mark else set()
    readings = paths | {f"{each}?{one}" for each in paths for one in asked}
    return Target(path, query if mark else None, frozenset(paths), frozenset(readings), tricky)


def _decodings(text: str) -> list[str]:
    found = [text]
    while len(found) <= _DECODED and (further := unquote(found[-1], errors="replace")) != found[-1]:
        found.append(further)
    return found


def _normal(path: str) -> str:
    path = re.sub(r"/{2,}", "/", path.replace("\\", "/"))
    end = "/" if path.endswith("/") and path != "/" else ""
    return (posixpath.normpath("/" + path.lstrip("/")) + end).casefold()


def check_request(rules: Iterable[RequestRule], host: Host, method: str, target: Target) -> None:
    """Look at one request.

    Raises:
        Refused: a rule names it, or it is written so that two programs could read it differently.
    """
    rules = tuple(rules)
    if rules and target.tricky:
        raise Refused("path-trick", "Paths with '..' or control characters are refused; write the plain path.")
    for rule in rules:
        if rule.matches(host, method, target):
            raise Refused(rule.name, rule.message or f"This request to {host.name} is refused in this run.")


def judge(message: Mapping[str, Any], host: Host, port: int) -> Target:
    """Read an intercepted request, as the interceptor tells of it (interceptor/proxy.py).

    Args:
        message: `method`, `target`, `scheme`, `authority`, `hosts`, `http`, `upgrade`, `invalid`.
        host, port: of the tunnel.

    Raises:
        Refused: it is no plain request to this host, in one way of reading.
    """
    version, raw = message["http"], message["target"]
    if message["invalid"]:
        raise Refused("malformed", "The message is not correct HTTP.", status=400)
    if message["scheme"] != "https":
        raise Refused("not-tls", "Only https may be spoken in a tunnel.")
    if not _VERSION.fullmatch(version):
        raise Refused("malformed", "This version of HTTP is not spoken here.", status=505)
    named = [*message["hosts"], *([message["authority"]] if message["authority"] else [])]
    twice = len(message["hosts"]) > 1 or (not version.startswith("HTTP/2") and message["authority"])
    if not named or twice:
        raise Refused("malformed", "The request does not name its host in exactly one way.", status=400)
    for text in named:
        if parse_authority(text, default_port=443) != (host, port):
            raise Refused("host-mismatch", f"The tunnel is for {host.in_url()}, the request for another host.")
    if message["upgrade"]:
        raise Refused("upgrade", "WebSockets and other protocols are not available here.")
    of_server = raw == "*" and message["method"] == "OPTIONS"
    if message["method"] == "CONNECT" or not (raw.startswith("/") or of_server):
        raise Refused("malformed", "The target is no path.", status=400)
    return read_target(raw)

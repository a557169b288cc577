"""The requests and answers of the web door as messages: what is asked, what goes on, how a refusal looks."""

from __future__ import annotations

import re
import time
from dataclasses import asdict, dataclass
from typing import Any

from posttrainbench.gateway.interceptor.content import acceptable
from posttrainbench.gateway.web_http import Head, encode, end_to_end, malformed
from posttrainbench.gateway.web_names import Host, Refused, parse_authority
from posttrainbench.gateway.web_upstream import Upstream

PART = (
    "Parts of files of up to 64 MiB are not handed out, because files are known by their whole content: ask for the whole "
    "file, without a Range."
)
COPY = "This file has the content of a test file of the benchmark that this run is about, whatever its name and place."
_LONGEST_FIELD = 300
_ONLY_WHERE_SEEN = ("query", "http", "range", "sha256")
_REASONS = {
    400: "Bad Request",
    431: "Head Too Large",
    502: "Bad Gateway",
    503: "Busy",
    504: "No Answer",
    505: "HTTP/1.1 Only",
}


@dataclass
class Record:
    """What goes into the log about one request, or about a tunnel in which none was seen.

    Attributes:
        level: whether the `request` was seen, or its `host` only.
        http, range, sha256: of intercepted requests; `sha256` of an answer's body as it came, where all of it passed.
    """

    method: str = ""
    host: str = ""
    port: int | None = None
    level: str = "host"
    path: str | None = None
    query: str | None = None
    address: str | None = None
    sni: str | None = None
    allowed: bool = False
    rule: str = ""
    status: int | None = None
    error: str | None = None
    up: int = 0
    down: int = 0
    http: str | None = None
    range: str | None = None
    sha256: str | None = None

    def __post_init__(self) -> None:
        self.began = self.touched = time.monotonic()
        self.answering = False
        # requests within a tunnel that have lines of their own
        self.requests = 0

    def moved(self, count: str, size: int) -> None:
        """Bytes have gone `up` or `down`."""
        self.touched = time.monotonic()
        setattr(self, count, getattr(self, count) + size)

    def fields(self) -> dict[str, Any]:
        """For the log; nothing longer than an agent may make it."""
        found = {
            name: value[:_LONGEST_FIELD] if isinstance(value, str) else value for name, value in asdict(self).items()
        }
        for name in _ONLY_WHERE_SEEN:
            if found[name] is None:
                del found[name]
        return {**found, "seconds": round(time.monotonic() - self.began, 3)}


def refusal_text(refused: Refused, *, policy: str) -> str:
    """What an agent reads."""
    if refused.status == 403:
        return f"Refused by the network policy {policy!r} of this run, rule {refused.rule!r}.\n{refused.message}\n"
    return f"{refused.message} (rule {refused.rule!r})\n"


def refusal(refused: Refused, *, policy: str) -> bytes:
    """The answer to a refused request. Clients of tunnels show its status line and nothing else, so that names the rule."""
    raw = refusal_text(refused, policy=policy).encode("ascii", "backslashreplace")
    headers = [
        (b"Content-Type", b"text/plain; charset=us-ascii"),
        (b"Content-Length", b"%d" % len(raw)),
        (b"X-PTB-Rule", refused.rule.encode()),
        (b"Connection", b"close"),
    ]
    reason = _REASONS.get(refused.status, f"Refused by policy {policy}")
    line = f"HTTP/1.1 {refused.status} {reason}: {refused.rule}"
    return encode(line.encode("ascii", "backslashreplace"), headers) + raw


def text_of(raw: bytes) -> str:
    try:
        return raw.decode("utf-8")
    except UnicodeDecodeError:
        raise malformed("a host name that is not UTF-8") from None


def read_url(head: Head, record: Record) -> tuple[Host, int, bytes]:
    found = re.fullmatch(rb"([A-Za-z][A-Za-z0-9+.-]*)://([^/?]*)(.*)", head.line[1], re.DOTALL)
    if not found:
        raise malformed("its target is no http:// URL")
    scheme, authority, path = found[1].lower(), text_of(found[2]), found[3]
    target = path.decode("ascii", "backslashreplace")
    record.host, record.level = authority, "request"
    record.path, mark, query = target.partition("?")
    record.query = query if mark else None
    if scheme == b"https":
        raise Refused("https-url", "https:// URLs need a tunnel: your client has to send CONNECT host:443.")
    if scheme != b"http":
        raise Refused("scheme", "Only http:// and https:// are available here.")
    if b"#" in path:
        raise malformed("its target has a fragment")
    host, port = parse_authority(authority, default_port=80)
    record.host, record.port = host.name, port
    return host, port, path if path.startswith(b"/") else b"/" + path


def same_host(head: Head, host: Host, port: int, *, default_port: int) -> None:
    values = head.all(b"host")
    if len(values) > 1 or (not values and head.line[2] == b"HTTP/1.1" and head.line[0] != b"CONNECT"):
        raise malformed("it has not exactly one Host header")
    for value in values:
        if parse_authority(text_of(value), default_port=default_port) != (host, port):
            raise Refused("host-mismatch", f"The Host header is not {host.in_url()}, the host that was asked for.")


def outgoing(
    head: Head, host: Host, port: int, path: bytes, length: int | None, upstream: Upstream, *, looking: bool = False
) -> bytes:
    """The request's head as it goes on: built anew, with our own Host and length, and the end of the connection.

    Args:
        head, host, port, path, length: what was asked.
        upstream: where it goes.
        looking: whether the answer is to be one that can be looked into.
    """
    authority = host.in_url().encode() + (b"" if port == 80 else b":%d" % port)
    extra = [(b"Host", authority), (b"Connection", b"close")]
    target = path
    if upstream.proxy is not None:
        target = b"http://" + authority + path
        if upstream.proxy.authorization:
            extra.append((b"Proxy-Authorization", upstream.proxy.authorization))
    if length is None:
        extra.append((b"Transfer-Encoding", b"chunked"))
    elif length or head.all(b"content-length"):
        extra.append((b"Content-Length", b"%d" % length))
    kept = end_to_end(head.headers)
    if looking:
        asked = b",".join(head.all(b"accept-encoding")).decode("latin-1")
        kept = [each for each in kept if each[0].lower() != b"accept-encoding"]
        extra.append((b"Accept-Encoding", acceptable(asked).encode("latin-1")))
    return encode(b" ".join((head.line[0], target, head.line[2])), [*extra, *kept])

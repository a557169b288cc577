"""What every part of the gateway process shares, and the places where other parts join it.

`gateway.web` (the web proxy), `gateway.grader` (the grading service), `gateway.sealed` (scores on sealed test data) and
`gateway.hub` (the model hub) are separate modules with one entry each:

    async def web.handle(reader: asyncio.StreamReader, writer: asyncio.StreamWriter, context: Context) -> None
        A connection whose first request is `CONNECT host:port` or has an absolute form (`GET http://...`). Nothing of it has
        been consumed from `reader`. Called only where `context.config.web` is set. Closes the writer itself.

    async def grader.handle(request: aiohttp.web.BaseRequest, context: Context) -> aiohttp.web.StreamResponse
        A request whose path begins with `/grader/` and which carried the run's token. The body has not been read; it must be
        read in pieces with a bound (`request.content`). Called only where `context.config.grader` is set.

    async def hub.handle(request: aiohttp.web.BaseRequest, context: Context) -> aiohttp.web.StreamResponse
        A request whose path begins with `/hub/`, with or without a token. Called only where `context.config.hub` is set.

    async def sealed.handle(request: aiohttp.web.BaseRequest, context: Context) -> aiohttp.web.StreamResponse
        As `grader.handle`, below `/sealed/`, where `context.config.sealed` is set.

All are cancelled when the client goes away.
"""

from __future__ import annotations

import asyncio
import contextlib
import errno
import json
import os
import re
from collections.abc import Callable
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from posttrainbench.gateway.config import GatewayConfig, Secrets

if TYPE_CHECKING:
    import aiohttp

T = TypeVar("T")
_KIND = re.compile(r"[a-z][a-z0-9_-]{0,30}")
# an agent can ask a million times; what it asks must not fill the results disk
_LARGEST_LOG = 512 * 1024 * 1024
_ROOM = 4 * 1024 * 1024


_MOST_SAID = 2000
_said = 0


def say(text: str) -> None:
    """A line in the process's own log (its standard error). Never raises: that log can be on the disk that is full.

    A process says no more than so many: what it says may be caused by an agent.
    """
    global _said
    _said += 1
    if _said <= _MOST_SAID:
        with contextlib.suppress(OSError):
            os.write(2, f"{utc()} {text}\n".encode("utf-8", "backslashreplace"))


def utc(seconds: float | None = None) -> str:
    """A point in time (default: now; seconds since 1970) in ISO 8601, UTC, milliseconds."""
    moment = datetime.now(UTC) if seconds is None else datetime.fromtimestamp(seconds, UTC)
    return moment.isoformat(timespec="milliseconds").replace("+00:00", "Z")


@dataclass
class Context:
    """The gateway process as its parts see it.

    Attributes:
        config: what it was told.
        secrets: the real credentials; nothing of it may be logged (`log` and `clean` remove them by value).
        directory: `RUN/gateway`; the only place it writes to.
        tasks: background tasks; cancelled and awaited at the end. Add yours here so that they are not collected.
        parts: what a part keeps for the life of the process, by its name; use `part`.
    """

    config: GatewayConfig
    secrets: Secrets
    directory: Path
    tasks: set[asyncio.Task[Any]] = field(default_factory=set)
    parts: dict[str, Any] = field(default_factory=dict)
    _session: aiohttp.ClientSession | None = None
    _files: dict[str, int] = field(default_factory=dict)
    _sizes: dict[str, int] = field(default_factory=dict)
    # logs whose last line did not get onto the disk, or not all of it
    _torn: set[str] = field(default_factory=set)

    def session(self) -> aiohttp.ClientSession:
        """The client for calls upstream: no cookies, no redirects followed by default, bodies not decompressed."""
        import aiohttp

        if self._session is None or self._session.closed:
            limits = self.config.limits
            self._session = aiohttp.ClientSession(
                connector=aiohttp.TCPConnector(limit=0, ttl_dns_cache=60),
                cookie_jar=aiohttp.DummyCookieJar(),
                auto_decompress=False,
                trust_env=False,
                timeout=aiohttp.ClientTimeout(total=None, sock_connect=limits.connect_s),
                read_bufsize=2**17,
                max_line_size=2**16,
                max_field_size=2**16,
            )
        return self._session

    def part(self, name: str, make: Callable[[Context], T]) -> T:
        """What a part of the gateway (`web`, `grader`) keeps for the life of the process: made when it is first needed.

        Raises:
            PTBError: of `make`; it is tried again the next time.
        """
        if name not in self.parts:
            self.parts[name] = make(self)
        found: T = self.parts[name]
        return found

    def clean(self, text: str) -> str:
        """`text` with every secret replaced by `[secret]`."""
        for value in self.secrets.values():
            if value in text:
                text = text.replace(value, "[secret]")
        return text

    def log(self, kind: str, **fields: Any) -> None:
        """Append one JSON line with the UTC time to `directory/{kind}.jsonl`. Secrets are removed by value.

        Survives a kill of this process at once; a power cut may take the last lines. Lines over the file's bound (512 MB)
        are dropped. Never raises for a full disk: the gateway serves on, and says so on its standard error.
        """
        if not _KIND.fullmatch(kind):
            raise ValueError(f"not a kind of log: {kind!r}")
        line = self.clean(json.dumps({"time": utc(), **fields}, ensure_ascii=False, default=str))
        self.append(kind, line)

    def full(self, kind: str) -> bool:
        """Whether a log has no room for further lines: at its bound, or on a full disk."""
        try:
            self._open(kind)
        except OSError:
            return True
        if kind in self._torn:
            self.log(kind, event="written again")
        return kind in self._torn or self._sizes[kind] > _LARGEST_LOG - _ROOM

    def append(self, kind: str, line: str) -> int | None:
        """Append one ready line; returns the file's descriptor (for `fsync`), or None where nothing was written."""
        data = line.encode("utf-8", "backslashreplace") + b"\n"
        try:
            descriptor = self._open(kind)
            if self._sizes[kind] + len(data) > _LARGEST_LOG:
                return None
            if kind in self._torn:
                data = b"\n" + data
            written = os.write(descriptor, data)
            self._sizes[kind] += written
            if written < len(data):
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        except OSError as error:
            self._torn.add(kind)
            say(f"cannot write {kind}.jsonl: {error}")
            return None
        self._torn.discard(kind)
        return descriptor

    def _open(self, kind: str) -> int:
        if kind not in self._files:
            path = self.directory / f"{kind}.jsonl"
            flags = os.O_RDWR | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC | os.O_NOFOLLOW
            descriptor = os.open(path, flags, 0o644)
            size = os.fstat(descriptor).st_size
            # a line that a crash tore is closed, so that the next one stands by itself
            if size and os.pread(descriptor, 1, size - 1) != b"\n":
                size += os.write(descriptor, b"\n")
            self._files[kind], self._sizes[kind] = descriptor, size
        return self._files[kind]

    async def close(self) -> None:
        """End background tasks, connections and files."""
        for task in list(self.tasks):
            task.cancel()
        await asyncio.gather(*self.tasks, return_exceptions=True)
        if self._session is not None:
            await self._session.close()
        for descriptor in self._files.values():
            os.close(descriptor)
        self._files.clear()

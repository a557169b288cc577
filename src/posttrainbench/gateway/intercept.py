"""The gateway's side of intercepted tunnels: starts the interceptor, hands it connections, decides on and logs each request.

The interceptor (mitmproxy, `interceptor/`) sees what is in a tunnel and knows nothing; the gateway knows the rules. Client
and server connections go over as descriptors, so bytes pass through one process only. If it dies, its tunnels are cut, their
requests are logged as such, and a new one is started for the next tunnel; without one there is no way through.
"""

from __future__ import annotations

import asyncio
import base64
import json
import os
import socket
import subprocess
import time
from collections import OrderedDict, deque
from collections.abc import Awaitable, Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from posttrainbench.gateway.context import say
from posttrainbench.gateway.interceptor.channel import Channel, Message, pair
from posttrainbench.gateway.web_config import WebConfig
from posttrainbench.gateway.web_messages import COPY, PART, Record, refusal_text
from posttrainbench.gateway.web_names import Host, Refused
from posttrainbench.gateway.web_requests import check_request, judge
from posttrainbench.gateway.web_rules import Policy

if TYPE_CHECKING:
    from posttrainbench.gateway.context import Context

PROGRAM = Path(__file__).parent / "interceptor"
_START_S = 60.0
_DEATHS, _WINDOW_S = 20, 600.0
_COPIES = 1000
_MORE_CONNECTIONS = 64
DOWN = "The part of the gateway that looks into tunnels has failed; there is no https now. Try again in a minute."


@dataclass
class Tunnel:
    """A connection that the interceptor has.

    Attributes:
        connect: makes a further connection to the host.
        ended: its last word; an error, or `None`.
    """

    host: Host
    port: int
    record: Record
    rule: str
    connect: Callable[[], Awaitable[socket.socket]]
    ended: asyncio.Future[str | None]
    flows: set[int] = field(default_factory=set)
    connections: int = 0


class Interceptor:
    """The interceptor's process, started when it is first needed.

    Args:
        context: the gateway's; `secrets.authority` is the run's certificate authority.
        config: the door's.
        policy: in force.
        log: writes a finished record.
    """

    def __init__(self, context: Context, config: WebConfig, policy: Policy, log: Callable[[Record], None]) -> None:
        self._context, self._config, self._policy, self._log = context, config, policy, log
        self._known = frozenset(config.known)
        self._process: subprocess.Popen[bytes] | None = None
        self._channel: Channel | None = None
        self._starting = asyncio.Lock()
        self._ready: asyncio.Future[bool] | None = None
        self._deaths: deque[float] = deque(maxlen=_DEATHS)
        self._tunnels: dict[int, Tunnel] = {}
        self._flows: dict[int, tuple[Record, Tunnel]] = {}
        self._count = 0
        self._tasks: set[asyncio.Task[None]] = set()
        # addresses whose files turned out to be test data: the next request gets the words, where the first was only cut
        self._copies: OrderedDict[tuple[str, str], None] = OrderedDict()
        self._parts: OrderedDict[tuple[str, str], None] = OrderedDict()

    # the process

    async def start(self) -> None:
        """See that there is a process.

        Raises:
            Refused: there is none, and none can be started.
        """
        async with self._starting:
            if self._channel is not None:
                return
            now = time.monotonic()
            if len(self._deaths) == _DEATHS and now - self._deaths[0] < _WINDOW_S:
                raise Refused("interceptor-down", DOWN, status=503)
            try:
                await asyncio.wait_for(self._start(), _START_S)
            except (OSError, TimeoutError, ValueError) as error:
                self._end(f"does not start: {error or 'no answer'}")
                raise Refused("interceptor-down", DOWN, status=503) from None

    async def _start(self) -> None:
        ours, theirs = pair()
        with theirs:
            process = self._process = subprocess.Popen(
                # isolated: neither variables nor the working directory change what is imported
                [str(Path(self._config.engine) / "bin" / "python"), "-I", str(PROGRAM), str(theirs.fileno())],
                stdin=subprocess.PIPE,
                stdout=2,
                env={"PATH": os.defpath, "LANG": "C.UTF-8"},
                cwd="/",
                pass_fds=(theirs.fileno(),),
            )
        self._ready = asyncio.get_running_loop().create_future()
        self._channel = Channel(ours, self._message, lambda: self._end("died"))
        guard = asyncio.create_task(self._guard(process))
        self._context.tasks.add(guard)
        guard.add_done_callback(self._context.tasks.discard)
        settings = {
            "authority": dict(self._context.secrets.authority),
            "trust": trusted(),
            "http2": self._config.http2,
            "idle_s": self._config.idle_s,
            "known": sorted(self._known),
        }
        # to a process that is not there yet, so not in this loop
        await asyncio.to_thread(_tell, process, json.dumps(settings).encode())
        left = await self._ready
        self._context.log("web", event="interceptor-start", pid=process.pid, own_network=left)

    async def _guard(self, process: subprocess.Popen[bytes]) -> None:
        """End the process with the gateway."""
        try:
            await asyncio.Event().wait()
        finally:
            if self._process is process and self._channel is not None:
                self._channel.close()
            process.kill()
            process.wait()

    def _end(self, why: str) -> None:
        """The process is gone, or to go: nothing of it is left, and all that it had is cut."""
        process, channel = self._process, self._channel
        self._process = self._channel = None
        if process is not None:
            self._deaths.append(time.monotonic())
        if channel is not None:
            channel.close()
        if self._ready is not None and not self._ready.done():
            self._ready.set_exception(ValueError(why))
        for record, _ in list(self._flows.values()):
            record.error = "the interceptor died"
            self._log(record)
        self._flows.clear()
        for tunnel in list(self._tunnels.values()):
            if not tunnel.ended.done():
                tunnel.ended.set_result("the interceptor died")
        if process is not None:
            process.kill()
            code = process.wait()
            say(f"the interceptor {why} (exit status {code})")
            self._context.log("web", event="interceptor-death", pid=process.pid, error=why, code=code)

    def _spawn(self, work: Any) -> None:
        task = asyncio.ensure_future(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    # tunnels

    async def carry(
        self,
        tunnel_record: Record,
        host: Host,
        *,
        first: bytes,
        client: socket.socket,
        upstream: socket.socket,
        connect: Callable[[], Awaitable[socket.socket]],
    ) -> None:
        """Have a tunnel served to its end; closes both sockets.

        Args:
            tunnel_record: of the tunnel; gets what became of it.
            host: that it was opened for.
            first: what has been read from the client: its hello.
            client, upstream: both ends, unread.
            connect: makes a further connection to the host.

        Raises:
            Refused: there is no interceptor.
        """
        self._count += 1
        number = self._count
        port = tunnel_record.port or 443
        tunnel = Tunnel(
            host, port, tunnel_record, tunnel_record.rule, connect, asyncio.get_running_loop().create_future()
        )
        with client, upstream:
            await self.start()
            assert self._channel is not None
            self._tunnels[number] = tunnel
            message = {
                "op": "tunnel",
                "id": number,
                "host": host.name,
                "port": port,
                "first": base64.b64encode(first).decode(),
            }
            self._channel.send(message, [client.fileno(), upstream.fileno()])
        try:
            tunnel_record.error = await tunnel.ended
        finally:
            del self._tunnels[number]
            for flow in tunnel.flows:
                if flow in self._flows:
                    record, _ = self._flows.pop(flow)
                    record.error = record.error or "cut off"
                    self._log(record)

    def _message(self, message: Message, descriptors: list[int]) -> None:
        for each in descriptors:
            os.close(each)  # it has none to give
        op = message["op"]
        if op == "ready":
            assert self._ready is not None
            if not self._ready.done():
                self._ready.set_result(bool(message["left"]))
            return
        tunnel = self._tunnels.get(message["id"])
        if tunnel is None:
            return
        if op == "request":
            self._request(tunnel, message)
        elif op == "connect":
            self._spawn(self._connect(tunnel, message))
        elif op == "content":
            self._copy(tunnel, message)
        elif op == "done":
            self._done(tunnel, message)
        elif op == "closed" and not tunnel.ended.done():
            tunnel.ended.set_result(message["error"])

    def _answer(self, message: Message, values: dict[str, Any], descriptors: Sequence[int] = ()) -> None:
        if self._channel is not None:
            self._channel.send({"op": "answer", "call": message["call"], **values}, descriptors)

    async def _connect(self, tunnel: Tunnel, message: Message) -> None:
        try:
            tunnel.connections += 1
            if tunnel.connections > _MORE_CONNECTIONS:
                raise Refused("busy", "Too many connections for one tunnel.", status=503)
            with await tunnel.connect() as found:
                self._answer(message, {}, [found.fileno()])
        except Refused as error:
            self._answer(message, {"error": error.message})
        except (OSError, EOFError, TimeoutError):
            self._answer(message, {"error": "no connection"})

    # requests

    def _request(self, tunnel: Tunnel, message: Message) -> None:
        self._count += 1
        number = self._count
        record = Record(
            method=message["method"],
            host=tunnel.host.name,
            port=tunnel.port,
            level="request",
            address=tunnel.record.address,
            sni=tunnel.record.sni,
            http=message["http"],
            range=message["range"],
        )
        path, mark, query = message["target"].partition("?")
        record.path, record.query = path, query if mark else None
        tunnel.record.requests += 1
        tunnel.flows.add(number)
        self._flows[number] = (record, tunnel)
        try:
            if self._context.full("web"):
                raise Refused(
                    "log-full", "The log of this run's requests is full; there is no web any more.", status=503
                )
            target = judge(message, tunnel.host, tunnel.port)
            check_request(self._policy.requests, tunnel.host, message["method"], target)
            if (tunnel.host.name, target.path) in self._copies:
                raise Refused("test-data-copy", COPY)
            if message["range"] and (tunnel.host.name, target.path) in self._parts:
                raise Refused("test-data-part", PART)
        except Refused as refused:
            record.rule, record.status = refused.rule, refused.status
            text = refusal_text(refused, policy=self._policy.name)
            verdict = {"allow": False, "status": refused.status, "rule": refused.rule, "text": text}
        else:
            record.allowed, record.rule = True, tunnel.rule
            verdict = {"allow": True}
        self._answer(message, {"flow": number, **verdict})

    def _copy(self, tunnel: Tunnel, message: Message) -> None:
        """A file was test data, and its last piece has been kept back; or a part of a file that could be."""
        part = message.get("part", False)
        refused = Refused("test-data-part", PART) if part else Refused("test-data-copy", COPY)
        if message["flow"] in self._flows:
            record, _ = self._flows[message["flow"]]
            record.allowed, record.rule = False, refused.rule
            record.status, record.sha256 = refused.status, message.get("sha256")
            seen = self._parts if part else self._copies
            seen[(record.host, record.path or "")] = None
            if len(seen) > _COPIES:
                seen.popitem(last=False)
        text = refusal_text(refused, policy=self._policy.name)
        self._answer(message, {"status": refused.status, "rule": refused.rule, "text": text})

    def _done(self, tunnel: Tunnel, message: Message) -> None:
        if message["flow"] not in self._flows:
            return
        record, _ = self._flows.pop(message["flow"])
        tunnel.flows.discard(message["flow"])
        record.up, record.down = message["up"], message["down"]
        if record.allowed:
            record.status, record.error = message["status"], message["error"]
            record.sha256 = message["sha256"]
        self._log(record)


def _tell(process: subprocess.Popen[bytes], settings: bytes) -> None:
    assert process.stdin is not None
    with suppress(OSError), process.stdin as pipe:
        pipe.write(settings)


def trusted() -> str | None:
    """The file with the certificates by which servers are judged: the host's."""
    import ssl

    usual = ssl.get_default_verify_paths()
    places = (
        os.environ.get("SSL_CERT_FILE"),
        usual.cafile,
        "/etc/ssl/certs/ca-certificates.crt",
        "/etc/pki/tls/cert.pem",
    )
    return next((place for place in places if place and Path(place).is_file()), None)

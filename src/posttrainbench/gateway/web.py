"""The first door to the web: a forward proxy that decides by host, speaks plainly when it refuses, and logs everything.

`CONNECT host:443` opens a tunnel in which TLS to that very host must follow; `GET http://host/...` is fetched, one request
per connection. A tunnel is passed on as it is, or handed to the interceptor (intercept.py), as the run says (docs/web.md).
Each request that is seen leaves one line in `web.jsonl` when it ends, and each tunnel in which none was seen.
"""

from __future__ import annotations

import asyncio
import socket
import time
from asyncio import StreamReader, StreamWriter
from contextlib import suppress
from functools import partial
from typing import TYPE_CHECKING, Any

from posttrainbench.errors import PTBError
from posttrainbench.gateway.intercept import Interceptor
from posttrainbench.gateway.web_addresses import Resolver, system_resolver
from posttrainbench.gateway.web_config import WebConfig, model_apis
from posttrainbench.gateway.web_fetch import relay_answer
from posttrainbench.gateway.web_http import PIECE, Head, body, body_length, malformed, read_head
from posttrainbench.gateway.web_messages import Record, outgoing, read_url, refusal, same_host, text_of
from posttrainbench.gateway.web_names import Host, Refused, parse_authority, parse_host
from posttrainbench.gateway.web_relay import detach, relay, send, take_over
from posttrainbench.gateway.web_requests import check_request, read_target
from posttrainbench.gateway.web_tls import ALERT_ACCESS_DENIED, ALERT_UNRECOGNISED_NAME, NotTLS, read_hello
from posttrainbench.gateway.web_upstream import BUFFER, Connector, MachineProxy, Upstream, close

if TYPE_CHECKING:
    from posttrainbench.gateway.context import Context

# Lines on refused requests beyond this number are thinned to one in `_THINNED`: the log is for reading, not for filling.
_REFUSALS_IN_FULL = 20_000
_THINNED = 1000
_LINGER_S = 60.0
# alerts of a client that does not accept a certificate, in the words of OpenSSL
_DISTRUST = ("unknown ca", "bad certificate", "certificate unknown", "unsupported certificate")
_MOST_PINNED = 1000


async def handle(reader: StreamReader, writer: StreamWriter, context: Context) -> None:
    """Serve one connection from the sandbox; closes `writer`."""
    try:
        door = context.part("web", Door)
    except PTBError as error:
        # the harness has looked before the run (`WebConfig.rules`); a policy file can vanish afterwards
        context.log("web", allowed=False, rule="setup", error=str(error))
        writer.write(refusal(Refused("setup", "The web proxy of this run is not set up.", status=503), policy=""))
        await close(writer)
        return
    await door.serve(reader, writer)


class Door:
    """The proxy of one run.

    Args:
        context: the gateway's.
        resolver: finds addresses (tests bring their own).

    Raises:
        ConfigurationError: settings or policy that cannot be.
    """

    def __init__(self, context: Context, *, resolver: Resolver = system_resolver) -> None:
        self.config = WebConfig.from_json(context.config.web or {})
        self.policy = self.config.rules()
        proxy = None if context.secrets.proxy is None else MachineProxy.parse(context.secrets.proxy)
        self.connector = Connector(limit_s=self.config.connect_s, proxy=proxy, resolver=resolver)
        self.own = model_apis(context.config.providers)
        self.known = frozenset(self.config.known)
        self.pinned: set[Host] = set()
        self.interceptor = None
        if self.config.tls == "intercept":
            self.interceptor = Interceptor(context, self.config, self.policy, self._log)
        self.context = context
        self.now = 0
        self.refusals = 0

    async def serve(self, reader: StreamReader, writer: StreamWriter) -> None:
        """One connection, one request, one line in the log."""
        record = Record()
        self.now += 1
        try:
            if self.now > self.config.connections:
                raise Refused(
                    "busy", f"More than {self.config.connections} connections are open; close some.", status=503
                )
            if self.context.full("web"):
                # nothing goes out without a line about it
                raise Refused(
                    "log-full", "The log of this run's requests is full; there is no web any more.", status=503
                )
            await self._request(reader, writer, record)
        except Refused as refused:
            self._note(record, refused)
            await self._answer(reader, writer, record, refused)
        except (OSError, EOFError, TimeoutError) as error:
            record.error = "silence" if isinstance(error, TimeoutError) else "cut off"
        except asyncio.CancelledError:
            record.error = "ended with the client or the gateway"
            raise
        finally:
            self.now -= 1
            self._log(record)
            await close(writer)

    async def _request(self, reader: StreamReader, writer: StreamWriter, record: Record) -> None:
        head = await asyncio.wait_for(read_head(reader), self.config.head_s)
        record.method = head.line[0].decode("ascii")
        if record.method == "CONNECT":
            await self._tunnel(head, reader, writer, record)
        else:
            await self._fetch(head, reader, writer, record)

    # tunnels

    async def _tunnel(self, head: Head, reader: StreamReader, writer: StreamWriter, record: Record) -> None:
        record.host = text_of(head.line[1])
        host, port = parse_authority(record.host, default_port=None)
        record.host, record.port = host.name, port
        same_host(head, host, port, default_port=port)
        if head.all(b"transfer-encoding") or any(value != b"0" for value in head.all(b"content-length")):
            raise malformed("CONNECT has no body")
        upstream = await self._open(host, port, record, tunnel=True)
        try:
            record.answering, record.status = True, 200
            writer.write(b"HTTP/1.1 200 Connection established\r\n\r\n")
            first = await asyncio.wait_for(self._hello(reader, host, record), self.config.head_s)
            if self.interceptor is not None and not self._left_alone(host, record):
                await self._intercept(self.interceptor, host, first, reader, writer, upstream, record)
                return
            await self._pass_on(first, reader, writer, upstream, record)
        finally:
            await close(upstream.writer)

    async def _pass_on(
        self, first: bytes, reader: StreamReader, writer: StreamWriter, upstream: Upstream, record: Record
    ) -> None:
        """Move bytes both ways, unseen."""
        if upstream.tls:  # a proxy of the machine that is itself spoken to in TLS
            upstream.writer.write(first)
            record.up += len(first)
            pumps = _pump(reader, upstream.writer, record, "up"), _pump(upstream.reader, writer, record, "down")
            await self._both(record, *pumps)
            return
        client, early = await take_over(reader, writer)
        with client:
            server, spoken = await take_over(upstream.reader, upstream.writer)
            up, down = partial(record.moved, "up"), partial(record.moved, "down")
            with server:
                begun = asyncio.gather(send(server, first + early, up), send(client, spoken, down))
                await asyncio.wait_for(begun, self.config.idle_s)
                await self._both(record, relay(client, server, up), relay(server, client, down))

    def _left_alone(self, host: Host, record: Record) -> bool:
        """Whether a tunnel is passed on as it is in spite of the run's wish to look into tunnels."""
        if self.policy.is_opaque(host):
            return True
        return host in self.pinned and self.policy.pinned == "passthrough"

    async def _intercept(
        self,
        interceptor: Interceptor,
        host: Host,
        first: bytes,
        reader: StreamReader,
        writer: StreamWriter,
        upstream: Upstream,
        record: Record,
    ) -> None:
        port = record.port or 443

        async def connect() -> socket.socket:
            decision = self.policy.decide(host, port, tunnel=True)
            return await detach(await self.connector.open(host, port, decision, tunnel=True))

        client, early = await take_over(reader, writer)
        await interceptor.carry(
            record, host, first=first + early, client=client, upstream=await detach(upstream), connect=connect
        )
        if record.error is not None and not record.requests:
            self._not_trusted(host, record)

    def _not_trusted(self, host: Host, record: Record) -> None:
        """The client has refused our certificate: it trusts another one, or was not told of ours."""
        if not any(word in (record.error or "") for word in _DISTRUST):
            return
        if len(self.pinned) < _MOST_PINNED:
            self.pinned.add(host)
        record.allowed, record.rule = False, "pinned"
        record.error = f"the client does not trust the certificate of this run's door ({record.error}); " + (
            "further tunnels are passed on as they are" if self.policy.pinned == "passthrough" else "refused"
        )

    async def _hello(self, reader: StreamReader, host: Host, record: Record) -> bytes:
        """The client's first message, whole, once it is clear that it asks for the host of the tunnel."""
        data = b""
        while True:
            piece = await reader.read(PIECE)
            if not piece:
                raise EOFError
            data += piece
            try:
                hello = read_hello(data)
            except NotTLS:
                raise Refused(
                    "not-tls", "Only TLS may be spoken in a tunnel; fetch http:// URLs without one."
                ) from None
            if hello is not None:
                break
        record.sni = hello.server_name
        if hello.hidden and not self.policy.hidden_names:
            raise Refused("hidden-name", "An encrypted server name (ECH) is refused; switch it off in your client.")
        if hello.server_name is None:
            if not host.literal:
                raise Refused("no-sni", f"The TLS client has to name the server {host.name} (SNI).")
        elif parse_host(hello.server_name) != host:
            raise Refused("sni-mismatch", f"The tunnel is for {host.name}, but TLS asks for {hello.server_name[:100]}.")
        return data

    # http:// URLs

    async def _fetch(self, head: Head, reader: StreamReader, writer: StreamWriter, record: Record) -> None:
        host, port, path = read_url(head, record)
        same_host(head, host, port, default_port=80)
        length = body_length(head)
        self._check_request(host, record)
        if any(b"websocket" in value.lower() for value in head.all(b"upgrade")):
            raise Refused("upgrade", "WebSockets are not available here.")
        upstream = await self._open(host, port, record, tunnel=False)
        try:
            upstream.writer.write(outgoing(head, host, port, path, length, upstream, looking=bool(self.known)))
            sending = self._send(body(reader, length), upstream.writer, record)
            await self._both(record, sending, relay_answer(head, upstream, writer, record, self.known), last=1)
        finally:
            await close(upstream.writer)

    def _check_request(self, host: Host, record: Record) -> None:
        query = "" if record.query is None else f"?{record.query}"
        check_request(self.policy.requests, host, record.method, read_target(f"{record.path}{query}"))

    async def _send(self, pieces: Any, writer: StreamWriter, record: Record) -> None:
        async for piece in pieces:
            await _write(writer, piece, record, "up")
        await writer.drain()

    # both

    async def _open(self, host: Host, port: int, record: Record, *, tunnel: bool) -> Upstream:
        if self.own.matches(host):
            raise Refused(self.own.name, self.own.message)
        decision = self.policy.decide(host, port, tunnel=tunnel)
        upstream = await self.connector.open(host, port, decision, tunnel=tunnel)
        record.allowed, record.rule, record.address = True, decision.rule, upstream.address
        record.touched = time.monotonic()
        return upstream

    async def _both(self, record: Record, *directions: Any, last: int | None = None) -> None:
        """Run both directions until both ended, one failed, `last` ended, or nothing moved for too long."""
        tasks = [asyncio.ensure_future(direction) for direction in directions]
        try:
            waiting = set(tasks)
            while waiting:
                # who has heard the other side's end has little left to say
                patience = self.config.idle_s if len(waiting) == len(tasks) else min(self.config.idle_s, _LINGER_S)
                left = record.touched + patience - time.monotonic()
                if left <= 0:
                    raise TimeoutError
                done, waiting = await asyncio.wait(waiting, timeout=left, return_when=asyncio.FIRST_COMPLETED)
                for task in done:
                    task.result()
                if last is not None and tasks[last].done():
                    break
        finally:
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)

    async def _answer(self, reader: StreamReader, writer: StreamWriter, record: Record, refused: Refused) -> None:
        """Say what is wrong: as HTTP, or as a TLS alert where a tunnel is already open."""
        raw = refusal(refused, policy=self.policy.name)
        if record.answering and record.method != "CONNECT":
            return  # part of the server's answer is already out
        if record.answering and refused.rule != "not-tls":
            names = refused.rule in ("sni-mismatch", "no-sni")
            raw = ALERT_UNRECOGNISED_NAME if names else ALERT_ACCESS_DENIED
        with suppress(OSError, TimeoutError):
            writer.write(raw)
            await asyncio.wait_for(writer.drain(), 5.0)
            # to close with bytes unread would reset the connection, and the answer could be lost with it
            writer.write_eof()
            await asyncio.wait_for(_discard(reader), 1.0)

    def _note(self, record: Record, refused: Refused) -> None:
        # what fails at the other end, or on the way, is no matter of the policy
        outside = refused.status in (502, 504)
        record.allowed = record.allowed and outside
        record.rule = refused.rule if not outside else record.rule or "others"
        if outside:
            record.error = refused.message
        if not record.answering:
            record.status = refused.status

    def _log(self, record: Record) -> None:
        # a tunnel whose requests have lines says nothing further
        if (record.method or record.rule) and not record.requests:
            thinned = {}
            if not record.allowed:
                self.refusals += 1
                if self.refusals > _REFUSALS_IN_FULL:
                    if self.refusals % _THINNED:
                        return
                    thinned = {"refused_so_far": self.refusals}
            self.context.log("web", **record.fields(), **thinned)


async def _write(writer: StreamWriter, piece: bytes, record: Record, count: str) -> None:
    writer.write(piece)
    record.moved(count, len(piece))
    await writer.drain()


async def _pump(reader: StreamReader, writer: StreamWriter, record: Record, count: str) -> None:
    while piece := await reader.read(BUFFER):
        await _write(writer, piece, record, count)
    with suppress(OSError):
        if writer.can_write_eof():
            writer.write_eof()


async def _discard(reader: StreamReader) -> None:
    left = 2**20
    while left > 0 and (piece := await reader.read(PIECE)):
        left -= len(piece)

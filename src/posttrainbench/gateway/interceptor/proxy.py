"""mitmproxy's layers on connections that the gateway hands over, one tunnel each; the gateway decides on every request.

No listener of mitmproxy's is used, and of its addons only the one that sets up TLS: a tunnel is TLS to one known host with
HTTP in it, or nothing. Bodies stream. This process has no network of its own; connections to servers come from the gateway.
"""

from __future__ import annotations

import asyncio
import logging
import re
import socket
import time
from collections.abc import Awaitable, Callable
from typing import Any

import content
import streams
from mitmproxy import certs, connection, ctx, http, options
from mitmproxy.addons import proxyserver, tlsconfig
from mitmproxy.proxy import commands, events, layer, layers, mode_specs, server
from mitmproxy.proxy.layers.http import HTTPMode

_BUFFERED = 2**20
"""Bytes of an answer that is read whole before it goes on, so that a refusal can stand in its place. Tests of the target
benchmarks have 12 kB (AIME) to 0.8 MB (GSM8K); larger ones are cut before their end, and asking again brings the refusal."""
_LONGEST_TARGET = 16_385
"""Characters that the gateway is told of: one more than it allows. Each may take six in a message."""
_UNREAD = 2**20
"""Bytes that may come before a request is there: its head, what TLS adds, and what of the body came in the same pieces."""
_REFUSED_BODY = 2**20
_AHEAD = 2 * _REFUSED_BODY
"""Bytes that may come beyond what has been made of a request. A body that is refused is read whole."""
_BREAKS = frozenset(b"\r\n\0")
_METHOD = re.compile(r"[!#$%&'*+.^_`|~0-9A-Za-z-]+")
_TUNNEL = mode_specs.ProxyMode.parse("regular")

Ask = Callable[[dict[str, Any]], Awaitable[tuple[dict[str, Any], list[int]]]]
Tell = Callable[[dict[str, Any]], None]


class Engine:
    """What all tunnels share.

    Args:
        authority: key and certificate of the run's authority.
        trust: file with the certificates by which servers are judged; `None` for mitmproxy's own list.
        http2: whether clients that can are spoken to in HTTP/2.
        idle_s: longest silence in a tunnel.
        known: hashes of files that must not pass.
        ask, tell: to the gateway.
    """

    def __init__(
        self,
        *,
        authority: tuple[Any, Any],
        trust: str | None,
        http2: bool,
        idle_s: float,
        known: frozenset[str],
        ask: Ask,
        tell: Tell,
    ) -> None:
        self.options = options.Options()
        self.tls = tlsconfig.TlsConfig()
        for addon in (self.tls, proxyserver.Proxyserver()):
            addon.load(self)
        self.options.update(
            connection_strategy="lazy",
            rawtcp=False,
            websocket=False,
            http2=http2,
            http3=False,
            tcp_timeout=max(1, int(idle_s)),
            validate_inbound_headers=True,
            ssl_insecure=False,
            ssl_verify_upstream_trusted_ca=trust,
        )
        # mitmproxy's TLS code asks for its options here
        ctx.options = self.options
        key, certificate = authority
        self.tls.certstore = certs.CertStore(key, certs.Cert(certificate), None, b"", None)  # type: ignore[arg-type, unused-ignore]
        self.known, self.ask, self.tell = known, ask, tell
        self.decoders = streams.decoders()
        self.tunnels: set[Tunnel] = set()

    def add_option(self, name: str, typespec: Any, default: Any, help: str, choices: Any = None) -> None:
        """What an addon's `load` calls."""
        self.options.add_option(name, typespec, default, help, choices)

    async def carry(
        self, message: dict[str, Any], first: bytes, client: socket.socket, upstream: socket.socket
    ) -> None:
        """Serve one tunnel to its end. Closes both sockets."""
        reader, writer = await asyncio.open_connection(sock=client, limit=streams.READ)
        tunnel = Tunnel(self, message, first, reader, writer, upstream)
        self.tunnels.add(tunnel)
        try:
            await tunnel.handle_client()
        finally:
            self.tunnels.discard(tunnel)
            tunnel.end()
            writer.close()
            self.tell({"op": "closed", "id": tunnel.id, "error": tunnel.problem})


class Flow:
    """One request as the gateway counts it."""

    def __init__(self, number: int) -> None:
        self.number = number
        self.up = self.down = 0
        self.refused = False
        self.done = False
        self.look: content.Recogniser | None = None
        self.instead: dict[str, Any] | None = None


class Tunnel(server.LiveConnectionHandler):  # type: ignore[misc, unused-ignore]
    """One connection of a client to one host."""

    def __init__(
        self,
        engine: Engine,
        message: dict[str, Any],
        first: bytes,
        reader: asyncio.StreamReader,
        writer: asyncio.StreamWriter,
        upstream: socket.socket,
    ) -> None:
        named: Any = streams.Named(writer)
        wide: Any = streams.Wide(reader, first, seen=self._received)
        super().__init__(wide, named, engine.options, _TUNNEL)
        self.engine = engine
        self.id: int = message["id"]
        self.host: str = message["host"]
        self.port: int = message["port"]
        self.ready: socket.socket | None = upstream
        self.problem: str | None = None
        self.flows: dict[str, Flow] = {}
        self._head = self._asking = self._ahead = 0
        self._moved = asyncio.Event()
        self._asked = asyncio.Event()
        self._asked.set()
        self._hooks: dict[str, Callable[[Any], Awaitable[None] | None]] = {
            "next_layer": self._next_layer,
            "tls_clienthello": engine.tls.tls_clienthello,
            "tls_start_client": engine.tls.tls_start_client,
            "tls_start_server": engine.tls.tls_start_server,
            "tls_failed_client": self._tls_failed_client,
            "requestheaders": self._requestheaders,
            "responseheaders": self._responseheaders,
            "response": self._response,
            "error": self._error,
        }

    async def handle_hook(self, hook: commands.StartHook) -> None:
        """What mitmproxy asks us at each step."""
        found = self._hooks.get(hook.name)
        if found is None:
            return
        with self.timeout_watchdog.disarm():
            (data,) = hook.args()
            try:
                result = found(data)
                if result is not None:
                    await result
            except Exception as error:  # whatever went wrong: nothing passes that nobody has looked at
                self.log(f"{hook.name}: {error!r}", logging.ERROR)

    def log(self, message: str, level: int = logging.INFO, exc_info: Any = None) -> None:
        """mitmproxy's own words: of interest only where it failed. Then the tunnel ends: it would stay without an answer."""
        if level >= logging.ERROR:
            super().log(message, level, exc_info)
            self.problem = self.problem or "the tunnel failed"
            found = self.transports.get(self.client)
            if found is not None and found.handler is not None:
                found.handler.cancel(self.problem)

    def end(self) -> None:
        """Close what is left."""
        if self.ready is not None:
            self.ready.close()
            self.ready = None
        for flow in list(self.flows.values()):
            self._finish(flow, None, "cut off")

    # connections

    def _next_layer(self, data: layer.NextLayer) -> None:
        if data.layer:
            return
        context = data.context
        if not context.layers:
            context.server.address = (self.host, self.port)
            context.server.sni = self.host
            below = layers.ServerTLSLayer(context)
            below.child_layer = layers.ClientTLSLayer(context)
            data.layer = below
        else:
            data.layer = layers.HttpLayer(context, HTTPMode.transparent)

    def _tls_failed_client(self, data: Any) -> None:
        self.problem = str(data.conn.error)[:300]

    async def open_connection(self, command: commands.OpenConnection) -> None:
        """A connection to the tunnel's host: the one that came with it, or one that the gateway makes now."""
        conn = command.connection
        error, found = None, self.ready
        self.ready = None
        if conn.address is None or tuple(conn.address[:2]) != (self.host, self.port):
            error = "only the host of the tunnel can be reached"
        elif found is None:
            answer, descriptors = await self.engine.ask({"op": "connect", "id": self.id})
            if descriptors:
                found = socket.socket(fileno=descriptors[0])
            else:
                error = str(answer.get("error") or "no connection")
        if error is not None or found is None:
            conn.error = error
            await self.server_event(events.OpenConnectionCompleted(command, error))
            return
        found.setblocking(False)
        conn.timestamp_start = conn.timestamp_tcp_setup = time.time()
        plain, writer = await asyncio.open_connection(sock=found, limit=streams.READ)
        conn.state = connection.ConnectionState.OPEN
        conn.peername = conn.sockname = ("127.0.0.1", 1)
        reader: Any = streams.Wide(plain)
        self.transports[conn] = server.ConnectionIO(asyncio.current_task(), reader, writer)
        await self.server_event(events.OpenConnectionCompleted(command, None))
        await self.handle_connection(conn)

    async def _received(self, size: int) -> None:
        """Bound what a client may send before mitmproxy has understood a request from it.

        While the gateway is asked, a body waits outside, and so does what comes early while a request is being dealt with:
        mitmproxy would keep all of it.
        """
        await asyncio.sleep(0)  # a head that has just come is looked at first
        await self._asked.wait()
        self._head = 0 if self.flows else self._head + size
        self._ahead += size
        if self._head > _UNREAD:
            self.problem = "a request's head is too long"
            raise OSError(self.problem)
        # HTTP/2 says in the same stream how much of an answer has been taken
        while self.flows and self._ahead > _AHEAD and self.client.alpn != b"h2":
            self._moved.clear()
            await self._moved.wait()

    def _progress(self) -> None:
        self._head = self._ahead = 0
        self._moved.set()

    # requests

    async def _requestheaders(self, flow: http.HTTPFlow) -> None:
        self._progress()
        request = flow.request
        raw = request.path
        invalid = flow.error.msg[:200] if flow.error else None
        if not _METHOD.fullmatch(request.method) or any(set(value) & _BREAKS for _, value in request.headers.fields):
            # passed on as they are, and a line's end to some servers
            invalid = invalid or "a method or header of odd characters"
        question = {
            "op": "request",
            "id": self.id,
            "method": request.method[:32],
            "target": raw[:_LONGEST_TARGET],
            "scheme": request.scheme,
            "authority": request.authority[:300],
            "hosts": [value[:300] for value in request.headers.get_all("host")][:4],
            "http": request.http_version,
            "upgrade": "upgrade" in request.headers,
            "range": request.headers.get("range", "")[:100] or None,
            "invalid": invalid,
        }
        self._asking += 1
        self._asked.clear()
        try:
            answer, _ = await self.engine.ask(question)
        finally:
            self._asking -= 1
            if not self._asking:
                self._asked.set()
        self._head = 0
        state = self.flows[flow.id] = Flow(answer["flow"])
        if flow.error:
            return
        if not answer["allow"]:
            self._refuse(flow, state, answer)
            return

        asked = request.headers.get("accept-encoding")
        if self.engine.known and asked is not None:
            undone = content.ENCODINGS | set(self.engine.decoders)
            request.headers["accept-encoding"] = content.acceptable(asked, undone)

        def tee(data: bytes) -> bytes:
            state.up += len(data)
            self._progress()
            return data

        request.stream = tee

    def _refuse(self, flow: http.HTTPFlow, state: Flow, answer: dict[str, Any]) -> None:
        state.refused = True
        size = flow.request.headers.get("content-length", "0")
        chunked = "transfer-encoding" in flow.request.headers
        if chunked or not size.isdigit() or int(size) > _REFUSED_BODY:
            # an answer comes after the body only, which we would have to read for nothing
            flow.kill()
            return
        flow.response = _page(answer["status"], answer["text"], answer["rule"])

    async def _responseheaders(self, flow: http.HTTPFlow) -> None:
        state = self.flows.get(flow.id)
        response = flow.response
        if state is None or response is None or state.refused:
            return
        if response.status_code == 101:
            flow.kill()
            return
        size = response.headers.get("content-length", "")
        length = int(size) if size.isdigit() and len(size) < 16 else None
        if flow.request.method == "HEAD" or response.status_code in (204, 304):
            return
        if self.engine.known and content.is_hidden_part(
            response.status_code, response.headers.get("content-range", "")
        ):
            state.refused = True
            answer = await self.engine.ask({"op": "content", "id": self.id, "flow": state.number, "part": True})
            if length is None or length > _BUFFERED:
                flow.kill()
                return
            state.instead = answer[0]
            return
        look = state.look = content.Recogniser(
            self.engine.known,
            size=length,
            encoding=response.headers.get("content-encoding", ""),
            decoders=self.engine.decoders,
            part=response.status_code == 206 or _is_streamed(response),
        )
        if self.engine.known and not look.idle and length is not None and length <= _BUFFERED:
            return  # read whole; `_response` looks at it
        held = content.Held()

        def counted(pieces: list[bytes]) -> list[bytes]:
            state.down += sum(map(len, pieces))
            return pieces

        def tee(data: bytes) -> list[bytes]:
            if look.idle or not self.engine.known:
                look.feed(data)
                return counted([*held.rest(), data] if data else held.rest())
            if data:
                look.feed(data)
                return counted(held.add(data))
            if look.end():
                # the last pieces stay here, and with them the connection
                state.refused = True
                flow.kill()
                return []
            return counted(held.rest())

        response.stream = tee

    async def _response(self, flow: http.HTTPFlow) -> None:
        state = self.flows.get(flow.id)
        response = flow.response
        if state is None or response is None:
            return
        self._moved.set()
        if state.instead is not None:
            flow.response = _page(state.instead["status"], state.instead["text"], state.instead["rule"])
            self._finish(state, state.instead["status"], None)
            del self.flows[flow.id]
            return
        body = response.raw_content
        if state.look is not None and not response.stream and body is not None:
            state.look.feed(body)
            if self.engine.known and state.look.end():
                state.refused = True
                answer = await self._tell_copy(state, state.look)
                flow.response = _page(answer["status"], answer["text"], answer["rule"])
                self._finish(state, answer["status"], None)
                del self.flows[flow.id]
                return
            state.down = len(body)
        if state.refused and state.look is not None:
            await self._tell_copy(state, state.look)
        self.flows.pop(flow.id, None)
        self._finish(state, response.status_code, None)

    async def _tell_copy(self, state: Flow, look: content.Recogniser) -> dict[str, Any]:
        question = {"op": "content", "id": self.id, "flow": state.number, "sha256": look.sha256()}
        return (await self.engine.ask(question))[0]

    def _error(self, flow: http.HTTPFlow) -> None:
        self._moved.set()
        state = self.flows.pop(flow.id, None)
        if state is not None:
            status = flow.response.status_code if flow.response else None
            self._finish(state, status, flow.error.msg[:300] if flow.error else "cut off")

    def _finish(self, state: Flow, status: int | None, error: str | None) -> None:
        if state.done:
            return
        state.done = True
        self.engine.tell(
            {
                "op": "done",
                "id": self.id,
                "flow": state.number,
                "status": status,
                "up": state.up,
                "down": state.down,
                "sha256": state.look.sha256() if state.look is not None and not error else None,
                "error": error,
            }
        )


def _is_streamed(response: http.Response) -> bool:
    kind: str = response.headers.get("content-type", "")
    return kind.lower().startswith(content.STREAMED_TYPES)


def _page(status: int, text: str, rule: str) -> http.Response:
    headers = {"Content-Type": "text/plain; charset=us-ascii", "X-PTB-Rule": rule}
    return http.Response.make(status, text.encode("ascii", "backslashreplace"), headers)

"""The gateway process: accepts on listeners handed over by the harness, and sends each connection where it belongs.

Started by `process.Gateway`. Configuration and credentials come on standard input as one JSON document; listening sockets
come as descriptors (SCM_RIGHTS) over the control socket, whose end of file is the order to stop.
"""

from __future__ import annotations

import asyncio
import contextlib
import importlib
import re
import resource
import signal
import socket
import traceback
from typing import Any

from aiohttp import web

from posttrainbench.gateway.context import Context, say, utc
from posttrainbench.gateway.forward import Forwarder
from posttrainbench.gateway.health import Health
from posttrainbench.gateway.ledger import Ledger
from posttrainbench.gateway.policy import Refusal
from posttrainbench.gateway.wires import error_body

# a connection that says nothing is closed; one between two requests may rest as long as a CLI thinks or runs a command
_FIRST_BYTES_S = 60.0
_KEEP_ALIVE_S = 3600.0
_LONGEST_METHOD = 32
# below these paths, for those who have the run's token
_SERVICES = {"grader": "grading service", "sealed": "sealed test data"}
# enough of a request to tell a proxy's client from others
_LEGIBLE = re.compile(rb"\S+ (?:[^a-z]|\S{11}|\S*\s)", re.IGNORECASE)
_ABSOLUTE = re.compile(rb"[a-z][a-z0-9+.-]{0,7}://", re.IGNORECASE)


class _Http(web.RequestHandler):  # type: ignore[type-arg, unused-ignore]
    """aiohttp's connection, with our word for requests that are none."""

    __slots__ = ("_server",)

    def __init__(self, server: Server, manager: web.Server, **options: Any) -> None:  # type: ignore[type-arg, unused-ignore]
        self._server = server
        super().__init__(manager, **options)

    def handle_error(
        self,
        request: web.BaseRequest,
        status: int = 500,
        exc: BaseException | None = None,
        message: str | None = None,
    ) -> web.StreamResponse:
        if request.writer.output_size > 0:
            raise ConnectionError("an answer is under way already")
        if status >= 500:
            trace = "".join(traceback.format_exception(exc)) if exc else ""
            say(f"{request.method} failed: {message}\n{trace}")
            answer = web.Response(
                status=500, body=error_body(None, 500, "internal", "internal error"), content_type="application/json"
            )
        else:
            answer = self._server.malformed(status, str(message or exc))
        answer.force_close()
        return answer


class _FirstBytes(asyncio.Protocol):
    """Looks at the beginning of a connection and hands it to who speaks its language."""

    def __init__(self, server: Server) -> None:
        self._server = server
        self._seen = b""
        self._transport: asyncio.Transport | None = None
        self._timer: asyncio.TimerHandle | None = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        assert isinstance(transport, asyncio.Transport)
        self._transport = transport
        if not self._server.has_room(transport):
            transport.abort()
            return
        self._timer = asyncio.get_running_loop().call_later(_FIRST_BYTES_S, transport.abort)

    def connection_lost(self, error: BaseException | None) -> None:
        if self._timer:
            self._timer.cancel()

    def data_received(self, data: bytes) -> None:
        assert self._transport is not None
        self._seen += data
        method, space, target = self._seen.partition(b" ")
        if len(self._seen) <= _LONGEST_METHOD and not _LEGIBLE.match(self._seen):
            return
        if self._timer:
            self._timer.cancel()
        if self._seen.startswith(b"PRI * HTTP/2"):
            self._server.turn_away(self._transport, "http2", "HTTP/2 is not served here")
        elif method == b"CONNECT" or (space and _ABSOLUTE.match(target)):
            self._server.to_web(self._transport, self._seen)
        else:
            self._server.to_http(self._transport, self._seen)


class Server:
    """All listeners of one gateway."""

    def __init__(self, context: Context) -> None:
        self._context = context
        self._loop = asyncio.get_running_loop()
        self._ledger = Ledger(context)
        self._forwarder = Forwarder(context, self._ledger, Health(context))
        self._servers: list[asyncio.Server] = []
        self._transports: set[asyncio.Transport] = set()
        self._manager = web.Server(self._handle, handler_cancellation=True)

    async def adopt(self, listener: socket.socket) -> None:
        """Accept on a listening socket (TCP or Unix, of whatever network namespace)."""
        listener.setblocking(False)
        make = self._loop.create_unix_server if listener.family == socket.AF_UNIX else self._loop.create_server
        self._servers.append(await make(lambda: _FirstBytes(self), sock=listener))

    def has_room(self, transport: asyncio.Transport) -> bool:
        """Count a connection; False if there are too many."""
        if len(self._transports) >= self._context.config.limits.connections:
            self._transports = {each for each in self._transports if not each.is_closing()}
            if len(self._transports) >= self._context.config.limits.connections:
                return False
        self._transports.add(transport)
        if len(self._transports) % 64 == 0:
            self._transports = {each for each in self._transports if not each.is_closing()}
        return True

    def to_http(self, transport: asyncio.Transport, seen: bytes) -> None:
        """An ordinary request."""
        protocol = _Http(
            self,
            self._manager,
            loop=self._loop,
            keepalive_timeout=_KEEP_ALIVE_S,
            access_log=None,
            lingering_time=1.0,
            auto_decompress=False,
            max_line_size=16 * 1024,
            max_field_size=32 * 1024,
            read_bufsize=2**17,
        )
        transport.set_protocol(protocol)
        protocol.connection_made(transport)
        protocol.data_received(seen)

    def to_web(self, transport: asyncio.Transport, seen: bytes) -> None:
        """A request of a proxy's client."""
        module = _optional("web") if self._context.config.web is not None else None
        if module is None:
            self.turn_away(transport, "web", "there is no way to the web in this run")
            return

        async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            try:
                await module.handle(reader, writer, self._context)
            except (ConnectionError, asyncio.IncompleteReadError, TimeoutError):
                pass
            except Exception:
                say(f"web proxy:\n{traceback.format_exc()}")
            finally:
                writer.close()

        reader = asyncio.StreamReader(limit=2**16, loop=self._loop)
        protocol = asyncio.StreamReaderProtocol(reader, serve, loop=self._loop)
        transport.set_protocol(protocol)
        protocol.connection_made(transport)
        protocol.data_received(seen)

    def turn_away(self, transport: asyncio.Transport, kind: str, message: str) -> None:
        """Refuse a connection before any protocol has begun."""
        self._ledger.refuse(kind, {"time": utc(), "provider": None, "status": 403, "error": message})
        body = error_body(None, 403, kind, message)
        head = f"HTTP/1.1 403 Forbidden\r\nContent-Type: application/json\r\nContent-Length: {len(body)}\r\n"
        transport.write(head.encode() + b"Connection: close\r\n\r\n" + body)
        transport.close()

    def malformed(self, status: int, message: str) -> web.Response:
        """A request that could not be parsed."""
        clean = " ".join(message.split())[:200]
        self._ledger.refuse("malformed", {"time": utc(), "provider": None, "status": status, "error": clean})
        body = error_body(None, status, "malformed", "this is no valid HTTP/1.1 request")
        return web.Response(status=status, body=body, content_type="application/json")

    async def _handle(self, request: web.BaseRequest) -> web.StreamResponse:
        if request.raw_path.startswith("/hub/"):
            return await self._hub(request)
        name = next((each for each in _SERVICES if request.raw_path.startswith(f"/{each}/")), None)
        if name is None:
            return await self._forwarder.serve(request)
        try:
            self._forwarder.admit_token(request)
            module = _optional(name) if getattr(self._context.config, name) is not None else None
            if module is None:
                raise Refusal(name, 404, f"this run has no {_SERVICES[name]}")
        except Refusal as refusal:
            return self._forwarder.refuse(request, refusal)
        answer: web.StreamResponse = await module.handle(request, self._context)
        return answer

    async def _hub(self, request: web.BaseRequest) -> web.StreamResponse:
        module = _optional("hub") if self._context.config.hub is not None else None
        if module is None:
            return self._forwarder.refuse(request, Refusal("hub", 404, "this run has no door to the model hub"))
        answer: web.StreamResponse = await module.handle(request, self._context)
        return answer

    async def close(self) -> None:
        """Stop accepting, cut what is under way, put the ledger on the disk."""
        for server in self._servers:
            server.close()
        await self._manager.shutdown(1.0)
        for transport in self._transports:
            transport.abort()
        # cancelled calls write their lines
        await asyncio.sleep(0)
        self._ledger.close()
        await self._context.close()


def _optional(name: str) -> Any:
    """A part of the gateway that is imported when it is first used."""
    try:
        return importlib.import_module(f"posttrainbench.gateway.{name}")
    except ImportError as error:
        say(f"no gateway.{name}: {error}")
        return None


def harden() -> None:
    """No core dump and no debugger may show what this process holds; many connections may be open."""
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    _, most = resource.getrlimit(resource.RLIMIT_NOFILE)
    with contextlib.suppress(ValueError, OSError):
        resource.setrlimit(resource.RLIMIT_NOFILE, (min(most, 65536) if most > 0 else 65536, most))
    with contextlib.suppress(OSError, ImportError, AttributeError):
        import ctypes

        ctypes.CDLL(None).prctl(4, 0, 0, 0, 0)  # PR_SET_DUMPABLE


async def run(context: Context, control: socket.socket) -> None:
    """Serve until the control socket ends."""
    loop = asyncio.get_running_loop()
    stop = asyncio.Event()
    server = Server(context)
    control.setblocking(False)
    adopting: set[asyncio.Task[None]] = set()

    async def adopt(listener: socket.socket) -> None:
        try:
            await server.adopt(listener)
            answer = b"adopted"
        except (OSError, ValueError) as error:
            answer = f"failed {error}".encode()
        with contextlib.suppress(OSError):
            control.send(answer)

    def on_message() -> None:
        try:
            data, descriptors, _, _ = socket.recv_fds(control, 64, 8)
        except BlockingIOError:
            return
        except OSError:
            data, descriptors = b"", []
        for descriptor in descriptors:
            task = asyncio.create_task(adopt(socket.socket(fileno=descriptor)))
            adopting.add(task)
            task.add_done_callback(adopting.discard)
        if not data:
            loop.remove_reader(control.fileno())
            stop.set()

    loop.add_reader(control.fileno(), on_message)
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, stop.set)
    control.send(b"ready")
    await stop.wait()
    loop.remove_reader(control.fileno())
    await server.close()

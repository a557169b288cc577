"""The web door on loopback, as the gateway runs it, and servers behind it that remember what reached them."""

from __future__ import annotations

import asyncio
import json
import socket
import ssl
import subprocess
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

from posttrainbench.errors import PTBError
from posttrainbench.gateway import GatewayConfig, Provider, Secrets, intercept_install, web
from posttrainbench.gateway.context import Context

HOST = "allowed.example.org"
"""The name under which tests reach their own servers."""


@dataclass
class Names:
    """A name service: every name has the addresses that a test gave it, in turn; the last ones stay."""

    table: dict[str, list[list[str]]]
    asked: list[str] = field(default_factory=list)

    async def __call__(self, name: str, port: int, /) -> Sequence[str]:
        self.asked.append(name)
        answers = self.table.get(name, [[]])
        return answers.pop(0) if len(answers) > 1 else answers[0]


@dataclass
class RunningDoor:
    """A door that listens."""

    port: int
    context: Context
    names: Names
    loop: asyncio.AbstractEventLoop

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    def log(self, *, count: int = 1, limit_s: float = 5.0) -> list[dict[str, Any]]:
        """The lines of the log, once there are `count`."""
        path = self.context.directory / "web.jsonl"
        until = time.monotonic() + limit_s
        while True:
            lines = path.read_text().splitlines() if path.exists() else []
            if len(lines) >= count or time.monotonic() > until:
                return [json.loads(line) for line in lines]
            time.sleep(0.01)

    def connect(self) -> socket.socket:
        found = socket.create_connection(("127.0.0.1", self.port), timeout=10)
        found.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        return found

    def ask(self, raw: bytes) -> bytes:
        """Send bytes and read until the end."""
        with self.connect() as connection:
            connection.sendall(raw)
            return read_all(connection)


@dataclass(frozen=True)
class Interception:
    """What a door needs to look into tunnels, made once.

    Attributes:
        settings: for `running_door`.
        certificate: file with the certificate of the door's authority.
    """

    settings: dict[str, Any]
    certificate: Path


def interception(directory: Path) -> Interception:
    """The interceptor, installed if need be; skips the test where that cannot be."""
    try:
        engine = intercept_install.install()
    except PTBError as error:
        pytest.skip(f"no interceptor: {error}")
    authority = intercept_install.new_authority(engine, "PostTrainBench test")
    certificate = directory / "door.pem"
    certificate.write_text(authority["certificate"])
    settings = {"tls": "intercept", "engine": str(engine.path), "authority": authority}
    return Interception(settings, certificate)


def read_all(connection: socket.socket) -> bytes:
    data = b""
    while True:
        try:
            piece = connection.recv(65536)
        except ConnectionError:
            return data
        if not piece:
            return data
        data += piece


@contextmanager
def running_door(
    directory: Path,
    *,
    policy: str = "guarded",
    internal: Sequence[str] = (),
    table: Mapping[str, list[list[str]]] | None = None,
    system_names: bool = False,
    proxy: str | None = None,
    providers: tuple[Provider, ...] = (),
    authority: Mapping[str, str] | None = None,
    **settings: Any,
) -> Iterator[RunningDoor]:
    """Run a door in a thread of its own."""
    directory.mkdir(parents=True, exist_ok=True)
    config = web.WebConfig(policy=policy, internal=tuple(internal), **settings)
    context = Context(
        config=GatewayConfig(web=config.to_json(), providers=providers),
        secrets=Secrets(proxy=proxy, authority=authority or {}),
        directory=directory,
    )
    names = Names({HOST: [["127.0.0.1"]], **(table or {})})
    if not system_names:
        context.parts["web"] = web.Door(context, resolver=names)
    started = threading.Event()
    found: list[RunningDoor] = []
    stop: list[Callable[[], None]] = []

    async def main() -> None:
        ended = asyncio.Event()
        loop = asyncio.get_running_loop()
        server = await asyncio.start_server(lambda r, w: web.handle(r, w, context), "127.0.0.1", 0, limit=2**18)
        stop.append(lambda: loop.call_soon_threadsafe(ended.set))
        found.append(RunningDoor(server.sockets[0].getsockname()[1], context, names, loop))
        started.set()
        await ended.wait()
        server.close()
        for task in asyncio.all_tasks() - {asyncio.current_task()}:
            task.cancel()
        await asyncio.sleep(0)
        await context.close()

    thread = threading.Thread(target=asyncio.run, args=(main(),), daemon=True)
    thread.start()
    assert started.wait(10)
    try:
        yield found[0]
    finally:
        stop[0]()
        thread.join(10)


@dataclass
class Recorder:
    """A server that keeps every byte that reached it."""

    port: int = 0
    connections: int = 0
    data: bytearray = field(default_factory=bytearray)


Serve = Callable[[socket.socket, Recorder], None]


def answer_plainly(connection: socket.socket, recorder: Recorder) -> None:
    """Read a head and answer with a short page."""
    data = b""
    while b"\r\n\r\n" not in data:
        piece = connection.recv(65536)
        if not piece:
            return
        data += piece
        recorder.data += piece
    connection.sendall(b"HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\nhello")


@contextmanager
def server(serve: Serve = answer_plainly, *, tls: ssl.SSLContext | None = None) -> Iterator[Recorder]:
    """Serve each connection in a thread of its own."""
    listener = socket.create_server(("127.0.0.1", 0))
    recorder = Recorder(port=listener.getsockname()[1])

    def one(connection: socket.socket) -> None:
        try:
            if tls is not None:
                connection = tls.wrap_socket(connection, server_side=True)
            serve(connection, recorder)
        except OSError:
            pass
        finally:
            connection.close()

    def accept() -> None:
        while True:
            try:
                connection, _ = listener.accept()
            except OSError:
                return
            recorder.connections += 1
            threading.Thread(target=one, args=(connection,), daemon=True).start()

    threading.Thread(target=accept, daemon=True).start()
    try:
        yield recorder
    finally:
        listener.shutdown(socket.SHUT_RDWR)
        listener.close()


def certificate(directory: Path, name: str = HOST) -> Path:
    """A key and a certificate for `name` in one file, signed by itself."""
    path = directory / "server.pem"
    subprocess.run(
        [
            *("openssl", "req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes"),
            *("-days", "2", "-subj", f"/CN={name}", "-addext", f"subjectAltName=DNS:{name}"),
            *("-keyout", str(path), "-out", f"{path}.crt"),
        ],
        check=True,
        capture_output=True,
    )
    with path.open("a") as file:
        file.write(Path(f"{path}.crt").read_text())
    return path


def client_hello(name: str | None, *, extra: bytes = b"") -> bytes:
    """The first message of a real TLS client that asks for `name`; `extra` is added to its extensions."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
    incoming, outgoing = ssl.MemoryBIO(), ssl.MemoryBIO()
    engine = context.wrap_bio(incoming, outgoing, server_hostname=name)
    with suppress(ssl.SSLWantReadError):
        engine.do_handshake()
    raw = outgoing.read()
    return raw if not extra else _extended(raw, extra)


def _extended(raw: bytes, extra: bytes) -> bytes:
    """Put bytes at the end of a hello's extensions and mend the three lengths before them."""
    body = bytearray(raw[9:])
    at = 34
    at += 1 + body[at]
    at += 2 + int.from_bytes(body[at : at + 2])
    at += 1 + body[at]
    body[at : at + 2] = (int.from_bytes(body[at : at + 2]) + len(extra)).to_bytes(2)
    body += extra
    message = b"\x01" + len(body).to_bytes(3) + body
    return raw[:3] + len(message).to_bytes(2) + message

"""Moving bytes between two sockets without looking at them, and taking sockets away from asyncio's streams for that.

`splice(2)` moves them through a pipe within the kernel: this process neither copies nor holds them. That takes 0.2 s of CPU
for a GB, copying with large buffers 0.3 s at the same speed, and asyncio's streams more (benchmarks/doors.py, 2 cores).
"""

from __future__ import annotations

import asyncio
import errno
import fcntl
import os
import socket
from asyncio import StreamReader, StreamWriter
from collections.abc import Callable
from contextlib import suppress

from posttrainbench.gateway.web_upstream import Upstream

_PIPE = 2**20
"""Bytes that a pipe may hold: what Linux lets anybody have. Beyond 64 such pipes a user gets smaller ones."""
_COPIED = 2**18


async def take_over(reader: StreamReader, writer: StreamWriter) -> tuple[socket.socket, bytes]:
    """A connection's socket (a copy; close both) with all that was written sent, and what was read and not taken.

    Raises:
        EOFError: it is closed.
        ValueError: it is none of plain TCP or a Unix socket.
    """
    transport = writer.transport
    if transport.get_extra_info("ssl_object") is not None:
        raise ValueError("TLS cannot be handed over")
    transport.set_write_buffer_limits(high=0)
    await writer.drain()
    if transport.is_closing():
        raise EOFError
    inner = transport.get_extra_info("socket")
    transport.pause_reading()  # type: ignore[attr-defined]  # sockets' transports read and write
    buffer = reader._buffer  # type: ignore[attr-defined]  # there is no other way to what has been read already
    rest = bytes(buffer)
    buffer.clear()
    found = socket.socket(fileno=os.dup(inner.fileno()))
    found.setblocking(False)
    return found, rest


async def detach(upstream: Upstream) -> socket.socket:
    """The socket of a connection on which nothing has been said yet.

    Raises:
        EOFError: it is closed, or the server spoke first, which TLS does not do.
        ValueError: as `take_over`.
    """
    found, early = await take_over(upstream.reader, upstream.writer)
    upstream.writer.close()
    if early:
        found.close()
        raise EOFError
    return found


async def relay(source: socket.socket, target: socket.socket, moved: Callable[[int], None]) -> None:
    """Move bytes until `source` ends; then tell `target`. `moved` hears of each piece that has gone on.

    Raises:
        OSError: a connection broke.
    """
    first = await _recv(source)
    if first:
        # most directions of most tunnels carry little, and need no pipe
        await send(target, first, moved)
        try:
            await _spliced(source, target, moved)
        except OSError as error:
            if error.errno != errno.EINVAL:
                raise
            await _copied(source, target, moved)
    with suppress(OSError):
        target.shutdown(socket.SHUT_WR)


async def _recv(source: socket.socket) -> bytes:
    return await asyncio.get_running_loop().sock_recv(source, _COPIED)


async def _spliced(source: socket.socket, target: socket.socket, moved: Callable[[int], None]) -> None:
    flags = os.SPLICE_F_MOVE | os.SPLICE_F_NONBLOCK
    await _ready(source, writing=False)
    out, into = os.pipe2(os.O_NONBLOCK | os.O_CLOEXEC)
    try:
        with suppress(OSError):
            fcntl.fcntl(into, fcntl.F_SETPIPE_SZ, _PIPE)
        while True:
            try:
                held = os.splice(source.fileno(), into, _PIPE, flags=flags)
            except BlockingIOError:
                await _ready(source, writing=False)
                continue
            if not held:
                return
            while held:
                try:
                    sent = os.splice(out, target.fileno(), held, flags=flags)
                except BlockingIOError:
                    await _ready(target, writing=True)
                    continue
                held -= sent
                moved(sent)
            # others' turn
            await asyncio.sleep(0)
    finally:
        os.close(out)
        os.close(into)


async def _copied(source: socket.socket, target: socket.socket, moved: Callable[[int], None]) -> None:
    while piece := await _recv(source):
        await send(target, piece, moved)


async def send(target: socket.socket, data: bytes, moved: Callable[[int], None]) -> None:
    """Send all of it; `moved` hears of what has gone, also where the rest does not follow.

    Raises:
        OSError: the connection broke.
    """
    left = memoryview(data)
    while left:
        try:
            sent = target.send(left)
        except BlockingIOError:
            await _ready(target, writing=True)
            continue
        left = left[sent:]
        moved(sent)


async def _ready(which: socket.socket, *, writing: bool) -> None:
    loop = asyncio.get_running_loop()
    found: asyncio.Future[None] = loop.create_future()
    add, remove = (loop.add_writer, loop.remove_writer) if writing else (loop.add_reader, loop.remove_reader)

    def fulfil() -> None:
        if not found.done():
            found.set_result(None)

    add(which.fileno(), fulfil)
    try:
        await found
    finally:
        remove(which.fileno())

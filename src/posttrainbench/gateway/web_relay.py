"""Taking connections away from asyncio's streams, to hand them to another process."""

from __future__ import annotations

import os
import socket
from asyncio import StreamReader, StreamWriter

from posttrainbench.gateway.web_upstream import Upstream


async def take_over(reader: StreamReader, writer: StreamWriter) -> tuple[socket.socket, bytes]:
    """A connection's socket (a copy; close both) with all that was written sent, and what was read and not taken.

    Raises:
        EOFError: it is closed.
        ValueError: it is none of plain TCP or a Unix socket.
    """
    transport = writer.transport
    transport.set_write_buffer_limits(high=0)
    await writer.drain()
    if transport.is_closing():
        raise EOFError
    inner = transport.get_extra_info("socket")
    if transport.get_extra_info("ssl_object") is not None:
        raise ValueError("TLS cannot be handed over")
    transport.pause_reading()  # type: ignore[attr-defined]  # sockets' transports read and write
    buffer = reader._buffer  # type: ignore[attr-defined]  # there is no other way to what has been read already
    rest = bytes(buffer)
    buffer.clear()
    return socket.socket(fileno=os.dup(inner.fileno())), rest


async def detach(upstream: Upstream) -> socket.socket:
    """The socket of a connection on which nothing has been said yet.

    Raises:
        EOFError: it is closed, or the server spoke first, which TLS does not do.
    """
    found, early = await take_over(upstream.reader, upstream.writer)
    upstream.writer.close()
    if early:
        found.close()
        raise EOFError
    return found

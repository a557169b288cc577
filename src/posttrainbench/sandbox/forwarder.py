"""The sandbox's end of its only way out: TCP on 127.0.0.1 inside -> unix socket of the harness. Standard library only.

A child of the container's first process (`container_inside.py`), which holds the listening sockets. Killing it cuts its
connections and nothing else; the next one takes over.
"""

import asyncio
import contextlib
import resource
import socket
from collections.abc import Mapping

_CHUNK = 1 << 18


async def _pump(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    """Bytes one way until the end of file, which is passed on: the other way may go on."""
    try:
        while data := await reader.read(_CHUNK):
            writer.write(data)
            await writer.drain()
        if writer.can_write_eof():
            writer.write_eof()
    except OSError:
        writer.transport.abort()


async def _forward(target: str, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    try:
        far_reader, far_writer = await asyncio.open_unix_connection(target, limit=_CHUNK)
    except OSError:
        writer.transport.abort()
        return
    try:
        await asyncio.gather(_pump(reader, far_writer), _pump(far_reader, writer))
    finally:
        for each in (writer, far_writer):
            with contextlib.suppress(OSError):
                each.close()


async def _serve(listeners: Mapping[socket.socket, str]) -> None:
    for listener, target in listeners.items():

        async def take(reader: asyncio.StreamReader, writer: asyncio.StreamWriter, to: str = target) -> None:
            await _forward(to, reader, writer)

        listener.setblocking(False)
        await asyncio.start_server(take, sock=listener, limit=_CHUNK)
    await asyncio.Event().wait()


def serve(listeners: Mapping[socket.socket, str]) -> None:
    """Forward each connection; never returns.

    Args:
        listeners: listening TCP socket -> path of the unix socket behind it.
    """
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    asyncio.run(_serve(listeners))

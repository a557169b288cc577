"""The sandbox's end of its only way out: TCP on 127.0.0.1 inside -> unix socket of the harness. Standard library only.

A child of the container's first process (`container_inside.py`), which holds the listening sockets. Killing it cuts its
connections and nothing else; the next one takes over.
"""

import asyncio
import resource
import socket
from collections.abc import Mapping

# Two for each connection count as the sandbox's memory.
_BUFFER = 1 << 17
# One busy connection gives the others their turn after so many pieces.
_TURN = 64
# Pause when there is no descriptor left for another connection.
_FULL_S = 0.1


async def _pump(source: socket.socket, target: socket.socket) -> None:
    """Bytes one way until the end of file, which is passed on: the other way may go on."""
    loop = asyncio.get_running_loop()
    buffer = memoryview(bytearray(_BUFFER))
    pieces = 0
    while size := await loop.sock_recv_into(source, buffer):
        await loop.sock_sendall(target, buffer[:size])
        pieces += 1
        if pieces % _TURN == 0:
            await asyncio.sleep(0)
    target.shutdown(socket.SHUT_WR)


async def _forward(near: socket.socket, target: str) -> None:
    far = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    with near, far:
        far.setblocking(False)
        ways: list[asyncio.Task[None]] = []
        try:
            await asyncio.get_running_loop().sock_connect(far, target)
            ways = [asyncio.create_task(_pump(near, far)), asyncio.create_task(_pump(far, near))]
            await asyncio.gather(*ways)
        except OSError:
            pass  # on one way it is the end of both: the sockets are closed, and both sides see it
        finally:
            for way in ways:
                way.cancel()
            await asyncio.gather(*ways, return_exceptions=True)


async def _accept(listener: socket.socket, target: str) -> None:
    loop = asyncio.get_running_loop()
    running: set[asyncio.Task[None]] = set()
    while True:
        try:
            near, _ = await loop.sock_accept(listener)
        except OSError:
            await asyncio.sleep(_FULL_S)
            continue
        task = asyncio.create_task(_forward(near, target))
        running.add(task)
        task.add_done_callback(running.discard)


async def _serve(listeners: Mapping[socket.socket, str]) -> None:
    for listener in listeners:
        listener.setblocking(False)
    await asyncio.gather(*(_accept(listener, target) for listener, target in listeners.items()))


def serve(listeners: Mapping[socket.socket, str]) -> None:
    """Forward each connection; never returns.

    Args:
        listeners: listening TCP socket -> path of the unix socket behind it.
    """
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    asyncio.run(_serve(listeners))

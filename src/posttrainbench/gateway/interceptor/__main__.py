"""The interceptor's process. Started by the gateway (`gateway.intercept`) with the Python of its own environment:

python -I .../interceptor CONTROL            settings on standard input, messages and sockets over descriptor CONTROL
python -I .../interceptor --authority NAME   prints a new certificate authority as JSON
python -I .../interceptor --check            prints mitmproxy's version
"""

from __future__ import annotations

import asyncio
import base64
import contextlib
import ctypes
import itertools
import json
import logging
import os
import resource
import signal
import socket
import sys
from typing import Any

_NO_NETWORK, _NEW_USER = 0x40000000, 0x10000000
_PDEATHSIG, _DUMPABLE = 1, 4
_MOST_LINES = 200
"""Messages of failures in all: they go to the gateway's log file, and clients can bring some about at will."""


def _harden() -> bool:
    """Leave the network, die with the gateway, show memory to nobody. Returns whether the network is left.

    The descriptors that the gateway hands over keep their network; this process cannot open another one.
    """
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    libc = ctypes.CDLL(None, use_errno=True)
    left: bool = libc.unshare(_NO_NETWORK) == 0 or libc.unshare(_NEW_USER | _NO_NETWORK) == 0
    libc.prctl(_PDEATHSIG, signal.SIGKILL, 0, 0, 0)
    libc.prctl(_DUMPABLE, 0, 0, 0, 0)
    return left


async def _serve(control: socket.socket, settings: dict[str, Any], *, left: bool) -> None:
    import authority
    import channel
    import proxy

    loop = asyncio.get_running_loop()
    over = asyncio.Event()
    answers: dict[int, asyncio.Future[tuple[dict[str, Any], list[int]]]] = {}
    tasks: set[asyncio.Task[None]] = set()
    calls = 0

    async def ask(question: dict[str, Any]) -> tuple[dict[str, Any], list[int]]:
        nonlocal calls
        calls += 1
        number = calls
        answers[number] = loop.create_future()
        try:
            line.send({**question, "call": number})
            return await answers[number]
        finally:
            del answers[number]

    def on_message(message: dict[str, Any], descriptors: list[int]) -> None:
        waiting = answers.get(message.get("call", 0))
        if message["op"] == "tunnel":
            client, upstream = (socket.socket(fileno=each) for each in descriptors)
            client.setblocking(False)
            first = base64.b64decode(message["first"])
            task = asyncio.create_task(engine.carry(message, first, client, upstream))
            tasks.add(task)
            task.add_done_callback(tasks.discard)
        elif waiting is not None and not waiting.done():
            waiting.set_result((message, descriptors))
        else:
            for each in descriptors:
                os.close(each)

    line = channel.Channel(control, on_message, over.set)
    engine = proxy.Engine(
        authority=authority.load(settings["authority"]),
        trust=settings["trust"],
        http2=settings["http2"],
        idle_s=settings["idle_s"],
        known=frozenset(settings["known"]),
        ask=ask,
        tell=line.send,
    )
    line.send({"op": "ready", "left": left})
    await over.wait()


def main() -> None:
    """Do what the arguments say."""
    if sys.argv[1] == "--check":
        import authority
        import proxy
        from mitmproxy import version

        assert proxy and authority
        print(version.VERSION)
    elif sys.argv[1] == "--authority":
        import authority

        print(json.dumps(authority.make(sys.argv[2])))
    else:
        left = _harden()
        settings = json.load(sys.stdin)
        sys.stdin.close()
        logging.basicConfig(level=logging.ERROR, format="interceptor: %(message)s")
        count = itertools.count()
        logging.getLogger().handlers[0].addFilter(lambda _: next(count) < _MOST_LINES)
        control = socket.socket(fileno=int(sys.argv[1]))
        with contextlib.suppress(KeyboardInterrupt):
            asyncio.run(_serve(control, settings, left=left))


main()

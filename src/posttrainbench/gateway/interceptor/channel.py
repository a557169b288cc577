"""Messages between the gateway and the interceptor: JSON with descriptors, over a socket that keeps their bounds."""

from __future__ import annotations

import asyncio
import json
import os
import socket
from collections import deque
from collections.abc import Callable, Sequence
from typing import Any

Message = dict[str, Any]

LARGEST = 196_608
"""Bytes of a message; a hello and what came with it in base64 (175 kB). The kernel takes 208 kB by default."""
_MOST_FDS = 2


def pair() -> tuple[socket.socket, socket.socket]:
    """The two ends, with room for the largest message."""
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    for end in (ours, theirs):
        end.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 2 * LARGEST)
    return ours, theirs


class Channel:
    """One end, in an event loop.

    Args:
        end: of `pair`.
        on_message: gets each message with the descriptors that came along, which are then its own.
        on_end: called once, when the other side is gone.
    """

    def __init__(
        self, end: socket.socket, on_message: Callable[[Message, list[int]], None], on_end: Callable[[], None]
    ) -> None:
        self._end = end
        self._loop = asyncio.get_running_loop()
        self._on_message, self._on_end = on_message, on_end
        # descriptors that wait are copies: who sends may close his own at once
        self._waiting: deque[tuple[bytes, list[int]]] = deque()
        self.closed = False
        end.setblocking(False)
        self._loop.add_reader(end.fileno(), self._readable)

    def send(self, message: Message, descriptors: Sequence[int] = ()) -> None:
        """Send, or keep until there is room. What is sent to nobody is dropped.

        Raises:
            ValueError: the message is too large.
        """
        data = json.dumps(message).encode()
        if len(data) > LARGEST:
            raise ValueError("a message is too large")
        if self.closed:
            return
        self._waiting.append((data, [os.dup(each) for each in descriptors]))
        if len(self._waiting) == 1:
            self._writable()
            if self._waiting and not self.closed:
                self._loop.add_writer(self._end.fileno(), self._writable)

    def close(self) -> None:
        """End it, without a word to `on_end`."""
        if self.closed:
            return
        self.closed = True
        self._loop.remove_reader(self._end.fileno())
        self._loop.remove_writer(self._end.fileno())
        self._end.close()
        for _, descriptors in self._waiting:
            _close(descriptors)
        self._waiting.clear()

    def _writable(self) -> None:
        while self._waiting:
            data, descriptors = self._waiting[0]
            try:
                socket.send_fds(self._end, [data], descriptors)
            except (BlockingIOError, InterruptedError):
                return
            except OSError:
                self._lost()
                return
            self._waiting.popleft()
            _close(descriptors)
        self._loop.remove_writer(self._end.fileno())

    def _readable(self) -> None:
        # a few at a time, so that a flood of messages leaves room for others' work
        for _ in range(16):
            if self.closed:
                return
            try:
                data, descriptors, flags, _ = socket.recv_fds(self._end, LARGEST, _MOST_FDS)
            except (BlockingIOError, InterruptedError):
                return
            except OSError:
                data, descriptors, flags = b"", [], 0
            if not data:
                self._lost()
                return
            if flags & (socket.MSG_TRUNC | socket.MSG_CTRUNC):
                _close(descriptors)
                continue
            for each in descriptors:
                os.set_inheritable(each, False)
            self._on_message(json.loads(data), descriptors)

    def _lost(self) -> None:
        if not self.closed:
            self.close()
            self._on_end()


def _close(descriptors: Sequence[int]) -> None:
    for each in descriptors:
        os.close(each)

"""The channel through which a sandbox's output reaches the harness: what was printed can be read by nobody else."""

from __future__ import annotations

import contextlib
import fcntl
import os
import socket

_SIZE = 1 << 20


def output_channel(user: int | None) -> tuple[int, int]:
    """Descriptors for reading (the harness's, does not block) and for writing (the sandbox's stdout and stderr).

    Whoever can open the channel by its name (/proc/PID/fd/1) for reading takes back what others printed before the trace has
    it. With a root harness it is a pipe that the sandbox's user may open for writing only, so /dev/stdout works. An
    ordinary user's sandbox would own that pipe and could change its mode; there it is a socket, which has no name at all.

    Args:
        user: the sandbox's user on the host; `None` for the harness's own.
    """
    if user is None:
        reading, writing = socket.socketpair()
        with contextlib.suppress(OSError):
            writing.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, _SIZE)
        reader, writer = reading.detach(), writing.detach()
    else:
        reader, writer = os.pipe()
        with contextlib.suppress(OSError):
            fcntl.fcntl(writer, fcntl.F_SETPIPE_SZ, _SIZE)
        os.fchmod(writer, 0o222)
    os.set_blocking(reader, False)
    return reader, writer

"""An agent that will not stop: it ignores every signal it can and leaves a daemon that ignores them as well.

It writes a heartbeat file, by which a test can see whether anything of it lives on.
"""

import contextlib
import os
import signal
import time
from pathlib import Path


def deaf() -> None:
    """Ignore every signal that can be ignored."""
    for number in range(1, signal.NSIG):
        with contextlib.suppress(OSError, ValueError):
            signal.signal(number, signal.SIG_IGN)


def heartbeat(name: str) -> None:
    """Write the time to a file, for ever."""
    while True:
        Path(name).write_text(str(time.time()))
        time.sleep(0.1)


deaf()
if os.fork() == 0:
    os.setsid()
    if os.fork() == 0:
        deaf()
        heartbeat("daemon.heartbeat")
    os._exit(0)
print("I need more time and I will take it.", flush=True)
heartbeat("main.heartbeat")

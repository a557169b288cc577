"""Takes more memory than it may."""

import os
import signal
import time

child = os.fork()
if child == 0:
    held = []
    while True:
        held.append(bytearray(os.urandom(1 << 20)) * 8)
        time.sleep(0.001)
_, status = os.waitpid(child, 0)
print("killed by", signal.Signals(os.WTERMSIG(status)).name if os.WIFSIGNALED(status) else "nobody")

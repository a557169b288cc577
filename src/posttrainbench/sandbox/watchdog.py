"""Limits that the kernel does not keep for us: bytes on disk always, memory and processes without control groups.

Watchdogs look every second or two. What is written in between is over the limit before they see it.
"""

from __future__ import annotations

import contextlib
import os
import signal
import threading
import time
from collections.abc import Sequence
from pathlib import Path

from posttrainbench.sandbox import processes

DISK_INTERVAL_S = 1.0
MEMORY_INTERVAL_S = 0.5


def disk_usage(roots: Sequence[Path]) -> int:
    """Bytes allocated below `roots`. A file with several names counts once, a link never counts its target."""
    total = 0
    seen: set[tuple[int, int]] = set()
    stack = [str(root) for root in roots]
    while stack:
        with contextlib.suppress(OSError), os.scandir(stack.pop()) as entries:
            for entry in entries:
                try:
                    status = entry.stat(follow_symlinks=False)
                except OSError:
                    continue  # removed meanwhile
                if entry.is_dir(follow_symlinks=False):
                    stack.append(entry.path)
                elif status.st_nlink > 1:
                    if (status.st_dev, status.st_ino) in seen:
                        continue
                    seen.add((status.st_dev, status.st_ino))
                total += status.st_blocks * 512
    return total


def unlinked_usage(namespace: str, devices: set[int]) -> int:
    """Bytes of files on `devices` that were deleted but are still open in the sandbox: no walk can see them."""
    found: dict[tuple[int, int], int] = {}
    for pid in processes.members(namespace):
        with contextlib.suppress(OSError), os.scandir(f"/proc/{pid}/fd") as entries:
            for entry in entries:
                with contextlib.suppress(OSError):
                    status = entry.stat()
                    if status.st_nlink == 0 and status.st_dev in devices:
                        found[status.st_dev, status.st_ino] = status.st_blocks * 512
    return sum(found.values())


class DiskWatch:
    """Measures the writable directories in a thread of its own, so that a large tree does not hold up the output."""

    def __init__(self, roots: Sequence[Path], limit: int, namespace: str, *, free: int = 0) -> None:
        """Start watching. The thread never takes more than about a tenth of one core.

        Args:
            roots: directories to measure.
            limit: bytes.
            namespace: pid namespace of the sandbox, whose open but deleted files count too.
            free: bytes that were put there by us and do not count.
        """
        self.peak = 0
        self._free = free
        self.exceeded = False
        self._roots, self._limit, self._namespace = list(roots), limit, namespace
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._watch, name="ptb-disk-watch", daemon=True)
        self._thread.start()

    def _watch(self) -> None:
        devices = {root.stat().st_dev for root in self._roots}
        pause = 0.0
        while not self._stop.wait(pause):
            start = time.monotonic()
            self._measure(unlinked_usage(self._namespace, devices))
            pause = max(DISK_INTERVAL_S, 10 * (time.monotonic() - start))

    def _measure(self, more: int = 0) -> None:
        used = disk_usage(self._roots) + more - self._free
        self.peak = max(self.peak, used)
        self.exceeded = self.exceeded or used > self._limit

    def stop(self) -> None:
        """End the thread and measure once more: a short command may have come and gone between two looks."""
        self._stop.set()
        self._thread.join()
        self._measure()


class MemoryWatch:
    """Stands in for the kernel's out-of-memory killer where there are no control groups."""

    def __init__(self, namespace: str, init: int, limit: int | None, tmpfs: Sequence[str]) -> None:
        """Prepare; `look` does the work and is called from the main loop.

        Args:
            namespace: pid namespace of the sandbox.
            init: host pid of its first process.
            limit: bytes, or `None` to measure only.
            tmpfs: inside paths of the in-memory file systems; no process is charged for files there.
        """
        self.peak = 0
        self.kills = 0
        self.hopeless = False
        self._namespace, self._init, self._limit = namespace, init, limit
        self._tmpfs = [f"/proc/{init}/root{path}" for path in tmpfs]
        self._next = 0.0

    def look(self, now: float) -> None:
        """Measure if it is time. Over the limit, the largest process is killed, as the kernel would."""
        if now < self._next:
            return
        sizes = {pid: processes.memory_of(pid) for pid in processes.members(self._namespace)}
        # Mapped files of a tmpfs are in both sums: the larger one is the best guess at their union.
        shared = max(self._files(), sum(size[1] for size in sizes.values()))
        used = shared + sum(size[0] for size in sizes.values())
        self.peak = max(self.peak, used)
        if self._limit is not None and used > self._limit:
            self.kills += 1
            victims = [pid for pid in sizes if pid != self._init]
            if shared > self._limit or not victims:
                self.hopeless = True  # killing one process gives back nothing of what lies in /tmp
            else:
                processes.send_one(self._namespace, max(victims, key=lambda pid: sum(sizes[pid])), signal.SIGKILL)
        self._next = now + MEMORY_INTERVAL_S

    def _files(self) -> int:
        total = 0
        for path in self._tmpfs:
            with contextlib.suppress(OSError):
                usage = os.statvfs(path)
                total += (usage.f_blocks - usage.f_bfree) * usage.f_frsize
        return total

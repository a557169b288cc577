"""Limits that the kernel does not keep for us: bytes on disk always, memory and processes without control groups.

Watchdogs look every second or two. What is written in between is over the limit before they see it.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
import subprocess
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from posttrainbench.errors import InfrastructureError
from posttrainbench.sandbox import processes

DISK_INTERVAL_S = 1.0
MEMORY_INTERVAL_S = 0.5
_LARGEST_FLOOR = 4 << 30
"""Bytes: two seconds of a fast disk, so that a look each second comes in time."""


def disk_usage(roots: Sequence[Path], *, while_waiting: Callable[[], None] | None = None) -> int:
    """Bytes allocated below `roots`. A file with several names counts once, a link never counts its target.

    By `du`, which goes from descriptor to descriptor: no path is too deep for it, a directory that becomes a link meanwhile
    does not lead it out, and it does not hold up the harness's other threads (2 GB in 60,000 files: 0.3 s).

    Args:
        roots: directories.
        while_waiting: called once a second until `du` has ended.
    """
    process = subprocess.Popen(
        ["du", "-s", "-c", "-x", "-B1", "--", *map(str, roots)],
        env={"LC_ALL": "C"},
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,  # files that vanish meanwhile
    )
    while True:
        try:
            output, _ = process.communicate(timeout=1.0)
            break
        except subprocess.TimeoutExpired:
            if while_waiting is not None:
                while_waiting()
        except BaseException:
            process.kill()
            process.wait()
            raise
    last = output.splitlines()[-1:] or [b"0"]
    return int(last[0].split()[0])


def unlinked_usage(namespace: str, devices: set[int]) -> int:
    """Bytes of files on `devices` that were deleted but are still open or mapped in the sandbox: no walk can see them."""
    found: dict[tuple[int, int], int] = {}
    for pid in processes.members(namespace):
        with contextlib.suppress(OSError), os.scandir(f"/proc/{pid}/fd") as entries:
            for entry in entries:
                with contextlib.suppress(OSError):
                    status = entry.stat()
                    if status.st_nlink == 0 and status.st_dev in devices:
                        found[status.st_dev, status.st_ino] = status.st_blocks * 512
        for key, size in _mapped(pid, devices).items():
            found[key] = max(size, found.get(key, 0))
    return sum(found.values())


def _mapped(pid: int, devices: set[int]) -> dict[tuple[int, int], int]:
    """Deleted files that a process has mapped: their size for root, for others the bytes that are mapped."""
    found: dict[tuple[int, int], int] = {}
    with contextlib.suppress(OSError, ValueError), Path(f"/proc/{pid}/maps").open(errors="replace") as maps:
        for line in maps:
            if not line.endswith(" (deleted)\n"):
                continue
            addresses, _, _, device, inode = line.split(maxsplit=5)[:5]
            key = (os.makedev(*(int(part, 16) for part in device.split(":"))), int(inode))
            if key[0] not in devices:
                continue
            try:
                found[key] = Path(f"/proc/{pid}/map_files/{addresses}").stat().st_blocks * 512
            except OSError:
                first, last = (int(part, 16) for part in addresses.split("-"))
                found[key] = found.get(key, 0) + last - first
    return found


@dataclass(frozen=True)
class Floor:
    """What has to stay free on a file system, however the rest of it was filled.

    No walk sees what lies in a directory that its owner has closed, or in a deleted file whose descriptor is under way
    between two processes; and 10 million empty files have no bytes at all. The file system itself counts them all.
    """

    path: Path
    bytes: int
    files: int

    @classmethod
    def of(cls, path: Path, limit: int) -> Floor:
        """2 % of the file system, at most `_LARGEST_FLOOR`, and less where the limit leaves less; 2 % of its files."""
        now = os.statvfs(path)
        free = now.f_bavail * now.f_frsize
        most = min(now.f_blocks * now.f_frsize // 50, _LARGEST_FLOOR)
        return cls(path, max(0, min(most, (free - limit) // 2)), min(now.f_files // 50, now.f_favail // 2))

    def look(self) -> tuple[int, bool]:
        """Bytes that are free, and whether that, or the number of free files, is too little."""
        now = os.statvfs(self.path)
        free = now.f_bavail * now.f_frsize
        return free, free < self.bytes or now.f_favail < self.files


class DiskWatch:
    """Measures the writable directories in a thread of its own, so that a large tree does not hold up the output."""

    def __init__(self, roots: Sequence[Path], limit: int, namespace: str, *, free: int = 0) -> None:
        """Start watching. `du` and the thread never take more than about a tenth of one core, unless the disk fills quickly.

        Args:
            roots: directories to measure.
            limit: bytes.
            namespace: pid namespace of the sandbox, whose open but deleted files count too.
            free: bytes that were put there by us and do not count.

        Raises:
            InfrastructureError: nothing can be measured here.
        """
        if shutil.which("du") is None:
            raise InfrastructureError(
                "du is not installed, which measures the sandbox's disk: apt-get install coreutils"
            )
        self.peak = 0
        self._free = free
        self.exceeded = False
        self._roots, self._limit, self._namespace = list(roots), limit, namespace
        self._floors = [Floor.of(root, limit) for root in {root.stat().st_dev: root for root in roots}.values()]
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._watch, name="ptb-disk-watch", daemon=True)
        self._thread.start()

    def _watch(self) -> None:
        devices = {root.stat().st_dev for root in self._roots}
        due, used, before = 0.0, 0, [0] * len(self._floors)
        while not self._stop.wait(DISK_INTERVAL_S if due else 0.0):
            now = self._look()
            # a tree that takes long to measure must not be a place to hide in
            filled = sum(max(0, first - second) for first, second in zip(before, now, strict=True))
            if time.monotonic() < due and filled < self._limit - used:
                continue
            start = time.monotonic()
            used = self._measure(unlinked_usage(self._namespace, devices))
            due, before = time.monotonic() + max(DISK_INTERVAL_S, 10 * (time.monotonic() - start)), now

    def _look(self) -> list[int]:
        """Free bytes of each file system; notes when one is nearly full."""
        found = []
        for floor in self._floors:
            with contextlib.suppress(OSError):
                free, low = floor.look()
                self.exceeded = self.exceeded or low
                found.append(free)
        return found if len(found) == len(self._floors) else [0] * len(self._floors)

    def _measure(self, more: int = 0) -> int:
        used = disk_usage(self._roots, while_waiting=self._look_aside) + more - self._free
        self.peak = max(self.peak, used)
        self.exceeded = self.exceeded or used > self._limit
        return used

    def _look_aside(self) -> None:
        self._look()

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
            if shared >= self._limit or not victims:  # equal where the file system ends at the limit
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

"""The processes of one sandbox, seen from the host. A process belongs to it when its pid namespace is the sandbox's."""

from __future__ import annotations

import contextlib
import os
import select
import signal
from pathlib import Path


def namespace_of(pid: int) -> str:
    """Identity of the pid namespace of `pid`.

    Raises:
        OSError: the process is gone.
    """
    return os.readlink(f"/proc/{pid}/ns/pid")  # noqa: PTH115 - not a path, an identity


def members(namespace: str) -> list[int]:
    """Host pids of the living processes in a pid namespace; zombies do not count."""
    found = []
    for entry in os.scandir("/proc"):
        if not entry.name.isdigit():
            continue
        try:
            if namespace_of(int(entry.name)) != namespace:
                continue
            state = Path(entry.path, "stat").read_text(errors="replace").rpartition(")")[2].split()[0]
        except (OSError, IndexError):
            continue  # ended meanwhile, or not ours to look at
        if state not in ("Z", "X"):
            found.append(int(entry.name))
    return found


def send(namespace: str, number: signal.Signals, *, spare: int) -> None:
    """Send a signal to every process in the namespace but `spare` (its init, which would take the others with it)."""
    for pid in members(namespace):
        if pid != spare:
            send_one(namespace, pid, number)


def send_one(namespace: str, pid: int, number: signal.Signals) -> None:
    """Send a signal to one process, through a pidfd checked after opening: the number may have been given anew."""
    with contextlib.suppress(OSError):
        descriptor = os.pidfd_open(pid)
        try:
            if namespace_of(pid) == namespace:
                signal.pidfd_send_signal(descriptor, number)
        finally:
            os.close(descriptor)


def ended(pidfd: int, timeout_s: float) -> bool:
    """Wait until the process of a pidfd is dead. For a namespace's init that means: all its processes are."""
    poll = select.poll()
    poll.register(pidfd, select.POLLIN)
    return bool(poll.poll(int(timeout_s * 1000)))


def memory_of(pid: int) -> tuple[int, int]:
    """Private and shared-memory bytes of a process, in proportion (PSS): shared pages are divided among the sharers."""
    values = {"Pss": 0, "Pss_Shmem": 0}
    with contextlib.suppress(OSError, ValueError):
        for line in Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines():
            name, _, value = line.partition(":")
            if name in values:
                values[name] = int(value.split()[0]) * 1024
    return values["Pss"] - values["Pss_Shmem"], values["Pss_Shmem"]


def tasks_of(uid: int) -> int:
    """Threads that a user has on this machine."""
    total = 0
    for entry in os.scandir("/proc"):
        if entry.name.isdigit():
            with contextlib.suppress(OSError):
                if entry.stat().st_uid == uid:
                    total += sum(1 for _ in os.scandir(f"{entry.path}/task"))
    return total

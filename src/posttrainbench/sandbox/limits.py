"""Memory and process limits by the best means this machine has.

cgroup v2 where a group can be made beside our own one, cgroup v1 for root, else RLIMIT_NPROC and a watchdog
(`watchdog.py`). A group is made for every sandbox, limited or not: its counters give the peak memory for nothing.
"""

from __future__ import annotations

import contextlib
import os
import re
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from posttrainbench.errors import InfrastructureError
from posttrainbench.sandbox.spec import Limits

_PREFIX = "ptb-"


@dataclass(frozen=True)
class Means:
    """Where groups are made; `None` where there is no such place, then rlimits and the watchdog do what they can."""

    v2: Path | None = None
    v1_memory: Path | None = None
    v1_processes: Path | None = None

    @property
    def memory(self) -> str:
        """Word for `Capabilities.memory_limit`."""
        return "cgroup-v2" if self.v2 else "cgroup-v1" if self.v1_memory else "watchdog"

    @property
    def processes(self) -> str:
        """Word for `Capabilities.process_limit`."""
        return "cgroup-v2" if self.v2 else "cgroup-v1" if self.v1_processes else "rlimit"


def find_means(proc: Path = Path("/proc/self")) -> Means:
    """Look for places where this process may make control groups. Tries by making one and removing it."""
    try:
        own = dict(_own_groups((proc / "cgroup").read_text()))
        mounts = list(_mounts((proc / "mountinfo").read_text()))
    except OSError:
        return Means()
    for kind, root, point, _ in mounts:
        if kind == "cgroup2" and (place := _v2_place(point, root, own.get("", "/"))):
            return Means(v2=place)
    places: dict[str, Path] = {}
    if os.geteuid() == 0:  # v1 has no safe delegation to others
        for kind, root, point, controllers in mounts:
            for name in {"memory", "pids"} & set(controllers if kind == "cgroup" else ()):
                place = _inside(point, root, own.get(name, "/"))
                if place and _can_make(place):
                    places[name] = place
    return Means(v1_memory=places.get("memory"), v1_processes=places.get("pids"))


class Group:
    """The control groups of one sandbox. Made before it starts, removed after its last process is gone."""

    def __init__(self, means: Means, limits: Limits) -> None:
        """Make the groups and set the limits.

        Raises:
            InfrastructureError: the kernel refused a group that it allowed before.
        """
        self._means = means
        self._paths: list[Path] = []
        name = f"{_PREFIX}{os.getpid()}-{os.urandom(4).hex()}"  # containers may share the tree but not the pids
        try:
            if means.v2:
                self._make_v2(means.v2 / name, limits)
            if means.v1_memory:
                self._memory = self._make(means.v1_memory / name)
                if limits.memory_bytes is not None:
                    (self._memory / "memory.limit_in_bytes").write_text(str(limits.memory_bytes))
                    # Memory and swap together; absent where the kernel does not account swap.
                    with contextlib.suppress(OSError):
                        (self._memory / "memory.memsw.limit_in_bytes").write_text(str(limits.memory_bytes))
            if means.v1_processes:
                group = self._make(means.v1_processes / name)
                if limits.processes is not None:
                    (group / "pids.max").write_text(str(limits.processes))
        except OSError as error:
            self.close()
            raise InfrastructureError(f"cannot make a control group: {error}; see ptb doctor") from error

    def _make(self, path: Path) -> Path:
        _sweep(path.parent)
        path.mkdir()
        self._paths.append(path)
        return path

    def _make_v2(self, path: Path, limits: Limits) -> None:
        self._memory = self._make(path)
        if limits.memory_bytes is not None:
            (path / "memory.max").write_text(str(limits.memory_bytes))
            with contextlib.suppress(OSError):
                (path / "memory.swap.max").write_text("0")
        if limits.processes is not None:
            (path / "pids.max").write_text(str(limits.processes))

    @property
    def joins(self) -> list[str]:
        """Files into which a process writes 0 to become a member."""
        return [str(path / "cgroup.procs") for path in self._paths]

    def memory_kills(self) -> int:
        """How often the kernel killed a process of the group for memory."""
        file = "memory.events" if self._means.v2 else "memory.oom_control"
        if not (self._means.v2 or self._means.v1_memory):
            return 0
        match = re.search(r"^oom_kill (\d+)", _read(self._memory / file), re.MULTILINE)
        return int(match[1]) if match else 0

    def peak_memory(self) -> int | None:
        """Highest memory of the group in bytes, where the kernel counts it (v2: from 5.19 on)."""
        if not (self._means.v2 or self._means.v1_memory):
            return None
        text = _read(self._memory / ("memory.peak" if self._means.v2 else "memory.max_usage_in_bytes"))
        return int(text) if text.strip().isdigit() else None

    def close(self) -> None:
        """Kill what is left (there should be nothing) and remove the groups."""
        for path in self._paths:
            with contextlib.suppress(OSError):
                (path / "cgroup.kill").write_text("1")
            for _ in range(20):  # a reaped process may count for a moment longer
                try:
                    path.rmdir()
                    break
                except FileNotFoundError:
                    break
                except OSError:
                    time.sleep(0.01)
        self._paths = []


class EngineGroup:
    """The control groups that a container engine made for a process, read as long as they are there."""

    def __init__(self, pid: int) -> None:
        """Find them; where the process has none of its own nothing is counted."""
        self._kills = 0
        self._peak: int | None = None
        self._files: dict[str, Path] = {}
        with contextlib.suppress(OSError, KeyError):
            theirs = dict(_own_groups(Path(f"/proc/{pid}/cgroup").read_text()))
            ours = dict(_own_groups(Path("/proc/self/cgroup").read_text()))
            for kind, root, point, controllers in _mounts(Path("/proc/self/mountinfo").read_text()):
                v1 = kind == "cgroup" and "memory" in controllers
                name = "memory" if v1 else ""
                if (v1 or kind == "cgroup2") and theirs[name] != ours.get(name):
                    place = _inside(point, root, theirs[name])
                    files = (
                        ("memory.max_usage_in_bytes", "memory.oom_control") if v1 else ("memory.peak", "memory.events")
                    )
                    if place is not None and (place / files[1]).exists():
                        self._files = {"peak": place / files[0], "kills": place / files[1]}

    def sample(self) -> None:
        """Read the counters; to be called while the container is there."""
        if match := re.search(r"^oom_kill (\d+)", _read(self._files.get("kills", Path())), re.MULTILINE):
            self._kills = int(match[1])
        text = _read(self._files.get("peak", Path())).strip()
        if text.isdigit():
            self._peak = int(text)

    def memory_kills(self) -> int:
        """How often the kernel killed a process of the container for memory."""
        return self._kills

    def peak_memory(self) -> int | None:
        """Highest memory of the container in bytes, where the kernel counts it."""
        return self._peak


def _own_groups(text: str) -> list[tuple[str, str]]:
    """(controller, path) pairs of /proc/self/cgroup; the controller of v2 is the empty string."""
    pairs = []
    for line in text.splitlines():
        _, controllers, path = line.split(":", 2)
        pairs += [(name, path) for name in controllers.split(",")]
    return pairs


def _mounts(text: str) -> list[tuple[str, str, Path, list[str]]]:
    """(type, root, mount point, super options) of each line of /proc/self/mountinfo."""
    found = []
    for line in text.splitlines():
        before, _, after = line.partition(" - ")
        fields, tail = before.split(), after.split()
        found.append((tail[0], fields[3], Path(fields[4]), tail[-1].split(",")))
    return found


def _inside(point: Path, root: str, own: str) -> Path | None:
    """Directory of our own group; in a container the mount may show only a part of the tree."""
    if root != "/" and Path(own).is_relative_to(root):
        own = str(Path(own).relative_to(root))
    path = point / own.lstrip("/")
    return path if path.is_dir() else None


def _v2_place(point: Path, root: str, own: str) -> Path | None:
    """Nearest group above ours that hands memory and pids down and where we may make groups.

    Beside our own group and not below it, because a group with processes cannot hand controllers down. Moving a process
    needs write access to the common ancestor, which is this very place.
    """
    start = _inside(point, root, own)
    if start is None:
        return None
    for place in start.parents:
        if not place.is_relative_to(point):
            return None
        if {"memory", "pids"} <= set(_read(place / "cgroup.subtree_control").split()):
            return place if os.access(place / "cgroup.procs", os.W_OK) and _can_make(place) else None
    return None


def _can_make(place: Path) -> bool:
    trial = place / f"{_PREFIX}{os.getpid()}-{os.urandom(4).hex()}"
    try:
        trial.mkdir()
        trial.rmdir()
    except OSError:
        return False
    return True


def _sweep(place: Path) -> None:
    """Remove empty groups left by a harness that was killed; a group with processes cannot be removed by rmdir."""
    for path in _stale(place):
        with contextlib.suppress(OSError):
            path.rmdir()


def _stale(place: Path) -> Iterator[Path]:
    for path in sorted(place.glob(f"{_PREFIX}[0-9]*-*")):
        if not Path("/proc", path.name.split("-")[1]).exists() and not _read(path / "cgroup.procs"):
            yield path


def stale_groups() -> Iterator[Path]:
    """Empty groups of harnesses that were killed, where this process may make groups."""
    means = find_means()
    for place in filter(None, (means.v2, means.v1_memory, means.v1_processes)):
        yield from _stale(place)


def _read(path: Path) -> str:
    try:
        return path.read_text()
    except OSError:
        return ""

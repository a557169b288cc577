"""Watch over a running sandbox: pass on its output, keep the limits, end it, and see that nothing is left."""

from __future__ import annotations

import contextlib
import os
import select
import signal
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Protocol

from posttrainbench.sandbox import processes
from posttrainbench.sandbox.spec import Reason, Result, Spec
from posttrainbench.sandbox.watchdog import DiskWatch, MemoryWatch

_TICK_S = 0.2
_CHUNK = 1 << 18
_KILLED = 128 + signal.SIGKILL


class Started(Protocol):
    """What every back end's started sandbox offers; see `start.Sandbox`."""

    @property
    def output(self) -> int:
        """Non-blocking descriptor of what the command prints."""

    @property
    def end(self) -> int:
        """Descriptor that becomes readable when the command has ended."""

    @property
    def init(self) -> int:
        """Host pid of the first process inside."""

    @property
    def namespace(self) -> str:
        """Identity of the pid namespace."""

    @property
    def returncode(self) -> int:
        """Status of the command; known after `kill`."""

    def open_gate(self) -> None:
        """Let the command begin."""

    def terminate(self) -> None:
        """SIGTERM to every process but the first."""

    def kill(self) -> None:
        """Kill every process and wait until none is left."""


class Counters(Protocol):
    """What the control groups of a sandbox counted; see `limits.Group`."""

    def memory_kills(self) -> int:
        """Processes killed for memory."""

    def peak_memory(self) -> int | None:
        """Highest memory in bytes."""


class Supervision:
    """One command from the opening of its gate to its `Result`."""

    def __init__(
        self,
        spec: Spec,
        sandbox: Started,
        group: Counters,
        memory: str,
        in_memory: Sequence[str],
        watched: Sequence[Path],
        free: int,
        on_output: Callable[[bytes], None] | None,
        cancelled: Callable[[], bool] | None,
    ) -> None:
        """Begin to watch.

        Args:
            spec: what runs.
            sandbox: where it runs, at its gate.
            group: what the kernel counts.
            memory: word of `Capabilities.memory_limit`; with `watchdog` memory is measured here.
            in_memory: inside paths of file systems in memory, for that.
            watched: host directories whose size is limited.
            free: bytes in them that do not count.
            on_output: see `Backend.run`.
            cancelled: see `Backend.run`.
        """
        limits = spec.limits
        self._limits, self._sandbox, self._group = limits, sandbox, group
        self._on_output, self._cancelled = on_output, cancelled
        self._disk: DiskWatch | None = None
        if limits.disk_bytes is not None and watched:
            self._disk = DiskWatch(watched, limits.disk_bytes, sandbox.namespace, free=free)
        self._memory: MemoryWatch | None = None
        if memory == "watchdog" and limits.memory_bytes is not None:
            self._memory = MemoryWatch(sandbox.namespace, sandbox.init, limits.memory_bytes, in_memory)
        self._poll = select.poll()
        for descriptor in (sandbox.output, sandbox.end):
            self._poll.register(descriptor, select.POLLIN)

    def run(self, began: float) -> Result:
        """Open the gate and stay until the end.

        Args:
            began: monotonic time from which `Result.wall_s` counts.
        """
        sandbox = self._sandbox
        try:
            sandbox.open_gate()
            reason = self._until(time.monotonic() + self._limits.wall_s, watching=True)
            if reason in ("deadline", "cancelled"):
                sandbox.terminate()
                self._until(time.monotonic() + self._limits.grace_s, watching=False)
            last_order = time.monotonic()
            sandbox.kill()
            gone = time.monotonic()
            survivors = len(processes.members(sandbox.namespace))
            self._read(everything=True)
        finally:
            if self._disk is not None:
                self._disk.stop()
        return self._result(reason, began, gone - last_order, survivors)

    def _until(self, deadline: float, *, watching: bool) -> Reason:
        """Pass output on until the command ends ("exit") or must end.

        Args:
            deadline: monotonic time.
            watching: whether cancellation counts; during the grace it does no more.
        """
        next_tick = 0.0
        while True:
            now = time.monotonic()
            if now >= deadline:
                return "deadline"
            if now >= next_tick:
                if watching and self._cancelled is not None and self._cancelled():
                    return "cancelled"
                if self._disk is not None and self._disk.exceeded:
                    return "disk"
                if self._memory is not None:
                    self._memory.look(now)
                    if self._memory.hopeless:
                        return "memory"
                next_tick = now + _TICK_S
            ready = {key for key, _ in self._poll.poll(max(0, int((min(deadline, next_tick) - now) * 1000) + 1))}
            if self._sandbox.output in ready:
                self._read()
            if self._sandbox.end in ready:
                return "exit"

    def _read(self, *, everything: bool = False) -> None:
        """Pass on what lies in the pipe: one piece, or all of it once nobody can write any more."""
        while True:
            try:
                data = os.read(self._sandbox.output, _CHUNK)
            except BlockingIOError:
                return
            if not data:  # closed by all writers; the end of the process is what counts
                with contextlib.suppress(KeyError):
                    self._poll.unregister(self._sandbox.output)
                return
            if self._on_output is not None:
                self._on_output(data)
            if not everything:
                return

    def _result(self, reason: Reason, began: float, teardown_s: float, survivors: int) -> Result:
        returncode = self._sandbox.returncode
        kills = self._group.memory_kills() + (self._memory.kills if self._memory is not None else 0)
        if self._disk is not None and self._disk.exceeded and reason == "exit":
            reason = "disk"
        if kills and reason == "exit" and returncode == _KILLED:
            reason = "memory"
        peak = self._group.peak_memory()
        return Result(
            returncode=returncode,
            reason=reason,
            wall_s=time.monotonic() - began,
            teardown_s=teardown_s,
            survivors=survivors,
            peak_memory_bytes=self._memory.peak if peak is None and self._memory is not None else peak,
            peak_disk_bytes=self._disk.peak if self._disk is not None else None,
            memory_kills=kills,
        )

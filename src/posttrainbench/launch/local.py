"""Launcher `local`: one slot per GPU of this machine, or as many as asked for where there is none.

Each slot is a process of its own, detached from whoever started it. It takes the next cell that nobody holds, runs it, and
goes on; locks that the kernel releases at death are all that the slots share. So the starter may die, and a slot may die:
its cell is taken up by another one, or by `ptb sweep resume`.
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from posttrainbench import hardware
from posttrainbench.errors import InfrastructureError
from posttrainbench.files import is_locked, read_json
from posttrainbench.launch.launcher import Job
from posttrainbench.launch.store import SweepDirectory

_START_S = 30.0


class Local:
    """Implements `Launcher` with processes of this machine."""

    def __init__(self, sweep: SweepDirectory, *, slots: int | None = None) -> None:
        """Nothing is started.

        Args:
            sweep: the sweep.
            slots: how many cells at a time; `None` for as many as the GPUs allow, one without GPU.
        """
        self._sweep = sweep
        self._asked = slots

    def assignments(self) -> list[tuple[int, ...]]:
        """GPU indices of each slot."""
        each = max((cell.gpus for cell in self._sweep.cells.values()), default=0)
        there = [gpu.index for gpu in hardware.detect().gpus]
        if each == 0 or not there:
            return [()] * (self._asked or 1)
        groups = [tuple(there[start : start + each]) for start in range(0, len(there) - each + 1, each)]
        return groups[: self._asked] if self._asked else groups

    def check(self) -> list[str]:
        """More GPUs per run than there are, more slots than GPUs."""
        each = max((cell.gpus for cell in self._sweep.cells.values()), default=0)
        there = len(hardware.detect().gpus)
        if there and each > there:
            return [f"a run needs {each} GPUs and this machine has {there}; lower run.gpus"]
        if not there and each:
            return [f"a run needs {each} GPU and this machine has none; set run.gpus = 0 to run on the CPU"]
        if there and each and (self._asked or 0) * each > there:
            return [
                f"{self._asked} slots of {each} GPUs are more than the {there} of this machine; lower launcher.slots"
            ]
        return []

    def submit(self, keys: Sequence[str], *, hold: int | None = None) -> None:
        """Start the slots that do not run; they find the cells by themselves, and `hold` is none of theirs."""
        if not keys:
            return
        idle = [(slot, gpus) for slot, gpus in enumerate(self.assignments()) if not self._alive(slot)]
        for slot, process in [(slot, self._start(slot, gpus)) for slot, gpus in idle]:
            self._await(slot, process)

    def _slot(self, slot: int, kind: str) -> Path:
        return self._sweep.state / "slots" / f"{slot}.{kind}"

    def _alive(self, slot: int) -> bool:
        return is_locked(self._slot(slot, "lock"))

    def _start(self, slot: int, gpus: tuple[int, ...]) -> subprocess.Popen[bytes]:
        log = self._slot(slot, "log")
        log.parent.mkdir(parents=True, exist_ok=True)
        command = [sys.executable, "-m", "posttrainbench.launch.slot", str(self._sweep.root), str(slot)]
        if gpus:
            command += ["--gpus", ",".join(map(str, gpus))]
        with log.open("ab") as output:
            return subprocess.Popen(
                command, stdin=subprocess.DEVNULL, stdout=output, stderr=output, start_new_session=True, cwd="/"
            )

    def _await(self, slot: int, process: subprocess.Popen[bytes]) -> None:
        log = self._slot(slot, "log")
        end = time.monotonic() + _START_S
        while not self._alive(slot):
            if process.poll() is not None and process.returncode != 0:
                last = log.read_text(errors="replace").strip().splitlines()[-1:] or ["no reason given"]
                raise InfrastructureError(f"slot {slot} did not start: {last[0]}; see {log}")
            if process.returncode == 0:
                return  # it has found everything done already
            if time.monotonic() > end:
                raise InfrastructureError(f"slot {slot} did not start within {_START_S:.0f} s; see {log}")
            time.sleep(0.02)

    def jobs(self) -> Mapping[str, Job]:
        """Cells that a slot holds are running; the rest waits as long as any slot lives."""
        found: dict[str, Job] = {}
        live = [slot for slot in range(len(self.assignments())) if self._alive(slot)]
        held = {}
        for slot in live:
            try:
                state: dict[str, Any] = read_json(self._slot(slot, "json"))
            except (OSError, ValueError):
                continue
            if state.get("cell"):
                held[state["cell"]] = slot
        for key in self._sweep.cells:
            cell = self._sweep.cell(key)
            if key in held:
                found[key] = Job(state="running", id=f"slot {held[key]}", node=os.uname().nodename)
            elif live and not any(file.exists() for file in (cell.result, cell.failed_file, cell.cancelled_file)):
                found[key] = Job(state="queued")
        return found

    def cancel(self, keys: Sequence[str]) -> None:
        """Tell the slots that hold these cells; such a slot ends, and where the sweep is stopped idle ones do too."""
        wanted, stopped = set(keys), self._sweep.stopped is not None
        for slot in range(len(self.assignments())):
            if not self._alive(slot):
                continue
            try:
                state = read_json(self._slot(slot, "json"))
            except (OSError, ValueError):
                continue  # it has only begun, and will see that the sweep is stopped
            if state.get("cell") in wanted or (stopped and not state.get("cell")):
                self._tell(int(state["pid"]), str(state["started"]))

    def _tell(self, pid: int, started: str) -> None:
        """SIGTERM through a pidfd, checked after opening: the number may have been given anew."""
        try:
            descriptor = os.pidfd_open(pid)
        except OSError:
            return
        try:
            if process_start(pid) == started:
                signal.pidfd_send_signal(descriptor, signal.SIGTERM)
        except OSError:
            pass
        finally:
            os.close(descriptor)


def process_start(pid: int) -> str:
    """When a process started, in clock ticks since boot: with its number, an identity."""
    try:
        return Path(f"/proc/{pid}/stat").read_text(errors="replace").rpartition(")")[2].split()[19]
    except (OSError, IndexError):
        return ""

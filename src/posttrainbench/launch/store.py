"""A sweep on disk: its frozen plan and, for each cell, what was tried. There is no other state, and no process owns it.

RESULTS/NAME/
  KEY/                       a committed run directory: renamed into place, so the first copy of a run wins
  .sweep/plan.json           the cells, the launcher, the policy
  .sweep/stopped.json        why no further cell starts, if so
  .sweep/cells/KEY/          lock, claim.json, events.jsonl, failed.json, attempts/, retired/, log.txt
"""

from __future__ import annotations

import fcntl
import json
import os
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from posttrainbench.errors import ConfigurationError, PTBError
from posttrainbench.files import read_json, write_json
from posttrainbench.launch.sweepfile import Cell, Sweep
from posttrainbench.pipeline.run_dir import RunDirectory, now

FORMAT = 1
_TRIES = 3
_TURNS = ("started", "interrupted", "failed", "collected", "committed", "superseded")


@contextmanager
def held(path: Path) -> Iterator[bool]:
    """Hold a lock file for this process; gives false where another one does. The kernel lets go when the process dies."""
    descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, 0o644)
    try:
        for tries_left in range(_TRIES - 1, -1, -1):
            try:
                fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except OSError:
                # who only looks whether it is held holds it himself for an instant
                if not tries_left:
                    yield False
                    return
                time.sleep(0.01)
            else:
                break
        yield True
    finally:
        os.close(descriptor)


@dataclass(frozen=True)
class CellDirectory:
    """Where a cell's attempts and its result are.

    Args:
        root: the sweep's directory.
        key: the cell.
    """

    root: Path
    key: str

    @property
    def result(self) -> Path:
        """The committed run directory."""
        return self.root / self.key

    @property
    def work(self) -> Path:
        return self.root / ".sweep" / "cells" / self.key

    @property
    def attempts(self) -> Path:
        return self.work / "attempts"

    @property
    def failed_file(self) -> Path:
        return self.work / "failed.json"

    @property
    def cancelled_file(self) -> Path:
        """Is there while the cell is not to be run, because a user said so; `start` and `resume` remove it."""
        return self.work / "cancelled"

    @property
    def log(self) -> Path:
        return self.work / "log.txt"

    @property
    def committed(self) -> bool:
        """Whether the cell has its result; it is never run again then."""
        return (self.result / "result.json").is_file()

    @property
    def failed(self) -> dict[str, Any] | None:
        """Why the cell was given up; `None` if it was not."""
        try:
            found: dict[str, Any] = read_json(self.failed_file)
        except FileNotFoundError:
            return None
        return found

    def note(self, event: str, **details: Any) -> None:
        """Append to the cell's history."""
        self.work.mkdir(parents=True, exist_ok=True)
        line = json.dumps({"time": now(), "event": event, "host": os.uname().nodename, **details}) + "\n"
        descriptor = os.open(self.work / "events.jsonl", os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC, 0o644)
        try:
            os.write(descriptor, line.encode())
            os.fsync(descriptor)
        finally:
            os.close(descriptor)

    def events(self) -> list[dict[str, Any]]:
        """The history since the last `retry`, oldest first."""
        found = self.history()
        retried = [number for number, event in enumerate(found) if event["event"] == "retry"]
        return found[retried[-1] + 1 :] if retried else found

    def history(self) -> list[dict[str, Any]]:
        """All that happened to the cell, oldest first."""
        try:
            lines = (self.work / "events.jsonl").read_text(encoding="utf-8").splitlines()
        except FileNotFoundError:
            return []
        found: list[dict[str, Any]] = []
        for line in lines:
            try:
                found.append(json.loads(line))
            except ValueError:
                continue  # cut by a crash
        return found

    def left_nodes(self) -> list[str]:
        """Nodes that this cell's attempts have left for another one."""
        found: list[str] = []
        node = ""
        for event in self.events():
            if event["event"] == "started" or event.get("judged"):
                node = str(event.get("node", ""))
            if event["event"] == "failed" and event["decision"] == "elsewhere" and node and node not in found:
                found.append(node)
        return found

    @property
    def begun(self) -> bool:
        """Whether the last attempt began and has not said how it ended."""
        told: list[str] = [event["event"] for event in self.events() if event["event"] in _TURNS]
        return bool(told) and told[-1] == "started"

    def unfinished(self) -> RunDirectory | None:
        """The newest attempt whose agent is done and which has no result yet: it is to be gone on with."""
        for path in sorted(self.attempts.glob("[!.]*"), reverse=True):
            try:
                run = RunDirectory.open(path)
            except PTBError:
                continue
            if run.done("solve") and not run.done("finalize"):
                return run
        return None

    @property
    def collected(self) -> bool:
        """Whether an attempt has a submission that waits for audit and evaluation, which need not be where the agent was.

        One without submission does not: why there is none may be a reason to let the agent work again.
        """
        run = self.unfinished()
        if run is None or not run.done("collect"):
            return False
        try:
            return read_json(run.collection_file)["submission"] is not None
        except (OSError, ValueError, KeyError, TypeError):
            return False

    @contextmanager
    def locked(self) -> Iterator[bool]:
        """Hold the cell for this process; gives false where another one on this machine (or lock server) holds it."""
        self.work.mkdir(parents=True, exist_ok=True)
        with held(self.work / "lock") as mine:
            yield mine

    @property
    def busy(self) -> bool:
        """Whether a process of this machine works on the cell now."""
        if not (self.work / "lock").exists():
            return False
        with self.locked() as mine:
            return not mine


@dataclass(frozen=True)
class SweepDirectory:
    """A sweep that was started, or is about to be.

    Args:
        root: `RESULTS/NAME`.
    """

    root: Path

    @property
    def state(self) -> Path:
        return self.root / ".sweep"

    @property
    def plan_file(self) -> Path:
        return self.state / "plan.json"

    @property
    def stopped_file(self) -> Path:
        return self.state / "stopped.json"

    @classmethod
    def open(cls, root: Path) -> SweepDirectory:
        """A started sweep.

        Raises:
            ConfigurationError: there is none, or of another version.
        """
        found = cls(root.absolute())
        try:
            version = found.plan["format"]
        except FileNotFoundError:
            raise ConfigurationError(f"{root} is not a sweep; `ptb sweep start FILE` makes one") from None
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise ConfigurationError(f"{found.plan_file} cannot be read: {error}") from None
        if version != FORMAT:
            raise ConfigurationError(f"{found.plan_file} is not of format {FORMAT}; another version of ptb wrote it")
        return found

    @classmethod
    def create(cls, sweep: Sweep) -> SweepDirectory:
        """Freeze a sweep file's content, or add its new cells to a sweep that was started before.

        Raises:
            ConfigurationError: a cell that was planned before is now to be run otherwise.
        """
        directory = cls(sweep.root)
        cells = {cell.key: cell.as_json() for cell in sweep.cells}
        if directory.plan_file.exists():
            opened = cls.open(sweep.root)
            before = opened.plan["cells"]
            for key, cell in cells.items():
                # through JSON, as the earlier one was, and read again: a newer version has more options, with defaults
                if key in before and opened.cells[key] != Cell.from_json(json.loads(json.dumps(cell))):
                    raise ConfigurationError(
                        f"the sweep {sweep.root} was started with other settings for {key}; give the changed one a new name"
                    )
            cells = {**before, **cells}
        directory.state.mkdir(parents=True, exist_ok=True)
        write_json(
            directory.plan_file,
            {
                "format": FORMAT,
                "name": sweep.name,
                "launcher": dict(sweep.launcher),
                "retry": dict(sweep.retry),
                "judge": dict(sweep.judge),
                "notify": list(sweep.notify),
                "cells": cells,
            },
        )
        return cls(sweep.root)

    @cached_property
    def plan(self) -> dict[str, Any]:
        """The frozen plan."""
        found: dict[str, Any] = read_json(self.plan_file)
        return found

    @cached_property
    def cells(self) -> dict[str, Cell]:
        """Cells by key, in their order."""
        return {key: Cell.from_json(value) for key, value in self.plan["cells"].items()}

    @property
    def retry(self) -> Mapping[str, int]:
        """Changed numbers of tries."""
        found: dict[str, int] = self.plan["retry"]
        return found

    def cell(self, key: str) -> CellDirectory:
        """A cell's directory."""
        return CellDirectory(self.root, key)

    def stop(self, why: str, *, kind: str, key: str | None = None) -> None:
        """Let no further cell start."""
        write_json(self.stopped_file, {"time": now(), "kind": kind, "why": why, "cell": key})

    @property
    def stopped(self) -> dict[str, Any] | None:
        """Why no further cell starts; `None` if they do."""
        try:
            found: dict[str, Any] = read_json(self.stopped_file)
        except FileNotFoundError:
            return None
        return found

    @contextmanager
    def submitting(self) -> Iterator[int]:
        """Hold the sweep for one process that starts or cancels jobs; gives the lock's descriptor.

        Raises:
            ConfigurationError: another one does.
        """
        self.state.mkdir(parents=True, exist_ok=True)
        descriptor = os.open(self.state / "lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
        try:
            try:
                fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except OSError:
                raise ConfigurationError(f"another `ptb sweep` is at work on {self.root}; wait for it") from None
            yield descriptor
        finally:
            os.close(descriptor)

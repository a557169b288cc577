"""The runs below a directory, with what may be removed of each: is it finished, who works on it, what lies in it."""

from __future__ import annotations

import contextlib
import os
import stat
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from posttrainbench.errors import PTBError
from posttrainbench.files import is_locked
from posttrainbench.launch.claim import host, read_claim
from posttrainbench.launch.store import CellDirectory
from posttrainbench.pipeline.prepare import dead_drafts
from posttrainbench.pipeline.run_dir import RunDirectory

State = Literal["finished", "unfinished", "superseded", "running", "foreign"]
# results/SWEEP/.sweep/cells/KEY/attempts/RUN is the deepest place
_DEEPEST = 7
# a claim is renewed every 20 s; one that is so old is that of a dead process, even if clocks differ by hours
_CLAIM_S = 86_400.0

# What killed stages leave; `ptb resume` removes it as well.
DRAFTS = ("ptb-scratch-*", ".evaluate-*", ".memory-*", ".evaluation.new", ".collect", ".model", ".sealed", ".*.tmp")


@dataclass(frozen=True)
class Found:
    """A run.

    Attributes:
        run: its directory.
        state: `finished`; `unfinished` (`ptb resume` goes on); `superseded` (an attempt or a result that a later one of
            the same cell has replaced); `running`; `foreign` (of another user).
        solved: whether the agent is done, and its work not collected yet.
        ended: when its record last changed, seconds since the epoch.
    """

    run: RunDirectory
    state: State
    solved: bool
    ended: float

    def parts(self, what: str) -> Iterator[tuple[Path, str]]:
        """Paths of a kind that are there, with the reason why they may go."""
        run = self.run.path
        if what in ("job", "superseded"):
            yield from self._there(
                ".job", "the agent's home and /tmp; what is kept of them is in workspace and final_model"
            )
            yield from self._there(".job.img", "the agent's disk; what is kept of it is in workspace and final_model")
        if what in ("job", "superseded", "drafts"):
            for pattern in DRAFTS:
                for path in sorted(run.glob(pattern)):
                    yield from self._there(path.name, "a draft of a stage that was killed")
        if what in ("snapshots", "superseded"):
            yield from self._there("workspace", "the snapshot of the agent's work; audits and judges read it")
        if what in ("submissions", "superseded"):
            yield from self._there("final_model", "the submission; audit and evaluation read it")
        if what in ("hub-files", "superseded"):
            yield from self._there(
                "gateway/hub-files", "copies of data that the agent fetched, under licences of its own"
            )
            earlier = run / "gateway-interrupted"
            for number in sorted(earlier.iterdir()) if _is_directory(earlier) else ():
                yield from self._there(f"gateway-interrupted/{number.name}/hub-files", "copies of fetched data")
        if what == "interrupted":
            for path in sorted(run.glob("trace/interrupted-*.jsonl")):
                yield from self._there(f"trace/{path.name}", "the trace of an attempt that died with the harness")
            yield from self._there("gateway-interrupted", "the gateway's logs of attempts that died with the harness")

    def _there(self, name: str, reason: str) -> Iterator[tuple[Path, str]]:
        path = self.run.path
        parts = Path(name).parts
        for part in parts:
            path = path / part
            if not os.path.lexists(path) or (path.is_symlink() and part != parts[-1]):
                return
        yield path, reason


def runs_below(root: Path) -> Iterator[Found]:
    """Runs below a results directory, a sweep or a run. Links are not followed, and what lies within a run is none."""
    for directory in _directories(root, 0):
        with contextlib.suppress(PTBError):
            run = RunDirectory.open(directory)
            record = run.record()
            finished = run.done("finalize")
            yield Found(
                run=run,
                state=_state(run, finished),
                solved=run.done("solve") and not run.done("collect"),
                ended=max(_changed(run.record_file), _changed(run.result_file)) if record else 0.0,
            )


def drafts_below(root: Path) -> Iterator[Path]:
    """Run directories that a killed `prepare` had not finished."""
    for parent in sorted(set(_parents(root, 0))):
        yield from dead_drafts(parent)


def _directories(path: Path, depth: int) -> Iterator[Path]:
    if _is_file(path / "run.json"):
        yield path
        return
    for below in _below(path, depth):
        yield from _directories(below, depth + 1)


def _parents(path: Path, depth: int) -> Iterator[Path]:
    if not _is_file(path / "run.json"):
        yield path
        for below in _below(path, depth):
            yield from _parents(below, depth + 1)


def _below(path: Path, depth: int) -> list[Path]:
    if depth >= _DEEPEST:
        return []
    with contextlib.suppress(OSError), os.scandir(path) as entries:
        return sorted(
            Path(entry.path)
            for entry in entries
            if entry.is_dir(follow_symlinks=False) and (entry.name == ".sweep" or not entry.name.startswith("."))
        )
    return []


def _state(run: RunDirectory, finished: bool) -> State:
    if run.path.lstat().st_uid != os.geteuid():
        return "foreign"
    if is_locked(run.path / ".lock"):
        return "running"
    cell = _cell(run)
    if cell is not None:
        if _worked_on(cell):
            return "running"
        if _replaced(cell, run):
            return "superseded"
        return "unfinished"
    return "finished" if finished else "unfinished"


def changed_since(run: RunDirectory, what: str) -> str:
    """What speaks against removing a part now, while the caller holds the run's lock; empty if nothing does."""
    cell = _cell(run)
    if cell is not None and _worked_on(cell):
        return "a process works on its cell by now"
    if cell is not None and _replaced(cell, run):
        return ""
    if what == "job" and run.done("solve") and not run.done("collect"):
        return "the agent's work is not collected yet"
    if what in ("hub-files", "snapshots", "submissions") and not run.done("finalize"):
        return "it is not finished any more"
    return ""


def _cell(run: RunDirectory) -> CellDirectory | None:
    """The cell of which the run is an attempt, or was the result."""
    parts = run.path.parts
    if len(parts) > 6 and parts[-2] in ("attempts", "retired") and parts[-4] == "cells" and parts[-5] == ".sweep":
        return CellDirectory(Path(*parts[:-5]), parts[-3])
    return None


def _replaced(cell: CellDirectory, run: RunDirectory) -> bool:
    """Whether another run is the cell's result by now. A result may be a link that a user made to this very run."""
    with contextlib.suppress(OSError):
        if cell.result.samefile(run.path):
            return False
    return cell.committed or run.path.parent.name == "retired"


def _worked_on(cell: CellDirectory) -> bool:
    if cell.busy:
        return True
    claim = read_claim(cell.work / "claim.json")
    young = time.time() - _changed(cell.work / "claim.json") < _CLAIM_S
    return bool(claim) and not claim.get("released") and claim.get("host") != host() and young


def _is_directory(path: Path) -> bool:
    with contextlib.suppress(OSError):
        return stat.S_ISDIR(path.lstat().st_mode)
    return False


def _is_file(path: Path) -> bool:
    with contextlib.suppress(OSError):
        return stat.S_ISREG(path.lstat().st_mode)
    return False


def _changed(path: Path) -> float:
    with contextlib.suppress(OSError):
        return path.lstat().st_mtime
    return 0.0

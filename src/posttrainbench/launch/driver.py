"""What `ptb sweep` does: start, resume, cancel and retry. It may die at any point; saying it again goes on from there."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from posttrainbench.errors import ConfigurationError
from posttrainbench.launch.booking import book
from posttrainbench.launch.cell import note_death
from posttrainbench.launch.failures import Failure
from posttrainbench.launch.launcher import Job, get_launcher
from posttrainbench.launch.status import cell_status
from posttrainbench.launch.store import CellDirectory, SweepDirectory
from posttrainbench.pipeline.prepare import check_results
from posttrainbench.pipeline.run_dir import RunDirectory

_LEAST_FREE = 2**20
"""Bytes for lists and histories of the cells; whether a run fits is for each job to see on its node."""


@dataclass(frozen=True, kw_only=True)
class Started:
    """What a start did.

    Attributes:
        submitted: cells handed to the engine now.
        active: cells that it had already.
        over: cells with a result, or given up.
    """

    submitted: int
    active: int
    over: int


def submit_missing(sweep: SweepDirectory, *, lift: bool = True) -> Started:
    """Hand every cell to the engine that has no result and that the engine does not know.

    Args:
        sweep: the sweep.
        lift: whether a stop and what users cancelled is over.

    Raises:
        ConfigurationError: another process is at it, or the disk is read-only.
        InfrastructureError: the engine does not answer or take jobs, or the disk is full.
    """
    check_results(sweep.root, needed=_LEAST_FREE)
    with sweep.submitting() as lock:
        launcher = get_launcher(sweep)
        jobs = launcher.jobs()
        if lift:
            sweep.stopped_file.unlink(missing_ok=True)
            for file in sweep.state.glob("cells/*/cancelled"):
                file.unlink(missing_ok=True)
        missing, active, over = [], 0, 0
        for key in sweep.cells:
            cell = sweep.cell(key)
            job = jobs.get(key)
            if cell.committed or cell.failed_file.exists() or cell.cancelled_file.exists():
                over += 1
            elif job is not None and job.state != "ended":
                active += 1
            elif job is not None and _gave_up(sweep, cell, job):
                over += 1
            else:
                missing.append(key)
        launcher.submit(missing, hold=lock)
    book(sweep, jobs)
    return Started(submitted=len(missing), active=active, over=over)


def _gave_up(sweep: SweepDirectory, cell: CellDirectory, job: Job) -> bool:
    """Judge a cell whose job ended without a word of its own: killed, at its limit, out of memory, never begun.

    The engine's state says why, but never that all is well: that says the result.
    """
    # a `retry` does not make a job that was judged before a new failure
    if job.failure is None or any(event.get("judged") == job.id for event in cell.history()):
        return False
    with cell.locked() as mine:
        if not mine or cell.committed:
            return False
        silent = not any(event["event"] == "started" and event.get("job") == job.id for event in cell.history())
        if not silent and not cell.begun and not _ended_by_engine(cell.events(), job):
            return False  # it has said itself how it ended
        what = "ended before its run began" if silent else "ended"
        error = f"job {job.id} {what} with {job.detail}" + (f" on {job.node}" if job.node else "")
        return note_death(sweep, cell, job.failure, error, judged=job.id, node=job.node)


def _ended_by_engine(events: Sequence[Mapping[str, Any]], job: Job) -> bool:
    """Whether the job knew only that it was told to end, and the engine knows why: memory or time, and so again."""
    last = [event for event in events if event["event"] in ("started", "interrupted", "failed", "committed")][-2:]
    told = [(event["event"], event.get("job")) for event in last]
    limits = (Failure.TIME_LIMIT, Failure.OUT_OF_MEMORY)
    return job.failure in limits and told[:1] == [("started", job.id)] and told[-1][0] == "interrupted"


def choose(sweep: SweepDirectory, names: Sequence[str]) -> list[str]:
    """Cells by key or by a part of it; all of them for no names.

    Raises:
        ConfigurationError: a name fits no cell.
    """
    if not names:
        return list(sweep.cells)
    chosen: list[str] = []
    for name in names:
        fits = [key for key in sweep.cells if key == name] or [key for key in sweep.cells if name in key]
        if not fits:
            raise ConfigurationError(
                f"no cell of {sweep.root} fits {name!r}; `ptb sweep status {sweep.root}` lists them"
            )
        chosen += [key for key in fits if key not in chosen]
    return chosen


def cancel(sweep: SweepDirectory, names: Sequence[str]) -> list[str]:
    """End the jobs of cells; `ptb sweep resume` submits them again. Returns the cells that were active."""
    with sweep.submitting():
        launcher = get_launcher(sweep)
        jobs = launcher.jobs()
        keys = [key for key in choose(sweep, names) if key in jobs and jobs[key].state != "ended"]
        if not names:
            sweep.stop("cancelled by the user; `ptb sweep resume` goes on", kind="cancelled")
        else:
            for key in keys:
                sweep.cell(key).work.mkdir(parents=True, exist_ok=True)
                sweep.cell(key).cancelled_file.touch()
        launcher.cancel(keys)
    return keys


def retry(sweep: SweepDirectory, names: Sequence[str], *, states: Sequence[str]) -> list[str]:
    """Open cells again whose result has one of these states (or that were given up), keeping what they had.

    Returns:
        the cells; they are not submitted yet.
    """
    opened = []
    for key in choose(sweep, names):
        cell = sweep.cell(key)
        if cell_status(cell, None).state not in states:
            continue
        with cell.locked() as mine:
            if not mine:
                continue
            if _unscored(cell):
                # only audit or evaluation failed: the agent's hours are not spent again
                cell.attempts.mkdir(parents=True, exist_ok=True)
                cell.result.rename(cell.attempts / RunDirectory(cell.result).record()["id"])
            elif cell.result.exists():
                retired = cell.work / "retired"
                retired.mkdir(parents=True, exist_ok=True)
                number = len(list(retired.iterdir())) + 1
                cell.result.rename(retired / f"{number}")
            cell.failed_file.unlink(missing_ok=True)
            cell.note("retry")
        opened.append(key)
    return opened


def _unscored(cell: CellDirectory) -> bool:
    if not (cell.result / "run.json").exists():
        return False
    run = RunDirectory(cell.result)
    return run.done("solve") and not run.done("finalize")

"""Run one cell of a sweep to its committed result: the one self-contained command that every launcher starts.

Safe to start twice, to kill at any time and to start again. The result is committed by renaming the run directory into its
place: of two copies of a run, after a network split say, the first one wins and the other stays among the attempts.
"""

from __future__ import annotations

import errno
import os
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from enum import StrEnum
from typing import Any

from posttrainbench.errors import ConfigurationError, InfrastructureError, PTBError
from posttrainbench.files import fsync_directory, read_json, write_json
from posttrainbench.launch.claim import Claim, claimed
from posttrainbench.launch.failures import Failure, of_error, of_result, policy_for, wait_before
from posttrainbench.launch.launcher import Part
from posttrainbench.launch.store import CellDirectory, SweepDirectory
from posttrainbench.pipeline import quota
from posttrainbench.pipeline.context import Context
from posttrainbench.pipeline.prepare import prepare
from posttrainbench.pipeline.progress import Progress, Silent
from posttrainbench.pipeline.run import resume
from posttrainbench.pipeline.run_dir import RunDirectory, now
from posttrainbench.pipeline.solve import Interrupted

_FULL = (errno.ENOSPC, errno.EDQUOT)
LAG_S = 65.0
"""So late a shared disk may show what another node has written: NFS keeps directories for up to 60 s (acdirmax)."""


class Outcome(StrEnum):
    """What became of an attempt to run a cell."""

    DONE = "done"
    COLLECTED = "collected, to be evaluated"
    NOTHING = "nothing to evaluate"
    BUSY = "busy"
    FAILED = "failed"
    STOPPED = "stopped"
    INTERRUPTED = "interrupted"
    AGAIN = "again"
    ELSEWHERE = "elsewhere"


def _never() -> bool:
    return False


@dataclass(frozen=True, kw_only=True)
class Place:
    """Where a cell runs.

    Attributes:
        gpus: indices of the GPUs it gets.
        engine: what goes into the run's record and the cell's history: kind, job, node.
        cancelled: polled; true ends the run in an orderly way, to be gone on with later.
        at_limit: whether a cancellation that came now is the engine's time limit.
        preflight: checks the node before an attempt and returns what it found, for the record.
        part: what of the cell is done here.
        memory_bytes: what the engine lets all processes of the cell use together; `None` if it does not say.
    """

    gpus: tuple[int, ...] = ()
    engine: Mapping[str, Any] = field(default_factory=dict)
    cancelled: Callable[[], bool] = _never
    at_limit: Callable[[], bool] = _never
    preflight: Callable[[], list[dict[str, Any]]] | None = None
    part: Part = Part.WHOLE
    memory_bytes: int | None = None

    @property
    def share(self) -> int | None:
        """Bytes for a sandbox here: less than the engine's limit, at which the kernel may kill the harness instead."""
        whole = self.memory_bytes
        return None if whole is None else max(whole // 2, int(whole * 0.9) - 2**30)


def run_cell(sweep: SweepDirectory, key: str, place: Place, *, progress: Progress | None = None) -> Outcome:
    """Run a cell, with the retries that its failures allow on this node.

    Raises:
        ConfigurationError: there is no such cell.
        InfrastructureError: the sweep's directory cannot be written.
    """
    if key not in sweep.cells:
        raise ConfigurationError(f"the sweep {sweep.root} has no cell {key!r}")
    cell = sweep.cell(key)
    try:
        with claimed(cell, cancelled=place.cancelled) as claim:
            if claim is None:
                return Outcome.BUSY
            if cell.begun and note_death(sweep, cell, Failure.LOST, f"the process died on {_last_node(cell)}"):
                return Outcome.FAILED
            return _Work(sweep, cell, place, claim, progress or Silent()).run()
    except OSError as error:
        if cell.committed:
            return Outcome.DONE  # another copy has committed, and its directory is no longer where this one worked
        if error.errno in _FULL:
            raise InfrastructureError(f"the disk is full: {sweep.root}: {error}", kind="disk_full") from error
        raise InfrastructureError(f"the sweep's directory {sweep.root} does not work: {error}") from error


def _last_node(cell: CellDirectory) -> str:
    last = cell.events()[-1]
    return str(last.get("node") or last["host"])


def note_death(sweep: SweepDirectory, cell: CellDirectory, failure: Failure, error: str, **details: Any) -> bool:
    """Book an attempt that ended without a word of its own, and apply the policy. True if the cell is given up."""
    count: int = 1 + sum(event["event"] == "failed" and event["failure"] == failure for event in cell.events())
    given_up = count >= policy_for(failure, sweep.retry).tries
    # a lost node is down, and one that was preempted has done nothing wrong
    away = policy_for(failure, sweep.retry).elsewhere and failure is not Failure.LOST
    decision = "give up" if given_up else "elsewhere" if away else "retry"
    cell.note("failed", failure=str(failure), error=error, decision=decision, wait_s=0, **details)
    if given_up:
        write_json(cell.failed_file, {"time": now(), "failure": str(failure), "error": error, "attempts": count})
    return given_up


class _Work:
    """The attempts at one cell, by the process that holds it."""

    def __init__(
        self, sweep: SweepDirectory, cell: CellDirectory, place: Place, claim: Claim, progress: Progress
    ) -> None:
        self._sweep, self._cell, self._place, self._claim, self._progress = sweep, cell, place, claim, progress

    def _cancelled(self) -> bool:
        return self._claim.lost or self._place.cancelled()

    def run(self) -> Outcome:
        begun = time.monotonic()
        while True:
            if self._cell.committed:
                return Outcome.DONE
            if self._cell.failed is not None:
                return Outcome.FAILED
            if self._sweep.stopped is not None:
                return Outcome.STOPPED
            if self._cell.cancelled_file.exists():
                return Outcome.INTERRUPTED
            if self._place.part is not Part.WHOLE and self._cell.collected != (self._place.part is Part.EVALUATION):
                if self._place.part is Part.AGENT:
                    return Outcome.COLLECTED
                if time.monotonic() - begun > LAG_S or self._cancelled():
                    return Outcome.NOTHING
                time.sleep(min(1.0, LAG_S))
                continue
            outcome = self._attempt()
            if outcome is not None:
                return outcome

    def _attempt(self) -> Outcome | None:
        """One attempt; `None` to make another one here."""
        cell, place = self._cell, self._place
        cell.note("started", **place.engine, gpus=list(place.gpus), pid=os.getpid())
        run: RunDirectory | None = None
        try:
            checks = place.preflight() if place.preflight is not None else []
            run = self._unfinished() or self._prepare()
            self._record(run, checks)
            context = Context(
                run=run, progress=self._progress, cancelled=self._cancelled, memory_here=self._place.share
            )
            if place.part is Part.AGENT:
                resume(context, until="collect")
                if cell.collected:
                    cell.note("collected", run=run.path.name)
                    return Outcome.COLLECTED
            resume(context)
        except Interrupted:
            if self._claim.lost:
                cell.note("superseded", run=run and run.path.name)
                return Outcome.BUSY
            if place.at_limit():
                more = "evaluation.hours" if place.part is Part.EVALUATION else "margin_h"
                over = f"the engine's time limit came before the run's end; give the job more (launcher.{more})"
                return self._failed(run, Failure.TIME_LIMIT, over)
            cell.note("interrupted", run=run and run.path.name)
            return Outcome.INTERRUPTED
        except PTBError as error:
            return self._failed(run, of_error(error), str(error))
        result = read_json(run.result_file)
        failure = of_result(result)
        if failure is not None:
            return self._failed(run, failure, str(result.get("error")))
        self._commit(run)
        return Outcome.DONE

    def _prepare(self) -> RunDirectory:
        sweep, cell = self._sweep, self._cell
        spec = replace(sweep.cells[cell.key].spec, gpus=self._place.gpus)
        if spec.memory_gib is None and self._place.share is not None:
            spec = replace(spec, memory_gib=self._place.share / 2**30)
        run = prepare(spec, results=cell.attempts.parent, group=cell.attempts.name)
        number = sum(1 for _ in cell.attempts.glob("[!.]*"))
        name = sweep.plan["name"]
        repeat = sweep.cells[cell.key].repeat
        run.update(group=name, sweep={"name": name, "cell": cell.key, "repeat": repeat, "attempt": number})
        return run

    def _unfinished(self) -> RunDirectory | None:
        """The newest attempt whose agent is done, to go on from there: hours would be lost otherwise.

        An agent that was interrupted starts afresh in any case, so it gets a new attempt, whose record tells the truth about
        the node and the GPUs; of the old one only what tells its story is kept.
        """
        for path in sorted(self._cell.attempts.glob("[!.]*"), reverse=True):
            try:
                run = RunDirectory.open(path)
            except PTBError:
                continue
            # a lost node may still be at work on it
            if not run.done("solve") and self._claim.alone:
                quota.discard(run)
        # what is left to do of this one is safe to do twice
        return self._cell.unfinished()

    def _record(self, run: RunDirectory, checks: list[dict[str, Any]]) -> None:
        before = run.record()
        engine = {**self._place.engine, "since": now(), "gpus": list(self._place.gpus)}
        earlier = [before["engine"]] if "engine" in before else []
        changes: dict[str, Any] = {"engine": engine, "engines_before": [*before.get("engines_before", []), *earlier]}
        if checks:
            changes["evaluation_preflight" if self._place.part is Part.EVALUATION else "preflight"] = checks
        run.update(**changes, gpus=list(self._place.gpus))

    def _failed(self, run: RunDirectory | None, failure: Failure, error: str) -> Outcome | None:
        """Apply the policy to a failed attempt; `None` to try again here."""
        sweep, cell = self._sweep, self._cell
        policy = policy_for(failure, sweep.retry)
        count: int = 1 + sum(event["event"] == "failed" and event["failure"] == failure for event in cell.events())
        decision = (
            "stop"
            if policy.stops
            else "give up"
            if count >= policy.tries
            else "elsewhere"
            if policy.elsewhere
            else "retry"
        )
        wait = wait_before(policy, count) if decision == "retry" else 0.0
        cell.note(
            "failed", failure=str(failure), error=error, decision=decision, wait_s=wait, run=run and run.path.name
        )
        if decision == "stop":
            # the cell itself has done nothing wrong: it is open again once the cause is mended
            sweep.stop(f"{policy.says}: {error}", kind=str(failure), key=cell.key)
            return Outcome.STOPPED
        if decision == "give up":
            if run is not None and (run.path / "result.json").exists():
                self._commit(run)
            write_json(cell.failed_file, {"time": now(), "failure": str(failure), "error": error, "attempts": count})
            return Outcome.FAILED
        if decision == "elsewhere":
            return Outcome.ELSEWHERE
        if failure is Failure.TIME_LIMIT:
            return Outcome.AGAIN  # this job has no time left
        end = time.monotonic() + wait
        while (left := end - time.monotonic()) > 0:
            if self._cancelled():
                return Outcome.INTERRUPTED
            time.sleep(min(0.5, left))
        return None

    def _commit(self, run: RunDirectory) -> None:
        """Rename the run directory into its place, unless another copy of the run is there already."""
        cell = self._cell
        try:
            run.path.rename(cell.result)
        except OSError as error:
            if error.errno not in (errno.ENOTEMPTY, errno.EEXIST):
                raise
            cell.note("superseded", run=run.path.name)
            return
        fsync_directory(cell.root)
        cell.note("committed", run=run.path.name)
        # what an agent left in an earlier attempt may be hundreds of gigabytes, and nobody will ask for it
        for path in cell.attempts.glob("[!.]*"):
            quota.discard(RunDirectory(path))

"""What runs on a node: `ptb sweep run-cell`. Exit codes tell the engine what to do; the result is never read from them."""

from __future__ import annotations

import os
import signal
from collections.abc import Callable
from pathlib import Path
from types import FrameType
from typing import Any

from posttrainbench.errors import ConfigurationError, PTBError
from posttrainbench.files import read_json
from posttrainbench.launch import htcondor, slurm_job
from posttrainbench.launch.cell import Outcome, Place, run_cell
from posttrainbench.launch.gpus import given_gpus
from posttrainbench.launch.launcher import Part
from posttrainbench.launch.node import preflight
from posttrainbench.launch.notify import notify_if_over
from posttrainbench.launch.store import SweepDirectory
from posttrainbench.pipeline.progress import PlainLines

_CODES = {
    Outcome.DONE: 0,
    Outcome.COLLECTED: 0,
    Outcome.NOTHING: 0,
    Outcome.BUSY: 0,
    Outcome.FAILED: 1,
    Outcome.STOPPED: 3,
    Outcome.INTERRUPTED: 130,
    Outcome.AGAIN: htcondor.AGAIN,
    Outcome.ELSEWHERE: htcondor.AGAIN,
}


def run_job(root: Path, key: str, *, batch: Path | None = None, gpus: str = "", part: Part = Part.WHOLE) -> int:
    """Run a cell in the job of an engine.

    Args:
        root: the sweep's directory.
        key: the cell, or with `batch` its position in that file's list.
        batch: JSON file with the list `keys`.
        gpus: indices, or `count:N` for N of those that the engine reserved.
        part: what of the cell to do.

    Returns:
        the exit status.

    Raises:
        ConfigurationError: no such sweep or cell.
        InfrastructureError: the sweep's directory cannot be written.
    """
    sweep = SweepDirectory.open(root)
    if batch is not None:
        key = _listed(batch, key)
    if key not in sweep.cells:
        raise ConfigurationError(f"the sweep {sweep.root} has no cell {key!r}")
    cancelled = _signals()
    slurm = slurm_job.in_job()
    engine: dict[str, Any] = {"kind": "slurm", **slurm} if slurm is not None else htcondor.in_job()
    engine.setdefault("node", os.uname().nodename)
    if part is not Part.WHOLE:
        engine["part"] = str(part)
    cell = sweep.cell(key)
    trouble: PTBError | None = None
    chosen: tuple[int, ...] = ()
    try:
        chosen = given_gpus(gpus)
    except PTBError as error:
        trouble = error

    def look() -> list[dict[str, Any]]:
        if trouble is not None:
            raise trouble  # within the attempt, whose policy may choose another node
        return preflight(sweep, key, gpus=chosen, node=str(engine["node"]), agent=part is not Part.EVALUATION)

    place = Place(
        gpus=chosen,
        engine=engine,
        cancelled=cancelled,
        at_limit=slurm_job.at_limit if slurm is not None else htcondor.at_limit,
        preflight=look,
        part=part,
        memory_bytes=slurm_job.memory_bytes() if slurm is not None else None,
    )
    cell.work.mkdir(parents=True, exist_ok=True)
    with cell.log.open("a", encoding="utf-8") as log:
        outcome = run_cell(sweep, key, place, progress=PlainLines(stream=log, every=30.0))
    print(f"{key}: {outcome}; see {cell.log}", flush=True)
    if slurm is not None and outcome in (Outcome.ELSEWHERE, Outcome.AGAIN):
        if outcome is Outcome.ELSEWHERE and slurm_job.elsewhere(sweep, key, slurm):
            # the new agent's job has its own evaluation job: Slurm is to remove the one that waits for a success of this one
            return _CODES[outcome] if part is Part.AGENT else 0
        if slurm_job.requeue(slurm):
            return 0
    if (
        slurm is not None
        and outcome is Outcome.COLLECTED
        and sweep.stopped is None
        and not cell.cancelled_file.exists()
    ):
        slurm_job.ensure_evaluation(sweep, key)
    notify_if_over(sweep)
    return _CODES[outcome]


def _signals() -> Callable[[], bool]:
    asked = False

    def ask(number: int, frame: FrameType | None) -> None:
        nonlocal asked
        asked = True

    for number in (signal.SIGTERM, signal.SIGINT, signal.SIGUSR1):
        signal.signal(number, ask)
    return lambda: asked


def _listed(batch: Path, position: str) -> str:
    try:
        keys: list[str] = read_json(batch)["keys"]
        return keys[int(position)]
    except (OSError, ValueError, KeyError, IndexError, TypeError) as error:
        raise ConfigurationError(f"{batch} has no cell at position {position!r}: {error}") from None

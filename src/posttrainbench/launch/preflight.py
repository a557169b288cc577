"""What can be found wrong with a sweep before GPU hours are spent, on the machine that starts it."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import Any

from posttrainbench.errors import PTBError
from posttrainbench.launch.checks import Checked
from posttrainbench.launch.gpus import given_gpus
from posttrainbench.launch.judging import judge_check
from posttrainbench.launch.launcher import get_launcher
from posttrainbench.launch.node import check_needs, examine
from posttrainbench.launch.store import SweepDirectory
from posttrainbench.launch.sweepfile import Cell, Sweep
from posttrainbench.pipeline.prepare import check_results, check_sandbox
from posttrainbench.sandbox import get_backend

_LEAST_FREE = 2**30


def problems(sweep: Sweep) -> list[str]:
    """Everything that would make cells fail, a line each; empty when the sweep can start."""
    found = [*_engine(sweep), *_place(sweep), *_sandbox(sweep)]
    for cell in _kinds(sweep.cells):
        found += _cell(cell)
    return list(dict.fromkeys(found))


def checks(sweep: Sweep) -> Iterable[tuple[str, Checked]]:
    """What can be asked from here before the sweep starts, once for all cells that need it.

    On one machine that is all that its jobs will check. On a cluster it is the judge, which is asked from here; each job
    checks its own node.

    Yields:
        key of a cell, or nothing for what is the sweep's; the check.
    """
    yield from (("", checked) for checked in judge_check(sweep.judge))
    if sweep.launcher["kind"] == "local":
        yield from node_checks(sweep)


def node_checks(sweep: Sweep) -> Iterable[tuple[str, Checked]]:
    """What a job checks on its node, on this machine: for one cell of each agent, base model and benchmark.

    Yields:
        key of the cell, check; things that several cells need are asked once.
    """
    known: dict[str, Any] = {}
    seen: set[Checked] = set()
    for cell in _kinds(sweep.cells):
        try:
            gpus = given_gpus(f"count:{cell.gpus}")
            found = examine(cell, gpus=gpus, place=_existing(sweep.root), known=known)
        except PTBError as error:
            found = [Checked(name="gpu", ok=False, detail=str(error))]
        for checked in found:
            if checked not in seen:
                seen.add(checked)
                yield cell.key, checked


def _existing(path: Path) -> Path:
    while not path.exists() and path != path.parent:
        path = path.parent
    return path


def _kinds(cells: Iterable[Cell]) -> Iterable[Cell]:
    """One cell of each agent with each base model and benchmark: repeats need the same."""
    return (cell for cell in cells if cell.repeat == 1)


def _engine(sweep: Sweep) -> list[str]:
    directory = SweepDirectory(sweep.root)
    # the launcher reads cells from the frozen plan, which is not there yet
    directory.__dict__["cells"] = {cell.key: cell for cell in sweep.cells}
    try:
        return get_launcher(directory, sweep.launcher).check()
    except PTBError as error:
        return [str(error)]


def _place(sweep: Sweep) -> list[str]:
    try:
        check_results(_existing(sweep.root), needed=_LEAST_FREE)
    except PTBError as error:
        return [str(error)]
    return []


def _sandbox(sweep: Sweep) -> list[str]:
    found = []
    for sandbox, image in dict.fromkeys((cell.spec.sandbox, cell.spec.image) for cell in sweep.cells):
        try:
            backend = get_backend(sandbox, image=image)
            # the node that submits is not the one that runs; each job probes its own
            if sweep.launcher["kind"] == "local":
                check_sandbox(backend)
        except PTBError as error:
            found.append(str(error))
    return found


def _cell(cell: Cell) -> list[str]:
    found = []
    try:
        check_needs(cell.spec)
    except PTBError as error:
        found.append(f"{cell.key}: {error}")
    return found

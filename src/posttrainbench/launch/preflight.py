"""What can be found wrong with a sweep before GPU hours are spent, on the machine that starts it."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import Any

from posttrainbench import catalog
from posttrainbench.errors import PTBError
from posttrainbench.launch.checks import Checked
from posttrainbench.launch.launcher import get_launcher
from posttrainbench.launch.store import SweepDirectory
from posttrainbench.launch.sweepfile import Cell, Sweep
from posttrainbench.pipeline import outside
from posttrainbench.pipeline.models import resolve
from posttrainbench.pipeline.prepare import agent_of, check_benchmark, check_results, check_sandbox
from posttrainbench.sandbox import get_backend
from posttrainbench.scaffolds import launch

_LEAST_FREE = 2**30


def problems(sweep: Sweep) -> list[str]:
    """Everything that would make cells fail, a line each; empty when the sweep can start."""
    found = [*_engine(sweep), *_place(sweep), *_sandbox(sweep)]
    for cell in _kinds(sweep.cells):
        found += _cell(cell)
    return list(dict.fromkeys(found))


def node_checks(sweep: Sweep) -> Iterable[tuple[str, Checked]]:
    """What a job checks on its node, on this machine: for one cell of each agent, base model and benchmark.

    Yields:
        key of the cell, check; things that several cells need are asked once.
    """
    from posttrainbench.launch.gpus import given_gpus
    from posttrainbench.launch.node import examine

    known: dict[str, Any] = {}
    seen: set[Checked] = set()
    for cell in _kinds(sweep.cells):
        try:
            gpus = given_gpus(f"count:{cell.gpus}")
        except PTBError as error:
            found = [Checked(name="gpu", ok=False, detail=str(error))]
        else:
            found = examine(cell, gpus=gpus, place=_existing(sweep.root), known=known)
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
    if sweep.launcher["kind"] != "local":
        return []  # the node that submits is not the one that runs; each job probes its own
    found = []
    for sandbox, image in dict.fromkeys((cell.spec.sandbox, cell.spec.image) for cell in sweep.cells):
        try:
            check_sandbox(get_backend(sandbox, image=image))
        except PTBError as error:
            found.append(str(error))
    return found


def _cell(cell: Cell) -> list[str]:
    found = []
    try:
        agent = agent_of(cell.spec)
        model = resolve(cell.spec.base_model, instruct=cell.spec.instruct)
        launch(agent, instruct=model.instruct)
        benchmark = catalog.benchmark(cell.spec.benchmark)
        check_benchmark(cell.spec, benchmark)
        outside.check(agent, cell.spec, benchmark, cell.spec.network or outside.default_network(agent))
    except PTBError as error:
        found.append(f"{cell.key}: {error}")
    return found

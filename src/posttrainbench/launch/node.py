"""Checks of the node that a cell is about to run on, before GPU hours are spent: by each job, and `ptb sweep preflight`.

What held is remembered per node and boot for a day, so that a thousand cells do not ask a thousand times; what failed is
not. Idle GPUs and disk space are looked at every time.
"""

from __future__ import annotations

import errno
import os
import shutil
import subprocess
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from posttrainbench import catalog, hardware
from posttrainbench.errors import InfrastructureError, PTBError
from posttrainbench.files import write_json
from posttrainbench.launch import service
from posttrainbench.launch.checks import Checked
from posttrainbench.launch.claim import host, read_claim
from posttrainbench.launch.store import SweepDirectory
from posttrainbench.launch.sweepfile import Cell
from posttrainbench.pipeline import outside
from posttrainbench.pipeline.models import ResolvedModel, resolve
from posttrainbench.pipeline.prepare import agent_of, agent_record, check_benchmark, check_sandbox
from posttrainbench.pipeline.spec import RunSpec
from posttrainbench.sandbox import Backend, Limits, Spec, get_backend
from posttrainbench.scaffolds import Agent, launch
from posttrainbench.scratch import Scratch

_DAY_S = 86400.0
_LEAST_FREE = 2**30
_SKEW_S = 120.0
_IDLE_MIB = 1024
"""Driver and persistence daemon hold a few hundred MiB on a GPU that nobody uses."""
_CUDA = """
import ctypes
cuda = ctypes.CDLL("libcuda.so.1")
count = ctypes.c_int(-1)
print("cuInit", cuda.cuInit(0), "count", (cuda.cuDeviceGetCount(ctypes.byref(count)), count.value)[1])
"""


def examine(
    cell: Cell, *, gpus: Sequence[int], place: Path, known: dict[str, Any] | None = None, agent: bool = True
) -> list[Checked]:
    """Check this node for one cell.

    Args:
        cell: what is to run.
        gpus: indices of the GPUs it would get.
        place: an existing directory on the disk of the results.
        known: what held earlier, by name of the question; changed.
        agent: whether the agent is to work here; else only audit and evaluation are.
    """
    known = {} if known is None else known
    spec = cell.spec
    found = [_disk(place), *_idle(gpus)]
    if any(checked.stops for checked in found):
        return found  # the rest would cost calls for nothing
    backend = get_backend(spec.sandbox, image=spec.image)
    sandbox = f"{spec.sandbox} {spec.image or ''}".strip()
    asked: list[tuple[str, Callable[[], Checked]]] = [
        ("clock", lambda: _clock(place)),
        (f"sandbox {sandbox}", lambda: _sandbox(sandbox, backend)),
        (f"gpu {list(gpus)} {sandbox}", lambda: _gpus(gpus, backend)),
        *(
            [
                (f"cell {cell.agent} {spec.base_model} {spec.benchmark}", lambda: _needs(cell)),
                (f"model API {cell.agent} {spec.base_model}", lambda: service.model_api(cell)),
            ]
            if agent
            else [(f"evaluation {spec.base_model} {spec.benchmark}", lambda: _evaluation_needs(cell))]
        ),
        (f"grader {spec.benchmark} {spec.grader}", lambda: service.grader(cell)),
    ]
    for question, ask in asked:
        before = known.get(question)
        if before is not None and 0 <= time.time() - before["time"] < _DAY_S:
            found.append(Checked(**before["checked"]))
            continue
        checked = ask()
        if checked.ok:
            known[question] = {"time": time.time(), "checked": asdict(checked)}
        found.append(checked)
        if checked.stops:
            break
    return found


def preflight(
    sweep: SweepDirectory, key: str, *, gpus: Sequence[int], node: str, agent: bool = True
) -> list[dict[str, Any]]:
    """Check this node for a cell of a sweep; what is found goes into the run's record.

    Raises:
        ConfigurationError: the cell cannot run as it is written.
        InfrastructureError: the node or a service does not do; its `kind` decides what follows.
    """
    file = sweep.state / "nodes" / f"{node.replace('/', '-')}.json"
    held = read_claim(file)
    known = held.get("known", {}) if held.get("host") == host() else {}
    before = len(known)
    found = examine(sweep.cells[key], gpus=gpus, place=sweep.root, known=known, agent=agent)
    if len(known) != before:
        file.parent.mkdir(exist_ok=True)
        write_json(file, {"host": host(), "node": node, "known": known})
    for checked in found:
        if checked.stops:
            raise checked.error()
    return [asdict(checked) for checked in found]


def _disk(place: Path) -> Checked:
    free = shutil.disk_usage(place).free
    return Checked(
        name="disk", ok=free >= _LEAST_FREE, detail=f"{free / 2**30:.1f} GiB free in {place}", kind="disk_full"
    )


def _clock(place: Path) -> Checked:
    """This machine's clock against that of the shared disk, whose server stamps the file."""
    try:
        with tempfile.NamedTemporaryFile(dir=place, prefix=".clock-") as file:
            file.write(b".")
            file.flush()
            os.fsync(file.fileno())
            skew = time.time() - Path(file.name).stat().st_mtime
    except OSError as error:
        kind = "disk_full" if error.errno in (errno.ENOSPC, errno.EDQUOT) else "other"
        return Checked(name="clock", ok=False, detail=f"{place} cannot be written: {error.strerror}", kind=kind)
    return Checked(name="clock", ok=abs(skew) < _SKEW_S, detail=f"{skew:+.1f} s against the disk of the results")


def _idle(gpus: Sequence[int]) -> list[Checked]:
    if not gpus:
        return []
    query = ["nvidia-smi", "--query-gpu=index,memory.used", "--format=csv,noheader,nounits"]
    try:
        done = subprocess.run(query, capture_output=True, text=True, timeout=30, check=True)
        rows = [line.split(",") for line in done.stdout.splitlines() if line.strip()]
        used = {int(index): int(mib) for index, mib in rows}
    except (OSError, ValueError, subprocess.SubprocessError) as error:
        return [Checked(name="gpu idle", ok=False, detail=f"nvidia-smi does not answer: {error}")]
    busy = {index: used[index] for index in gpus if used.get(index, 0) > _IDLE_MIB}
    detail = ", ".join(f"GPU {index} has {mib} MiB in use" for index, mib in busy.items())
    return [Checked(name="gpu idle", ok=not busy, detail=detail or f"GPU {', '.join(map(str, gpus))} idle")]


def _sandbox(name: str, backend: Backend) -> Checked:
    """The negative tests of the sandbox, as each run makes them again."""
    try:
        checks = check_sandbox(backend)
    except PTBError as error:
        kind = error.kind if isinstance(error, InfrastructureError) else "configuration"
        return Checked(name="sandbox", ok=False, detail=f"{name}: {error}", kind=kind)
    return Checked(name="sandbox", ok=True, detail=f"{name}: {len(checks)} properties hold")


def _gpus(gpus: Sequence[int], backend: Backend) -> Checked:
    """Model and driver, and that CUDA starts inside the sandbox with exactly these GPUs."""
    machine = hardware.detect()
    if not gpus:
        return Checked(name="gpu", ok=True, detail="none asked for")
    missing = set(gpus) - {gpu.index for gpu in machine.gpus}
    if missing:
        return Checked(name="gpu", ok=False, detail=f"GPU {min(missing)} is not listed by nvidia-smi")
    names = f"{machine.describe(gpus=tuple(gpus)).partition(';')[0]}, driver {machine.driver}"
    printed: list[bytes] = []
    runtime = backend.runtime()
    with Scratch("cuda") as folder:
        spec = Spec(
            argv=[runtime.executable, "-c", _CUDA],
            cwd="/tmp",
            env={"PATH": "/usr/local/bin:/usr/bin:/bin", "CUDA_VISIBLE_DEVICES": ",".join(map(str, range(len(gpus))))},
            ro=runtime.ro,
            rw={"/tmp": folder},
            gpus=list(gpus),
            limits=Limits(wall_s=60),
        )
        try:
            backend.run(spec, on_output=printed.append)
        except PTBError as error:
            return Checked(name="gpu", ok=False, detail=f"{names}; {error}")
    said = b"".join(printed).decode(errors="replace").strip()
    good = said == f"cuInit 0 count {len(gpus)}"
    return Checked(name="gpu", ok=good, detail=names if good else f"{names}; CUDA in the sandbox says: {said[-200:]}")


def _needs(cell: Cell) -> Checked:
    """What the cell needs on this machine: CLI, base model, benchmark data, keys."""
    spec = cell.spec
    try:
        agent, model = check_needs(spec)
        version = agent_record(agent)["version"]
    except PTBError as error:
        kind = error.kind if isinstance(error, InfrastructureError) else "configuration"
        return Checked(name="agent, model and data", ok=False, detail=str(error), kind=kind)
    cli = f"{agent.scaffold} {version}; " if version else ""
    return Checked(
        name="agent, model and data", ok=True, detail=f"{cli}{model.entry.name} and {spec.benchmark} are here"
    )


def check_needs(spec: RunSpec) -> tuple[Agent, ResolvedModel]:
    """See that this machine has what a run needs, as `prepare` will: CLI, base model, data, keys, policies.

    Raises:
        ConfigurationError: the run cannot be made as it is asked for.
        InfrastructureError: the base model could not be fetched.
    """
    agent = agent_of(spec)
    model = resolve(spec.base_model, instruct=spec.instruct)
    launch(agent, instruct=model.instruct)
    benchmark = catalog.benchmark(spec.benchmark)
    check_benchmark(spec, benchmark)
    base = outside.Base(
        id=model.entry.base, instruct=model.entry.instruct, directory=model.base, revision=model.revision
    )
    outside.check(agent, spec, benchmark, spec.network or outside.default_network(agent), model=base)
    return agent, model


def _evaluation_needs(cell: Cell) -> Checked:
    """What audit and evaluation need on this machine: base model and benchmark data, but no agent."""
    spec = cell.spec
    try:
        model = resolve(spec.base_model, instruct=spec.instruct)
        check_benchmark(spec, catalog.benchmark(spec.benchmark))
    except PTBError as error:
        kind = error.kind if isinstance(error, InfrastructureError) else "configuration"
        return Checked(name="model and data", ok=False, detail=str(error), kind=kind)
    return Checked(name="model and data", ok=True, detail=f"{model.entry.name} and {spec.benchmark} are here")

"""Stage 2: start the agent in the sandbox, record what it prints, and see to it that nothing of it is left."""

from __future__ import annotations

import os
import sys
import time
from pathlib import Path
from typing import Any

from posttrainbench import catalog
from posttrainbench.errors import InfrastructureError
from posttrainbench.files import write_atomic, write_json
from posttrainbench.pipeline.benchmark_data import data_mounts
from posttrainbench.pipeline.context import Context
from posttrainbench.pipeline.mounts import readable_binds
from posttrainbench.pipeline.run_dir import now
from posttrainbench.pipeline.trace import TraceWriter
from posttrainbench.sandbox import Limits, Spec
from posttrainbench.sandbox.environment import python_runtime
from posttrainbench.scaffolds import launch
from posttrainbench.workspace import build, paths


class Interrupted(Exception):
    """The user asked to stop; the run can be resumed."""


def agent_environment(context: Context) -> dict[str, str]:
    """The agent's complete environment. Nothing of the harness's is in it."""
    environment = {
        "PATH": f"{Path(sys.executable).parent}:/usr/local/bin:/usr/bin:/bin",
        "HOME": paths.HOME,
        "LANG": "C.UTF-8",
        "PYTHONUNBUFFERED": "1",
        "HF_HOME": paths.HUB_HOME,
        "HF_HUB_OFFLINE": "1",
        "TOKENIZERS_PARALLELISM": "false",
        # evaluate.py then runs programs as limited processes: this sandbox admits no further one
        "PTB_CONFINED": "1",
        "PTB_BASE_MODEL": f"{paths.MODELS}/{context.model.name}",
        "PTB_BENCHMARK": context.benchmark.id,
        "PTB_HOURS": f"{context.spec.hours:g}",
    }
    if context.record["gpus"]:
        # inside, only the given devices exist, numbered from 0
        environment["CUDA_VISIBLE_DEVICES"] = ",".join(str(i) for i in range(len(context.record["gpus"])))
    return environment


def hub_mounts(context: Context) -> dict[str, Path]:
    """The base model at the place where the hub client looks, so that its hub id works without a network."""
    identity, revision = context.model.base, context.record["base_model"]["revision"]
    if revision is None or identity.startswith(("builtin:", "/")):
        return {}
    folder = f"hub/models--{identity.replace('/', '--')}"
    refs = context.run.job.home / Path(paths.HUB_HOME).relative_to(paths.HOME) / folder / "refs"
    refs.mkdir(parents=True, exist_ok=True)
    (refs / "main").write_text(revision, encoding="utf-8")
    inside = f"{paths.HUB_HOME}/{folder}/snapshots/{revision}"
    return readable_binds(inside, context.base, spare=context.run.job.root / "base")


def _set_aside_interrupted(context: Context) -> int:
    """Keep the trace of an attempt that died with the harness; the agent starts afresh. Returns how many there were."""
    attempts = int(context.run.stage("solve").get("attempts", 0))
    if attempts and context.run.trace.exists():
        context.run.trace.rename(context.run.trace.with_name(f"interrupted-{attempts}.jsonl"))
    return attempts


def solve(context: Context) -> None:
    """Run the agent until it ends or its time is up.

    An interrupted attempt is not continued, because nobody can tell what was lost with it: its trace is kept, and the
    agent gets a fresh workspace and its full time.

    Raises:
        InfrastructureError: the sandbox could not be set up, or a process outlived it.
        Interrupted: the user asked to stop.
    """
    run, spec, limits = context.run, context.spec, context.record["limits"]
    interrupted = _set_aside_interrupted(context)
    run.set_stage("solve", status="running", attempts=interrupted + 1, started=now())
    job = run.job
    text = run.prompt_file.read_text(encoding="utf-8")
    manifest = build(job, model=context.model, benchmark=context.benchmark, prompt=text)
    write_json(run.manifest_file, manifest)
    start = launch(context.agent, instruct=context.instruct)
    brought: dict[str, Path] = {}
    for inside, path in start.ro.items():
        brought |= readable_binds(inside, path, spare=job.root / "brought") if path.is_dir() else {inside: path}
    data = data_mounts(context.benchmark, spec.data_dir, spare=job.root / "data")
    wall = spec.hours * 3600
    sandbox_spec = Spec(
        argv=start.argv,
        cwd=paths.TASK,
        env={**agent_environment(context), **data.env, **start.env},
        ro={
            **python_runtime(),
            **readable_binds(f"{paths.MODELS}/{context.model.name}", context.base, spare=job.root / "base"),
            paths.CONTROL: job.control,
            **hub_mounts(context),
            **data.ro,
            **brought,
        },
        rw={paths.HOME: job.home, paths.TEMPORARY: job.temporary},
        hide=[str(catalog.WEIGHTS)],
        gpus=context.record["gpus"],
        stdin=text,
        limits=Limits(
            wall_s=wall,
            grace_s=spec.grace_s,
            memory_bytes=limits["memory_bytes"],
            processes=limits["processes"],
            disk_bytes=limits["disk_bytes"],
        ),
    )
    trace = TraceWriter(run.trace, on_line=context.progress.line)
    context.progress.stage("solve", seconds=wall)
    write_atomic(job.control / "deadline", f"{int(time.time() + wall)}\n")
    os.chmod(job.control, 0o755)  # noqa: PTH101 - whatever the umask: the agent's user reads the deadline
    started = now()
    try:
        result = context.backend.run(sandbox_spec, on_output=trace.feed, cancelled=context.cancelled)
    finally:
        trace.close()
    if result.survivors:
        raise InfrastructureError(
            f"{result.survivors} processes of the agent outlived its sandbox; the run is not valid"
        )
    if result.reason == "cancelled":
        raise Interrupted
    outcome: dict[str, Any] = {
        "returncode": result.returncode,
        "reason": result.reason,
        "wall_s": round(result.wall_s, 3),
        "teardown_s": round(result.teardown_s, 3),
        "survivors": result.survivors,
        "peak_memory_bytes": result.peak_memory_bytes,
        "peak_disk_bytes": result.peak_disk_bytes,
    }
    run.set_stage("solve", status="done", attempts=interrupted + 1, started=started, ended=now(), **outcome)

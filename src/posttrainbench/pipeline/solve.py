"""Stage 2: start the agent in the sandbox, record what it prints, and see to it that nothing of it is left."""

from __future__ import annotations

import contextlib
import os
import time
from collections.abc import Callable, Mapping
from pathlib import Path

from posttrainbench import catalog
from posttrainbench.errors import InfrastructureError, PTBError
from posttrainbench.files import remove_tree, write_atomic, write_json
from posttrainbench.pipeline import outside, sealed
from posttrainbench.pipeline.benchmark_data import DataMounts, data_mounts
from posttrainbench.pipeline.context import Context
from posttrainbench.pipeline.monitor import monitored
from posttrainbench.pipeline.mounts import readable_binds
from posttrainbench.pipeline.reopen import reopen
from posttrainbench.pipeline.run_dir import now
from posttrainbench.pipeline.sessions import Plan, Sessions
from posttrainbench.pipeline.trace import TraceWriter
from posttrainbench.sandbox import Limits, Result, Spec
from posttrainbench.scaffolds import Session, launch, scaffold_of
from posttrainbench.traces.scrub import Scrubber
from posttrainbench.workspace import build, paths


class Interrupted(Exception):
    """The user asked to stop; the run can be resumed."""


def agent_environment(context: Context) -> dict[str, str]:
    """The agent's complete environment. Nothing of the harness's is in it."""
    environment = {
        "PATH": context.backend.runtime().path,
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
        ConfigurationError: what the agent needs (key, CLI, data) is not here.
        InfrastructureError: the sandbox could not be set up, or a process outlived it.
        Interrupted: the user asked to stop.
    """
    run, spec = context.run, context.spec
    interrupted = _set_aside_interrupted(context)
    run.set_stage("solve", status="running", attempts=interrupted + 1, started=now())
    job = run.job
    text = run.prompt_file.read_text(encoding="utf-8")
    is_sealed = spec.test_data == "sealed"
    manifest = build(job, model=context.model, benchmark=context.benchmark, prompt=text, sealed=is_sealed)
    write_json(run.manifest_file, manifest)
    wall = spec.hours * 3600
    context.progress.stage("solve", seconds=wall)
    with contextlib.ExitStack() as closing:
        door = closing.enter_context(outside.opened(context))
        lines = _Lines(context.progress.line)
        trace = TraceWriter(run.trace, on_line=lines, scrubber=Scrubber(door.secret_values))
        closing.callback(trace.close)
        closing.enter_context(monitored(run.path / "monitor.jsonl", gpus=context.record["gpus"]))
        scoring = closing.enter_context(sealed.evaluations(context, seconds=wall))
        write_atomic(job.control / "deadline", f"{int(time.time() + wall)}\n")
        os.chmod(job.control, 0o755)  # noqa: PTH101 - whatever the umask: the agent's user reads the deadline
        started = now()
        sessions = Sessions(
            scaffold=scaffold_of(context.agent),
            start=_Starter(context, door, trace, lines, tend=scoring.tend).start,
            troubles=door.troubles,
            answered=door.answered,
            mark=trace.mark,
            reprompt=context.agent.reprompt,
            floor_s=spec.reprompt_floor_h * 3600,
            cancelled=context.cancelled,
        )
        began = time.monotonic()
        result, ending, records = sessions.run(text, wall_s=wall)
        wall_s = time.monotonic() - began
        # what it evaluates is nobody's any more, and the GPU is wanted
        scoring.stop()
        usage = door.usage()
    if result.reason == "cancelled" and context.cancelled():
        raise Interrupted
    _write_trajectory(context, text)
    run.set_stage(
        "solve",
        status="done",
        attempts=interrupted + 1,
        started=started,
        ended=now(),
        returncode=result.returncode,
        reason=result.reason if result.reason != "cancelled" else "exit",
        ending=str(ending),
        wall_s=round(wall_s, 3),
        teardown_s=round(result.teardown_s, 3),
        survivors=result.survivors,
        peak_memory_bytes=result.peak_memory_bytes,
        peak_disk_bytes=result.peak_disk_bytes,
        sessions=records,
        usage=usage,
        sealed=scoring.record(),
    )


def _write_trajectory(context: Context, prompt: str) -> None:
    """The trace in one form for all CLIs. A trace that cannot be read costs this file, never the run."""
    from posttrainbench.traces import AgentInfo, write_trajectory

    record = context.record["agent"]
    info = AgentInfo(name=record["scaffold"], version=record.get("version") or "unknown", model=record["model"])
    try:
        write_trajectory(
            context.run.trace,
            record.get("trace_format", "text"),
            context.run.trace.with_name("trajectory.json"),
            agent=info,
            prompt=prompt,
        )
    except (OSError, ValueError, RecursionError, PTBError) as error:
        context.progress.say(f"trace/trajectory.json could not be made: {error}")


class _Lines:
    """Passes each line of the trace on to the display and to the session that prints it."""

    def __init__(self, show: Callable[[str], None]) -> None:
        self._show = show
        self.session: Callable[[str], None] = show

    def __call__(self, text: str) -> None:
        self._show(text)
        if self.session is not self._show:
            self.session(text)


class _Starter:
    """Starts one session after the other over the same job directories."""

    def __init__(
        self,
        context: Context,
        door: outside.Door,
        trace: TraceWriter,
        lines: _Lines,
        *,
        tend: Callable[[], bool] = lambda: False,
    ) -> None:
        run, spec = context.run, context.spec
        self._context, self._door, self._trace, self._lines, self._tend = context, door, trace, lines, tend
        self._hide = [context.backend.runtime().inside(catalog.WEIGHTS)]
        data = DataMounts()
        if spec.test_data == "sealed":
            self._hide += sealed.hidden(context.backend)
        else:
            data = data_mounts(context.benchmark, spec.data_dir, spare=run.job.root / "data")
        self._env = {**agent_environment(context), **data.env, **door.env}
        self._ro = {
            **context.backend.runtime().ro,
            **readable_binds(f"{paths.MODELS}/{context.model.name}", context.base, spare=run.job.root / "base"),
            paths.CONTROL: run.job.control,
            **hub_mounts(context),
            **data.ro,
        }

    def start(self, plan: Plan, on_line: Callable[[str], None]) -> Result:
        """Run a session to its end.

        Raises:
            InfrastructureError: the sandbox could not be set up, or a process outlived it.
        """
        context, job = self._context, self._context.run.job
        reopen(job)
        limits = context.record["limits"]
        session = Session(prompt=plan.prompt, token=self._door.token, resume=plan.resume)
        start = launch(context.agent, instruct=context.instruct, session=session)
        brought: dict[str, Path] = {}
        for inside, path in start.ro.items():
            whole = context.agent.provider or not path.is_dir()
            brought |= {inside: path} if whole else readable_binds(inside, path, spare=job.root / "brought")
        argv = [*self._hand_over(start.files), *start.argv]
        environment = {**self._env, **start.env}
        environment["PATH"] = ":".join([*start.path, environment["PATH"]])
        spec = Spec(
            argv=argv,
            cwd=paths.TASK,
            env=environment,
            ro={**self._ro, **brought},
            rw={paths.HOME: job.home, paths.TEMPORARY: job.temporary},
            hide=self._hide,
            gpus=context.record["gpus"],
            stdin=plan.prompt if start.stdin is None else start.stdin,
            listeners=self._door.listeners,
            limits=Limits(
                wall_s=plan.left_s,
                grace_s=context.spec.grace_s,
                memory_bytes=limits["memory_bytes"],
                processes=limits["processes"],
                disk_bytes=limits["disk_bytes"] if context.spec.disk_quota == "watchdog" else None,
            ),
        )
        self._lines.session = on_line
        result = context.backend.run(
            spec,
            on_output=self._trace.feed,
            cancelled=lambda: self._tend() or context.cancelled() or self._door.hopeless(),
        )
        self._trace.end_line()
        if result.survivors:
            raise InfrastructureError(
                f"{result.survivors} processes of the agent outlived its sandbox; the run is not valid"
            )
        return result

    def _hand_over(self, files: Mapping[str, str]) -> list[str]:
        """Leave files for the agent's home; returns the command that puts them there, to stand before the agent's own.

        They are copied by the sandbox's user inside: the home may hold links that an earlier session planted.
        """
        handed = self._context.run.job.control / "home"
        remove_tree(handed)
        if not files:
            return []
        for name, text in files.items():
            path = handed / name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(text, encoding="utf-8")
        for path in (handed, *handed.rglob("*")):
            path.chmod(0o755 if path.is_dir() else 0o644)
        script = f'cp -R --remove-destination {paths.CONTROL}/home/. "$HOME"/; exec "$@"'
        return ["/bin/sh", "-c", script, "ptb"]

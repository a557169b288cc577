"""Stage 1: check everything that can be checked before any time is spent, then create the run directory."""

from __future__ import annotations

import os
import re
import secrets
import shutil
import stat
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from dataclasses import asdict
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from posttrainbench import __version__, catalog, hardware, images
from posttrainbench.catalog import Benchmark
from posttrainbench.errors import ConfigurationError, InfrastructureError, PTBError
from posttrainbench.files import fsync_directory, remove_tree, sha256_file, write_atomic, write_json
from posttrainbench.gateway.sealed_config import SealedConfig
from posttrainbench.pipeline import outside, protocol, quota
from posttrainbench.pipeline.benchmark_data import data_mounts
from posttrainbench.pipeline.models import ResolvedModel, resolve
from posttrainbench.pipeline.run_dir import FORMAT, RunDirectory, now
from posttrainbench.pipeline.spec import RunSpec
from posttrainbench.sandbox import Backend, Capabilities, get_backend
from posttrainbench.sandbox.machine import python_check
from posttrainbench.sandbox.probes import probe
from posttrainbench.scaffolds import BACKGROUND_NOTE, Agent, launch, parse_agent, scaffold_of
from posttrainbench.scratch import Scratch
from posttrainbench.workspace import paths, prompt

# Room for traces, logs and the evaluation beside a few copies of the weights.
_DISK_RESERVE = 96 * 2**20
_DRAFT_S = 600.0
# `.IDENTITY.tmp`: other hidden directories below a results directory are the user's own
_DRAFT = re.compile(r"\.\d{8}T\d{6}-.+\.tmp", re.ASCII | re.DOTALL)


def _model_bytes(path: Path) -> int:
    return sum(file.stat().st_size for file in path.iterdir() if file.is_file())


def _slug(text: str) -> str:
    return re.sub(r"[^A-Za-z0-9.]+", "-", text).strip("-").lower()


def provenance() -> dict[str, Any]:
    """Versions of what runs here, and the git commit of the harness where it runs from a checkout."""
    record: dict[str, Any] = {"posttrainbench": __version__, "python": sys.version.split()[0], "platform": sys.platform}
    package = Path(__file__).parent.parent
    try:
        # -c safe.directory: a root harness may run from a user's checkout; only two read-only questions are asked
        git = ["git", "-c", f"safe.directory={package.parent.parent}", "-C", str(package)]
        commit = subprocess.run([*git, "rev-parse", "HEAD"], capture_output=True, text=True, timeout=10, check=True)
        tracked = subprocess.run(
            [*git, "ls-files", "--error-unmatch", "__init__.py"], capture_output=True, timeout=10, check=False
        )
        if tracked.returncode == 0:
            record["commit"] = commit.stdout.strip()
    except (OSError, subprocess.SubprocessError):
        pass
    return record


def agent_of(spec: RunSpec) -> Agent:
    """The agent that a spec names.

    Raises:
        ConfigurationError: there is none, or its options contradict each other.
    """
    return parse_agent(
        spec.agent,
        model=spec.agent_model,
        effort=spec.effort,
        helpers=spec.helper_models,
        reprompt=spec.reprompt,
        subscription=spec.subscription,
        env=spec.agent_env,
    )


def agent_record(agent: Agent) -> dict[str, Any]:
    """What run.json says of the agent."""
    scaffold = scaffold_of(agent)
    installation = None if scaffold is None else scaffold.installed()
    return {
        "name": agent.name,
        "scaffold": agent.scaffold,
        "model": agent.model,
        "provider": agent.provider or None,
        "effort": agent.effort,
        "reprompt": agent.reprompt,
        "subscription": agent.subscription,
        "mounts_credentials": agent.mounts_credentials,
        "trace_format": "text" if scaffold is None else scaffold.trace_format,
        "version": None if installation is None else installation.version,
        "package": None if installation is None else installation.package,
        "program_sha256": None if agent.program is None else sha256_file(agent.program),
        # a file of the user's is kept with the run: it may be changed before somebody resumes or reads it
        "copy": f"agent/{agent.program.name}" if agent.own_file and agent.program is not None else None,
        "request": agent.request(),
    }


def check_sandbox(backend: Backend) -> list[dict[str, Any]]:
    """Probe the sandbox on this machine.

    Returns:
        The checks as plain data, to be stored with the run.

    Raises:
        InfrastructureError: a required property does not hold; names the first one and its fix.
    """
    checks = probe(backend)
    failed = [check for check in checks if check.required and not check.ok]
    if failed:
        first = failed[0]
        more = f" (and {len(failed) - 1} more; see `ptb doctor`)" if len(failed) > 1 else ""
        fix = f"; {first.fix}" if first.fix else ""
        raise InfrastructureError(
            f"the sandbox is not safe on this machine: {first.name}: {first.detail}{fix}{more}", kind="sandbox"
        )
    return [asdict(check) for check in checks]


def check_python(backend: Backend) -> None:
    """See that agents will find the Python that they are told of.

    Raises:
        ConfigurationError: they will not.
    """
    check = python_check(backend)
    if not check.ok:
        raise ConfigurationError(f"{check.detail}: {check.fix}")


def check_capabilities(spec: RunSpec, backend: Backend, gpus: Sequence[int]) -> Capabilities:
    """See that the sandbox can enforce what the run asks for.

    Raises:
        ConfigurationError: it cannot; names the first thing that it lacks.
        InfrastructureError: it is not installed.
    """
    has = backend.capabilities()
    lacks = {
        "a network of its own": not has.network_isolation,
        f"GPU {list(gpus)} (is this machine set up for it?)": bool(gpus) and not has.gpus,
        f"a memory limit of {spec.memory_gib} GiB": spec.memory_gib is not None and has.memory_limit == "none",
        f"a disk limit of {spec.disk_gib} GiB": spec.disk_gib is not None and has.disk_limit == "none",
        f"a limit of {spec.processes} processes": has.process_limit == "none",
    }
    for what, lacking in lacks.items():
        if lacking:
            raise ConfigurationError(
                f"the sandbox {backend.name} cannot give the run {what}; see `ptb doctor --sandbox {backend.name}`, or "
                "choose another one"
            )
    return has


def check_results(root: Path, *, needed: int) -> None:
    """Make the results directory and see that it can be written and holds `needed` bytes.

    Raises:
        ConfigurationError: not writable.
        InfrastructureError: too little space.
    """
    try:
        root.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise ConfigurationError(f"the results directory {root} cannot be made: {error.strerror}") from None
    if not os.access(root, os.W_OK | os.X_OK):
        raise ConfigurationError(f"the results directory {root} is not writable; choose another with --out")
    free = shutil.disk_usage(root).free
    if free < needed:
        raise InfrastructureError(
            f"too little disk space for results in {root}: {free / 2**20:.0f} MiB free, {needed / 2**20:.0f} MiB needed; "
            "free some or choose another place with --out",
            kind="disk_full",
        )


def _limits(spec: RunSpec, machine: hardware.Hardware, free: int) -> dict[str, int]:
    # The harness itself and the evaluation need some; an agent that takes all would take them down with it.
    memory = int(spec.memory_gib * 2**30) if spec.memory_gib else max(2**30, int(machine.memory_bytes * 0.9) - 2**30)
    disk = int(spec.disk_gib * 2**30) if spec.disk_gib else max(2**26, int(free * 0.8) - _DISK_RESERVE)
    return {"memory_bytes": memory, "disk_bytes": disk, "processes": spec.processes}


def _gpus(spec: RunSpec, machine: hardware.Hardware) -> tuple[int, ...]:
    there = {gpu.index for gpu in machine.gpus}
    if spec.gpus is None:
        return tuple(sorted(there)[:1])
    missing = sorted(set(spec.gpus) - there)
    if missing:
        raise ConfigurationError(f"GPU {missing[0]} does not exist here; this machine has {sorted(there) or 'no GPU'}")
    return spec.gpus


def model_record(model: ResolvedModel) -> dict[str, Any]:
    """What run.json says of the base model and its reference."""
    return {
        "name": model.entry.name,
        "base": str(model.base),
        "instruct": None if model.instruct is None else str(model.instruct),
        "instruct_problem": model.instruct_problem,
        "revision": model.revision,
        "entry": asdict(model.entry),
    }


def check_benchmark(spec: RunSpec, benchmark: Benchmark) -> None:
    """See that the benchmark's data is here and that its grader could be asked, before hours are spent.

    Raises:
        ConfigurationError: data or the grader's key is missing.
    """
    with Scratch("data") as spare:
        data_mounts(benchmark, spec.data_dir, spare=spare)
    if benchmark.scoring == "outside":
        from posttrainbench.evaluation import EvaluationRequest, runner

        request = EvaluationRequest(
            benchmark=benchmark.id, base_model=spec.base_model, template="", output="", grader=spec.grader
        )
        if runner.needs_grader(request):
            runner.check_grader(request)


def dead_drafts(parent: Path) -> Iterator[Path]:
    """Drafts below `parent` that a killed `prepare` left: a living one holds the draft's lock."""
    for draft in sorted(parent.glob(".*.tmp")):
        try:
            if not _DRAFT.fullmatch(draft.name) or not stat.S_ISDIR(draft.lstat().st_mode):
                continue
            if (draft / ".lock").exists():
                with RunDirectory(draft).locked():
                    yield draft
            elif time.time() - draft.stat().st_mtime > _DRAFT_S:
                yield draft
        except (OSError, PTBError):
            continue


def _sweep(parent: Path) -> None:
    for draft in dead_drafts(parent):
        remove_tree(draft)


def prepare(spec: RunSpec, *, results: Path, group: str = "adhoc", backend: Backend | None = None) -> RunDirectory:
    """Check the request and the machine, then create `results/group/<run id>`.

    Nothing is left behind when a check fails.

    Raises:
        ConfigurationError: the request cannot be met as written.
        InfrastructureError: this machine cannot run it as it is.
    """
    agent = agent_of(spec)
    network = spec.network or outside.default_network(agent)
    benchmark = catalog.benchmark(spec.benchmark)
    if not benchmark.ready:
        raise ConfigurationError(f"benchmark {benchmark.id!r} cannot be evaluated by this version yet")
    model = resolve(spec.base_model, instruct=spec.instruct)
    launch(agent, instruct=model.instruct)
    check_benchmark(spec, benchmark)
    hub = outside.Base(
        id=model.entry.base, instruct=model.entry.instruct, directory=model.base, revision=model.revision
    )
    gateway = outside.check(agent, spec, benchmark, network, model=hub)
    machine = hardware.detect()
    gpus = _gpus(spec, machine)
    check_results(results, needed=4 * _model_bytes(model.base) + _DISK_RESERVE)
    quota.check(spec.disk_quota, sandbox=spec.sandbox, disk_gib=spec.disk_gib, results=results)
    backend = backend or get_backend(spec.sandbox, image=spec.image)
    capabilities = asdict(check_capabilities(spec, backend, gpus))
    checks = check_sandbox(backend)
    check_python(backend)
    image = None if spec.image is None else images.identity(backend.name, spec.image)

    started = datetime.now(UTC).strftime("%Y%m%dT%H%M%S")
    identity = f"{started}-{_slug(agent.name)}-{_slug(model.entry.name)}-{benchmark.id}-{secrets.token_hex(2)}"
    parent = results.absolute() / group
    temporary = parent / f".{identity}.tmp"
    _sweep(parent)
    text = prompt(
        model=model.entry.name,
        model_path=f"{paths.MODELS}/{model.entry.name}",
        benchmark=benchmark,
        hours=spec.hours,
        hardware=machine.describe(gpus=gpus),
        network=outside.describe(agent, network, tls=spec.web_tls),
        sealed=None if gateway is None or gateway.sealed is None else SealedConfig.from_json(gateway.sealed),
        notes=(BACKGROUND_NOTE,) if agent.provider else (),
    )
    record: dict[str, Any] = {
        "format": FORMAT,
        "id": identity,
        "group": group,
        "spec": {
            **spec.as_json(),
            "network": network if not network.endswith(".toml") else str(Path(network).absolute()),
            "data_dir": None if spec.data_dir is None else str(Path(spec.data_dir).absolute()),
        },
        "agent": agent_record(agent),
        "base_model": model_record(model),
        "benchmark": benchmark.id,
        "protocol": protocol.describe(
            network=network, web_tls=spec.web_tls, test_data=spec.test_data, test_feedback=spec.test_feedback
        ),
        "gateway": None if gateway is None else gateway.to_json(),
        "provenance": provenance(),
        "hardware": machine.as_json(),
        "gpus": list(gpus),
        "sandbox": {
            "backend": backend.name,
            "image": str(Path(spec.image).absolute()) if spec.image and Path(spec.image).is_file() else spec.image,
            "image_digest": None if image is None else image.digest,
            "image_lock": None if image is None else image.lock,
            "capabilities": capabilities,
            "checks": checks,
        },
        "limits": _limits(spec, machine, shutil.disk_usage(results).free),
        "stages": {"prepare": {"status": "done", "ended": now()}},
    }
    try:
        temporary.mkdir(parents=True)
        with RunDirectory(temporary).locked():
            if record["agent"]["copy"] and agent.program:
                (temporary / "agent").mkdir()
                assert agent.program is not None
                shutil.copyfile(agent.program, temporary / record["agent"]["copy"])
            write_atomic(temporary / "prompt.md", text)
            write_json(temporary / "run.json", record)
            temporary.rename(parent / identity)
        fsync_directory(parent)
    except BaseException:
        shutil.rmtree(temporary, ignore_errors=True)
        raise
    return RunDirectory(parent / identity)

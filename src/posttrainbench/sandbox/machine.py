"""Checks of the machine for `ptb doctor`: what the sandbox needs, what it can use, and how to get it."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

from posttrainbench.errors import ConfigurationError, InfrastructureError
from posttrainbench.sandbox import command
from posttrainbench.sandbox.gpu import gpu_indices
from posttrainbench.sandbox.spec import Backend, Check, Limits, Spec

_GIB = 1 << 30


def preflight(backend: Backend) -> list[Check]:
    """Can a sandbox be started at all? The first failure makes the later ones pointless, so they are left out."""
    try:
        bwrap = command.find_bwrap()
    except InfrastructureError as error:
        detail, _, fix = str(error).rpartition(": ")
        return [Check(name="bubblewrap", ok=False, detail=detail, fix=fix)]
    version = ".".join(map(str, bwrap.version)) or "of unknown version"
    new_enough = "--disable-userns" in bwrap.options  # asked so because some builds do not tell their version
    fix = "" if new_enough else "install bubblewrap 0.8 or later"
    checks = [Check(name="bubblewrap", ok=new_enough, detail=f"{bwrap.path} {version}", fix=fix)]
    try:
        result = backend.run(Spec(argv=["/bin/true"], limits=Limits(wall_s=20, grace_s=0)))
        fine, detail = result.returncode == 0, f"a sandbox starts and ends in {result.wall_s * 1000:.0f} ms"
    except (InfrastructureError, ConfigurationError) as error:
        fine, detail = False, str(error)
    return [*checks, Check(name="user namespaces", ok=fine, detail=detail, fix="" if fine else userns_fix())]


def userns_fix() -> str:
    """The setting of this kernel that forbids user namespaces, as the command that allows them."""
    settings = {
        "kernel/apparmor_restrict_unprivileged_userns": (
            "1",
            "sysctl -w kernel.apparmor_restrict_unprivileged_userns=0",
        ),
        "kernel/unprivileged_userns_clone": ("0", "sysctl -w kernel.unprivileged_userns_clone=1"),
        "user/max_user_namespaces": ("0", "sysctl -w user.max_user_namespaces=15000"),
    }
    for name, (bad, fix) in settings.items():
        path = Path("/proc/sys", name)
        if path.exists() and path.read_text().strip() == bad:
            return f"{fix} (as root; to keep it, in /etc/sysctl.d)"
    if os.geteuid() == 0:
        return "in a container, start it with --privileged, or run the harness on the host"
    return "allow user namespaces for this user; in a container, start it with --security-opt seccomp=unconfined"


def python_check(backend: Backend) -> Check:
    """Agents are told to start `python`, which an interpreter of Debian's does not have beside it."""
    runtime = backend.runtime()
    bound = Path(runtime.executable)  # an image that brings its Python has both names
    fine = runtime.executable != sys.executable or bound.with_name("python").exists()
    return Check(
        name="python",
        ok=fine,
        detail=runtime.executable
        if fine
        else f"there is no `python`, which agents are told to start, in {bound.parent}",
        fix="" if fine else "run ptb from a virtual environment",
    )


def machine_checks(backend: Backend) -> list[Check]:
    """What the machine offers beyond the necessary. Starts nothing but nvidia-smi where it exists."""
    has = backend.capabilities()
    groups = has.memory_limit.startswith("cgroup")
    own = backend.name == "bubblewrap"
    cgroup_fix = "use control groups of version 2 with systemd, or run the engine as root"
    if own or backend.name == "apptainer":  # they join groups that we make
        cgroup_fix = "start the harness with: systemd-run --user --scope -p Delegate=yes ptb ..."
    free = shutil.disk_usage(tempfile.gettempdir()).free
    memory = _memory_available()
    return [
        python_check(backend),
        Check(
            name="memory limit",
            ok=groups,
            required=False,
            detail=has.memory_limit if groups else f"{has.memory_limit}: looks twice a second, no hard limit",
            fix="" if groups else cgroup_fix,
        ),
        Check(name="process limit", ok=True, required=False, detail=has.process_limit),
        Check(name="disk limit", ok=True, required=False, detail=f"{has.disk_limit}: looks about once a second"),
        Check(
            name="caches",
            ok=has.caches == "overlay" or not own,
            required=False,
            detail=has.caches,
            fix=""
            if not own or has.caches == "overlay"
            else "install bubblewrap 0.11 or later, else each run copies its caches",
        ),
        Check(
            name="disk space",
            ok=free > 5 * _GIB,
            required=False,
            detail=f"{free / _GIB:.1f} GiB free in {tempfile.gettempdir()}",
            fix="" if free > 5 * _GIB else "make room or set TMPDIR",
        ),
        Check(
            name="memory",
            ok=memory > 4 * _GIB,
            required=False,
            detail=f"{memory / _GIB:.1f} GiB available",
            fix="" if memory > 4 * _GIB else "close other programs",
        ),
        _gpu_check(),
    ]


def _memory_available() -> int:
    for line in Path("/proc/meminfo").read_text().splitlines():
        if line.startswith("MemAvailable:"):
            return int(line.split()[1]) * 1024
    return 0


def _gpu_check() -> Check:
    program = shutil.which("nvidia-smi")
    if program is None and not gpu_indices():
        return Check(name="gpu", ok=False, required=False, detail="none found; only the tiny model can be trained")
    listed = ""
    if program is not None:
        try:
            answer = subprocess.run([program, "-L"], capture_output=True, text=True, timeout=20, check=False)
            listed = "; ".join(line.split(" (UUID")[0] for line in answer.stdout.splitlines() if line.startswith("GPU"))
        except (OSError, subprocess.SubprocessError):
            pass
    fine = bool(listed and gpu_indices())
    return Check(
        name="gpu",
        ok=fine,
        required=False,
        detail=listed or f"device nodes {gpu_indices()}, nvidia-smi lists nothing",
        fix="" if fine else "install the NVIDIA driver and see that nvidia-smi -L lists the GPU",
    )

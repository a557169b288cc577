"""From a `Spec` to the arguments of bwrap. Nothing here touches the machine but to look whether a path exists."""

from __future__ import annotations

import fcntl
import functools
import os
import re
import subprocess
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

from posttrainbench.errors import InfrastructureError
from posttrainbench.sandbox import environment
from posttrainbench.sandbox.gpu import gpu_arguments
from posttrainbench.sandbox.launcher import GATE
from posttrainbench.sandbox.seccomp import build_filter
from posttrainbench.sandbox.spec import Spec

TMPFS = ("/tmp", "/home", "/run", "/dev/shm")
# Tells the harness that everything is set up and waits for its word; if the harness is gone there is none, and the
# command never starts. bwrap's own --block-fd would take the end of file for a yes.
_GATE_SCRIPT = f'echo >&{GATE} && read -r go <&{GATE} && exec "$@" {GATE}>&-'


@dataclass(frozen=True)
class Bwrap:
    """The bubblewrap program of this machine."""

    path: str
    version: tuple[int, ...]
    options: frozenset[str]

    @property
    def overlays(self) -> bool:
        """Has it --overlay (from 0.11 on)?"""
        return "--overlay" in self.options


def find_bwrap(name: str = "bwrap") -> Bwrap:
    """Look for bubblewrap on the PATH.

    Raises:
        InfrastructureError: it is not there or does not run.
    """
    for folder in os.get_exec_path():
        path = os.path.join(folder, name)  # noqa: PTH118 - a name with a slash replaces the folder
        if os.path.isfile(path) and os.access(path, os.X_OK):  # noqa: PTH113
            return _inspect(os.path.abspath(path))  # noqa: PTH100
    raise InfrastructureError("bubblewrap (bwrap) is not installed: apt-get install bubblewrap")


@functools.cache
def _inspect(path: str) -> Bwrap:
    try:
        answers = [
            subprocess.run([path, option], capture_output=True, text=True, env={}, timeout=20, check=True).stdout
            for option in ("--version", "--help")
        ]
    except (OSError, subprocess.SubprocessError) as error:
        raise InfrastructureError(f"{path} does not run ({error}): apt-get install --reinstall bubblewrap") from error
    numbers = re.findall(r"\d+", answers[0])
    return Bwrap(path, tuple(map(int, numbers)), frozenset(re.findall(r"--[a-z0-9-]+", answers[1])))


def memory_file(content: bytes, uid: int | None = None) -> int:
    """An anonymous file with `content`, at its start, on a descriptor above those a shell can name."""
    low = os.memfd_create("ptb")
    try:
        view = memoryview(content)
        while view:
            view = view[os.write(low, view) :]
        os.lseek(low, 0, os.SEEK_SET)
        if uid is not None:
            os.fchown(low, uid, uid)  # else /dev/stdin could not be opened
        return high(low)
    finally:
        os.close(low)


def high(descriptor: int) -> int:
    """A copy of a descriptor with a number above `GATE`, so that the launcher can use that one."""
    return fcntl.fcntl(descriptor, fcntl.F_DUPFD_CLOEXEC, GATE + 1)


def bwrap_arguments(
    spec: Spec,
    bwrap: Bwrap,
    *,
    sources: Mapping[str, str],
    layers: Mapping[str, Mapping[str, str]],
    attach: Callable[[bytes], int],
    info: int,
) -> list[str]:
    """All options, in the order in which bwrap carries them out.

    Args:
        spec: what to run.
        bwrap: the program, which decides about optional options.
        sources: inside path -> path that bwrap binds from (staged or the host's own), of all of ro, rw and caches.
        layers: inside path -> overlay that bwrap itself makes (`lowerdir`, `upperdir`, `workdir`).
        attach: makes a descriptor with the given content that bwrap inherits.
        info: descriptor to which bwrap writes the pid of the sandbox's init.
    """
    inside = str(environment.INSIDE_UID)
    arguments = ["--unshare-all", "--unshare-user", "--die-with-parent", "--new-session", "--hostname", "sandbox"]
    arguments += ["--uid", inside, "--gid", inside, "--clearenv"]
    if "--disable-userns" in bwrap.options:
        arguments.append("--disable-userns")
    for name, value in {**environment.DEFAULT_ENVIRONMENT, **spec.env}.items():
        arguments += ["--setenv", name, value]
    arguments += ["--perms", "0755", "--dir", "/etc", *environment.system_arguments()]
    for path, text in environment.etc_files().items():
        arguments += ["--perms", "0644", "--file", str(attach(text.encode())), path]
    arguments += ["--proc", "/proc", "--dev", "/dev", "--tmpfs", "/run", "--tmpfs", "/home"]
    arguments += ["--perms", "0700", "--dir", environment.HOME, "--perms", "1777", "--tmpfs", "/tmp"]
    # a bind below it (an environment that was made there) needs a directory; bwrap makes none behind a link
    if not any(path.startswith("/var/tmp/") for path in (*sources, *layers)):
        arguments += ["--symlink", "/tmp", "/var/tmp"]
    arguments += gpu_arguments(spec.gpus)
    arguments += _binds(spec, sources, layers)
    arguments += _hidden(spec, attach)
    # Last, when all mount points exist: bwrap's root is a tmpfs that the command could fill.
    arguments += ["--remount-ro", "/", "--chdir", spec.cwd]
    return [*arguments, "--seccomp", str(attach(build_filter())), "--info-fd", str(info)]


def _binds(spec: Spec, sources: Mapping[str, str], layers: Mapping[str, Mapping[str, str]]) -> list[str]:
    """Binds from the outside in, so that a bind within another one is on top of it."""
    arguments: list[str] = []
    for path in sorted(sources.keys() | layers.keys(), key=lambda p: (p.count("/"), p)):
        if path in layers:
            layer = layers[path]
            arguments += ["--overlay-src", layer["lowerdir"]]
            arguments += ["--overlay", layer["upperdir"], layer["workdir"], path]
        else:
            arguments += ["--ro-bind" if path in spec.ro else "--bind", sources[path], path]
    return arguments


def _hidden(spec: Spec, attach: Callable[[bytes], int]) -> list[str]:
    """Cover directories by an empty read-only one and files by an empty one; what is not there needs no cover."""
    arguments: list[str] = []
    for path in spec.hide:
        host = host_path(spec, path)
        if host is not None and host.is_file():
            arguments += ["--ro-bind-data", str(attach(b"")), path]
        elif host is None or host.is_dir():
            arguments += ["--tmpfs", path, "--remount-ro", path]
    return arguments


def host_path(spec: Spec, inside: str) -> Path | None:
    """What an inside path is on the host, by the deepest bind that holds it; `None` if it is in none."""
    binds = {**spec.ro, **spec.rw, **spec.caches}
    for parent in (Path(inside), *Path(inside).parents):
        if str(parent) in binds:
            return binds[str(parent)] / Path(inside).relative_to(parent)
    return Path(inside) if Path(inside).is_relative_to("/usr") else None


def gated(spec: Spec) -> list[str]:
    """The command behind its gate."""
    # dash drops variables whose names a shell could not use, such as npm's.
    odd = [f"{name}={value}" for name, value in spec.env.items() if not re.fullmatch(r"[A-Za-z_]\w*", name, re.ASCII)]
    return ["/bin/sh", "-c", _GATE_SCRIPT, "sh", *(["/usr/bin/env", *odd] if odd else []), *spec.argv]

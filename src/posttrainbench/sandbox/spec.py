"""The common interface of all sandbox back ends: what to run, within which limits, and what came of it."""

from __future__ import annotations

import socket
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal, Protocol

PACKAGE = Path(__file__).parent.parent
Reason = Literal["exit", "deadline", "memory", "disk", "cancelled"]


@dataclass(frozen=True, kw_only=True)
class Limits:
    """What a sandboxed process tree may use. `None` means no limit of ours.

    Attributes:
        wall_s: seconds until the deadline; then SIGTERM to every process of the tree.
        grace_s: seconds between that SIGTERM and SIGKILL.
        memory_bytes: resident memory of the whole tree.
        processes: number of processes and threads of the whole tree.
        disk_bytes: bytes that all read-write directories together may come to hold.
    """

    wall_s: float = 36_000.0
    grace_s: float = 30.0
    memory_bytes: int | None = None
    processes: int | None = 4096
    disk_bytes: int | None = None


@dataclass(frozen=True, kw_only=True)
class Spec:
    """One command to run confined. Paths on the left are inside the sandbox (absolute), on the right on the host.

    Attributes:
        argv: command; found by absolute path or on the sandbox's PATH.
        cwd: working directory inside.
        env: the complete environment of the command, nothing is inherited (PATH, HOME and LANG have defaults).
        ro: read-only binds; directories or files.
        rw: read-write binds; directories that the back end makes writable for the sandbox's user.
        caches: inside path -> host directory that the command may change for itself while the original stays
            untouched: an overlay where the machine can, else a copy; the changes are gone afterwards.
        hide: inside directories that are covered by an empty one (after all binds).
        gpus: host GPU indices whose device nodes are bound; empty for none.
        stdin: text the command reads on stdin; `None` gives an empty stdin.
        listeners: TCP port on 127.0.0.1 inside -> who gets the listening socket, before the command begins. The receiver
            owns the socket and accepts on it from outside: the sandbox's only way out.
    """

    argv: Sequence[str]
    cwd: str = "/"
    env: Mapping[str, str] = field(default_factory=dict)
    ro: Mapping[str, Path] = field(default_factory=dict)
    rw: Mapping[str, Path] = field(default_factory=dict)
    caches: Mapping[str, Path] = field(default_factory=dict)
    hide: Sequence[str] = ()
    gpus: Sequence[int] = ()
    stdin: str | None = None
    listeners: Mapping[int, Callable[[socket.socket], None]] = field(default_factory=dict)
    limits: Limits = field(default_factory=Limits)


@dataclass(frozen=True, kw_only=True)
class Result:
    """What became of a sandboxed command.

    Attributes:
        returncode: exit status of the command, 128 + N when signal N ended it.
        reason: why it ended. `exit` covers its own exit, crashes included.
        wall_s: seconds from start to end, teardown included.
        teardown_s: seconds from the last order to die until the kernel said that no process is left.
        survivors: processes of the sandbox still alive after that; the contract is 0.
        peak_memory_bytes: highest memory of the tree, where it could be measured.
        peak_disk_bytes: highest seen size of the read-write directories, where it was watched.
        memory_kills: processes killed for memory. As on any machine the largest process goes first and the others live
            on; `reason` is `memory` only when that ended the command.
    """

    returncode: int
    reason: Reason
    wall_s: float
    teardown_s: float
    survivors: int
    peak_memory_bytes: int | None = None
    peak_disk_bytes: int | None = None
    memory_kills: int = 0


@dataclass(frozen=True, kw_only=True)
class Check:
    """One line of `ptb doctor`: a property that was tried on this machine, and how to mend it where it fails."""

    name: str
    ok: bool
    detail: str
    fix: str = ""
    required: bool = True


@dataclass(frozen=True, kw_only=True)
class Capabilities:
    """What a back end can enforce on this machine, as data. Checked before a run starts.

    The means are words such as `cgroup-v2`, `cgroup-v1`, `rlimit`, `watchdog`, `overlay`, `copy`, `none`.
    """

    network_isolation: bool
    gpus: bool
    memory_limit: str
    process_limit: str
    disk_limit: str
    caches: str


@dataclass(frozen=True, kw_only=True)
class Runtime:
    """The Python that has the harness's packages, as it is found inside a sandbox.

    Attributes:
        executable: its path inside.
        ro: binds that it needs, for `Spec.ro`; only the harness's own package where the sandbox's image brings the rest.
        package: directory of the `posttrainbench` package inside.
    """

    executable: str
    ro: Mapping[str, Path] = field(default_factory=dict)
    package: str = str(PACKAGE)

    def inside(self, path: Path) -> str:
        """Where a file of the package is found inside.

        Args:
            path: on the host, below the package's directory.

        Raises:
            ValueError: it is none of the package's.
        """
        return str(Path(self.package) / path.relative_to(PACKAGE))

    @property
    def path(self) -> str:
        """PATH inside, with this Python first."""
        return f"{Path(self.executable).parent}:/usr/local/bin:/usr/bin:/bin"


class Backend(Protocol):
    """A way to confine a command. Every back end keeps the contract of docs/security.md."""

    name: str

    def runtime(self) -> Runtime:
        """The Python that the harness's own programs run with inside."""
        ...

    def capabilities(self) -> Capabilities:
        """What this back end can enforce here."""
        ...

    def preflight(self) -> list[Check]:
        """Is everything there that the back end needs (binary, user namespaces)? Starts at most one trivial sandbox."""
        ...

    def run(
        self,
        spec: Spec,
        *,
        on_output: Callable[[bytes], None] | None = None,
        cancelled: Callable[[], bool] | None = None,
    ) -> Result:
        """Run the command and return when, provably, none of its processes is left.

        Blocks; the sandbox dies with the thread that calls this, because that is how the kernel ties children to parents.

        Args:
            spec: what to run.
            on_output: gets the raw bytes of stdout and stderr, merged, as they come; called from this same thread.
            cancelled: polled a few times a second; when true the tree gets SIGTERM, its grace and SIGKILL.

        Raises:
            InfrastructureError: the sandbox could not be set up. The command did not run.
        """
        ...

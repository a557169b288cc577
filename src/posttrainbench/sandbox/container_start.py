"""Start a container up to its gate and hold it: the harness's end of the connection to `container_inside.py`.

The engine's own ways in and out (attach, exec, kill, its logs) are not used. The command's standard files go through the
connection, as descriptors; the first process is known by a handle on it that the kernel gives with the connection, so that
its death is the proof that nothing is left, whichever engine, daemon or user namespace is in between.
"""

from __future__ import annotations

import contextlib
import json
import os
import select
import signal
import socket
import struct
import subprocess
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO, Any

from posttrainbench.errors import InfrastructureError
from posttrainbench.sandbox import command, environment, processes
from posttrainbench.sandbox.container_files import User
from posttrainbench.sandbox.limits import EngineGroup
from posttrainbench.sandbox.output import output_channel
from posttrainbench.sandbox.seccomp import build_filter
from posttrainbench.sandbox.spec import Spec

# An engine needs 0.3 s; the first start of a large image, or one while another image is built, minutes.
_SETUP_S = 600.0
# Until then nobody is asked whether it is still wanted: usual starts are over, and the way out is not in other hands before.
_PATIENCE_S = 10.0
_TICK_S = 0.5
# The same for the removal of a dead container; nothing runs in it any more.
_REMOVE_S = 300.0
_KILLED = 128 + signal.SIGKILL
_INSIDE = ("container_inside.py", "forwarder.py")


class Door:
    """The directory that is bound into the container: our programs and the sockets through which it reaches us."""

    def __init__(self, path: Path, ports: Sequence[int], uid: int) -> None:
        """Make it, listening.

        Args:
            path: directory to make; nobody else may be able to reach it on the host.
            ports: one socket for each.
            uid: who connects.
        """
        self.path = path
        path.mkdir()
        path.chmod(0o755)
        for name in _INSIDE:
            file = path / name
            file.write_bytes(Path(__file__).with_name(name).read_bytes())
            file.chmod(0o644)
        directory = os.open(path, os.O_RDONLY | os.O_DIRECTORY)
        try:
            self.control = _listen(directory, "control", uid, socket.SOCK_SEQPACKET)
            self.listeners = {port: _listen(directory, f"p{port}", uid, socket.SOCK_STREAM) for port in ports}
        finally:
            os.close(directory)

    def close(self) -> None:
        """Close what nobody took."""
        for listener in (self.control, *self.listeners.values()):
            listener.close()


def _listen(directory: int, name: str, uid: int, kind: socket.SocketKind) -> socket.socket:
    listener = socket.socket(socket.AF_UNIX, kind)
    listener.bind(f"/proc/self/fd/{directory}/{name}")  # the path itself may be longer than a socket's may be
    os.chmod(name, 0o600, dir_fd=directory)
    if os.geteuid() == 0:
        os.chown(name, uid, uid, dir_fd=directory)
    listener.listen(512)
    return listener


@dataclass(frozen=True, kw_only=True)
class Order:
    """How an engine is asked for a container.

    Attributes:
        argv: its command line.
        env: its complete environment.
        remove: makes the engine forget the container, whatever state it is in; raises nothing.
        processes: RLIMIT_NPROC inside, where the engine does not count processes.
        user: whose the container is.
    """

    argv: Sequence[str]
    env: Mapping[str, str]
    remove: Callable[[], None]
    processes: int | None
    user: User


@dataclass
class ContainerSandbox:
    """A started container; implements `supervision.Started`."""

    process: subprocess.Popen[bytes]
    control: socket.socket
    output: int
    init: int
    pidfd: int
    namespace: str
    counters: EngineGroup
    remove: Callable[[], None]
    _status: int | None = field(default=None, init=False)

    @property
    def end(self) -> int:
        """The connection: it carries the status, and ends with the container."""
        return self.control.fileno()

    @property
    def returncode(self) -> int:
        """What the first process reported, or that of a kill."""
        return _KILLED if self._status is None else self._status

    def open_gate(self) -> None:
        """Let the command begin."""
        self._say(b"go")

    def terminate(self) -> None:
        """The first process sends SIGTERM to all others: it may, whatever user namespace is in between."""
        self._say(b"term")

    def _say(self, word: bytes) -> None:
        with contextlib.suppress(OSError):  # it may have died already; the supervision sees that
            self.control.send(word)

    def kill(self) -> None:
        """Kill every process of the container and wait until none is left. Safe to repeat."""
        with contextlib.suppress(OSError):
            while word := self.control.recv(4096, socket.MSG_DONTWAIT):
                if word.startswith(b"exit "):
                    self._status = int(word[5:])
        self.counters.sample()
        with contextlib.suppress(ProcessLookupError):
            try:
                signal.pidfd_send_signal(self.pidfd, signal.SIGKILL)
            except PermissionError:
                self.remove()
        if not processes.ended(self.pidfd, 60):
            self.remove()
            processes.ended(self.pidfd, 60)

    def close(self) -> None:
        """Kill, wait until the engine has forgotten the container, and close all descriptors."""
        self.kill()
        try:
            self.process.wait(_REMOVE_S)
        except subprocess.TimeoutExpired:
            _kill_engine(self.process)
            self.remove()
        self.control.close()
        os.close(self.output)
        os.close(self.pidfd)


class Unwanted(Exception):
    """The container was cancelled before it was there."""


def start(spec: Spec, order: Order, door: Door, cancelled: Callable[[], bool] | None = None) -> ContainerSandbox:
    """Start a container whose command waits at the gate.

    Raises:
        Unwanted: `cancelled` said so while the engine was at work for long; nothing of it is left.
        InfrastructureError: it could not be set up, or is not what was ordered; nothing of it is left.
    """
    with contextlib.ExitStack() as undo, tempfile.TemporaryFile() as said:
        process = subprocess.Popen(
            list(order.argv),
            env=dict(order.env),
            stdin=subprocess.DEVNULL,
            stdout=said,
            stderr=said,
            cwd=door.path.parent,  # conmon leaves a file `oom` where it is started
            start_new_session=True,
        )
        undo.callback(_give_up, process, order.remove)
        control = _connected(process, door.control, said, cancelled)
        undo.callback(control.close)
        door.control.close()
        init = _peer(control, order.user)
        pidfd = os.pidfd_open(init)
        undo.callback(os.close, pidfd)
        undo.callback(_kill, pidfd)
        hello = json.loads(_hear(control, process, said))
        _verify(hello, order.user)
        output, output_writer = output_channel(0 if os.geteuid() == 0 else None)
        undo.callback(os.close, output)
        try:
            for port, receive in spec.listeners.items():
                receive(door.listeners.pop(port))  # theirs from now on
            _hand_over(control, spec, order, output_writer)
        finally:
            os.close(output_writer)
        word = _hear(control, process, said)
        if word != b"ready":
            raise InfrastructureError(
                f"the sandbox could not be set up: {word.decode(errors='replace')}; see ptb doctor"
            )
        undo.pop_all()
    namespace = str(hello["namespaces"]["pid"])
    return ContainerSandbox(process, control, output, init, pidfd, namespace, EngineGroup(init), order.remove)


def _kill(pidfd: int) -> None:
    with contextlib.suppress(OSError):
        signal.pidfd_send_signal(pidfd, signal.SIGKILL)
    processes.ended(pidfd, 60)


def _give_up(process: subprocess.Popen[bytes], remove: Callable[[], None]) -> None:
    """After a start that failed: the engine may be at any point of its work."""
    with contextlib.suppress(subprocess.TimeoutExpired):
        process.wait(2)
    _kill_engine(process)
    remove()


def _kill_engine(process: subprocess.Popen[bytes]) -> None:
    """Kill an engine's program that hangs, with its children: rootless podman does its work in one."""
    if process.poll() is None:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        process.wait()


def _connected(
    process: subprocess.Popen[bytes],
    listener: socket.socket,
    said: IO[bytes],
    cancelled: Callable[[], bool] | None,
) -> socket.socket:
    """Wait for the first process's connection."""
    watch = os.pidfd_open(process.pid)
    began = time.monotonic()
    ready: set[int] = set()
    try:
        poll = select.poll()
        poll.register(listener, select.POLLIN)
        poll.register(watch, select.POLLIN)
        while not ready and (gone := time.monotonic() - began) < _SETUP_S:
            if gone >= _PATIENCE_S and cancelled is not None and cancelled():
                raise Unwanted
            ready = {descriptor for descriptor, _ in poll.poll(int(_TICK_S * 1000))}
    finally:
        os.close(watch)
    if listener.fileno() in ready:
        return listener.accept()[0]
    if not ready:
        program = Path(str(process.args[0])).name  # type: ignore[index]
        raise InfrastructureError(
            f"the sandbox could not be set up: not ready after {_SETUP_S:.0f} s: {program} hangs or its storage is slow "
            f"({_said(said) or 'it says nothing'}); see ptb doctor"
        )
    raise InfrastructureError(
        f"the sandbox could not be set up: {_said(said) or f'status {process.wait()}'}; see ptb doctor"
    )


def _said(file: IO[bytes]) -> str:
    """What the engine printed, as one line."""
    file.seek(0)
    return " ".join(file.read(65536).decode(errors="replace").split())[-800:]


def _peer(control: socket.socket, user: User) -> int:
    """Host pid of the first process, from the kernel.

    Raises:
        InfrastructureError: it is not on this machine's kernel, or not the user it should be.
    """
    packed = control.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, struct.calcsize("3i"))
    pid, uid, _ = struct.unpack("3i", packed)
    if pid == 0:
        raise InfrastructureError(
            "the container's processes cannot be seen from here: the engine must run on this machine, outside of the "
            "container that the harness may be in"
        )
    if uid != user.host or uid == 0:
        raise InfrastructureError(
            f"the container's processes are user {uid} of this machine, not {user.host} as ordered"
        )
    return int(pid)


def _hear(control: socket.socket, process: subprocess.Popen[bytes], said: IO[bytes]) -> bytes:
    control.settimeout(_SETUP_S)
    try:
        word = control.recv(65536)
    except OSError as error:
        word, said_now = b"", f"{error}; {_said(said)}"
    else:
        said_now = _said(said)
    if not word:
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(5)
        raise InfrastructureError(
            f"the sandbox could not be set up: its first process ended: {said_now or _said(said)}; see ptb doctor"
        )
    control.settimeout(None)
    return word


def _verify(hello: Mapping[str, Any], user: User) -> None:
    """See that the container is what was ordered: an engine's configuration files can turn much of it off.

    Raises:
        InfrastructureError: it is not.
    """
    own = {kind: os.readlink(f"/proc/self/ns/{kind}") for kind in hello["namespaces"]}  # noqa: PTH115
    shared = [kind for kind, name in hello["namespaces"].items() if own[kind] == name]
    wrong = ""
    if shared:
        wrong = f"shares the host's {shared[0]} namespace"
    elif hello["pid"] != 1:
        wrong = f"runs our first process as pid {hello['pid']}"
    elif hello["interfaces"] != ["lo"]:
        wrong = f"has network interfaces {', '.join(hello['interfaces'])}"
    elif hello["capabilities"]:
        wrong = f"has capabilities {hello['capabilities']:x}"
    elif hello["uid"] != user.inside:
        wrong = f"runs as user {hello['uid']}, not {user.inside}"
    if wrong:
        raise InfrastructureError(f"the container {wrong}: look into the engine's own configuration files")


def _hand_over(control: socket.socket, spec: Spec, order: Order, output: int) -> None:
    """Send the plan and the command's standard files. Nothing of it is in any command line or environment."""
    plan = {
        "argv": list(spec.argv),
        "env": {**environment.DEFAULT_ENVIRONMENT, **spec.env},
        "cwd": spec.cwd,
        "home": environment.HOME,
        "ports": sorted(spec.listeners),
        "processes": order.processes,
        "seccomp": build_filter(namespaces=False).hex(),
    }
    owner = order.user.host if os.geteuid() == 0 else None
    files = [command.memory_file(json.dumps(plan).encode(), owner)]
    try:
        files.append(command.memory_file((spec.stdin or "").encode(), owner))
        socket.send_fds(control, [b"plan"], [*files, output])
    finally:
        for descriptor in files:
            os.close(descriptor)

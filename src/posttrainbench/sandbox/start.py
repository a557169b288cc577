"""Start a sandbox up to its gate: everything is set up, the command waits for the word to begin."""

from __future__ import annotations

import contextlib
import json
import os
import select
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass, field

from posttrainbench.errors import InfrastructureError
from posttrainbench.sandbox import command, launcher, processes, staging
from posttrainbench.sandbox.listener import listen_inside
from posttrainbench.sandbox.output import output_channel
from posttrainbench.sandbox.spec import Spec

_SETUP_S = 60.0
# What bwrap says when the kernel or AppArmor forbids user namespaces, in lower case.
_USERNS_HINTS = ("no permissions to creat", "creating new namespace", "setting up uid map", "failed rtm_newaddr")


class OverlayFailed(Exception):
    """The kernel refused an overlay (kind of file system, nesting); a copy will do."""


@dataclass(frozen=True, kw_only=True)
class Plan:
    """What the launcher needs to know beyond the spec.

    Attributes:
        binds: inside path -> host path, of ro, rw and copied caches.
        layers: inside path -> overlay directories, made by the launcher as root, else by bwrap.
        cgroups: cgroup.procs files to join.
        processes: RLIMIT_NPROC or `None`.
        uid: user to become; `None` when the harness is no root.
    """

    binds: dict[str, str]
    layers: dict[str, dict[str, str]] = field(default_factory=dict)
    cgroups: Sequence[str] = ()
    processes: int | None = None
    uid: int | None = None


@dataclass(frozen=True)
class Sandbox:
    """A started sandbox. `namespace` is its pid namespace, `init` and `pidfd` the first process in it.

    `end` becomes readable when the command has ended, `output` carries what it prints.
    """

    process: subprocess.Popen[bytes]
    gate: socket.socket
    output: int
    init: int
    pidfd: int
    namespace: str
    end: int

    @property
    def returncode(self) -> int:
        """Status of the command as `Result` wants it; known after `kill`."""
        status = self.process.returncode
        return 128 - status if status < 0 else status

    def open_gate(self) -> None:
        """Let the command begin."""
        with contextlib.suppress(OSError):  # it may have died already; the supervision sees that
            self.gate.sendall(b"go\n")
        self.gate.close()

    def terminate(self) -> None:
        """SIGTERM to every process but the first: bwrap passes no signal on, so each is told by its host pid."""
        processes.send(self.namespace, signal.SIGTERM, spare=self.init)

    def kill(self) -> None:
        """Kill every process of the sandbox and wait until none is left. Safe to repeat."""
        with contextlib.suppress(OSError):
            signal.pidfd_send_signal(self.pidfd, signal.SIGKILL)
        processes.ended(self.pidfd, 60)
        with contextlib.suppress(subprocess.TimeoutExpired):
            self.process.wait(5)
        if self.process.returncode is None:
            self.process.kill()
            self.process.wait()

    def close(self) -> None:
        """Kill, and close all descriptors."""
        self.kill()
        self.gate.close()
        os.close(self.output)
        os.close(self.pidfd)
        os.close(self.end)


class _Descriptors:
    """Descriptors that the launcher inherits; ours are closed once it has started."""

    def __init__(self, uid: int | None) -> None:
        self.kept: list[int] = []
        self._uid = uid

    def keep(self, descriptor: int) -> int:
        """Move a descriptor above the gate's number."""
        moved = command.high(descriptor)
        os.close(descriptor)
        self.kept.append(moved)
        return moved

    def attach(self, content: bytes) -> int:
        """An anonymous file."""
        self.kept.append(command.memory_file(content, self._uid))
        return self.kept[-1]

    def close(self) -> None:
        for descriptor in self.kept:
            os.close(descriptor)


def start(spec: Spec, plan: Plan) -> Sandbox:
    """Start a sandbox whose command waits at the gate.

    Raises:
        InfrastructureError: it could not be set up; nothing of it is left.
        OverlayFailed: the launcher could not mount an overlay; nothing of it is left.
    """
    inherited = _Descriptors(plan.uid)
    with contextlib.ExitStack() as undo:
        undo.callback(inherited.close)
        info_reader, info_writer = os.pipe()
        undo.callback(os.close, info_reader)
        gate, gate_inside = socket.socketpair()
        output, output_writer = output_channel(plan.uid)
        undo.callback(os.close, output_writer)
        on_failure = undo.enter_context(contextlib.ExitStack())
        on_failure.callback(gate.close)
        on_failure.callback(os.close, output)
        info_copy = inherited.keep(info_writer)
        gate_copy = inherited.keep(gate_inside.detach())
        launch = _launch_plan(spec, plan, inherited, info_copy, gate_copy)
        plan_copy = inherited.attach(json.dumps(launch).encode())
        stdin = inherited.attach((spec.stdin or "").encode())
        process = subprocess.Popen(
            [sys.executable, "-I", "-S", launcher.__file__, str(plan_copy)],
            env={},  # whatever bwrap starts with can be read in the sandbox, in spite of --clearenv
            stdin=stdin,
            stdout=output_writer,
            stderr=output_writer,
            pass_fds=[descriptor for descriptor in inherited.kept if descriptor != stdin],
            start_new_session=True,
        )
        try:
            _await_gate(process, gate, output)
            init = int(json.loads(os.read(info_reader, 65536))["child-pid"])
            pidfd = os.pidfd_open(init)
            namespace = processes.namespace_of(init)
            for port, receive in spec.listeners.items():
                receive(listen_inside(init, port))
        except BaseException:
            process.kill()  # the rest dies with it
            process.wait()
            raise
        on_failure.pop_all()
        return Sandbox(process, gate, output, init, pidfd, namespace, os.pidfd_open(process.pid))


def _launch_plan(spec: Spec, plan: Plan, inherited: _Descriptors, info: int, gate: int) -> dict[str, object]:
    """The launcher's plan; see its `main`."""
    bwrap = command.find_bwrap()
    program, sources, layers = bwrap.path, dict(plan.binds), plan.layers
    stage, binds, overlays = None, [], []
    if plan.uid is not None:
        stage = staging.stage_directory()
        binds = [*plan.binds.values(), bwrap.path]
        overlays = list(layers.values())
        program = f"{stage}/{len(binds) - 1}"  # staged too: it may lie under /root as well
        sources = {path: f"{stage}/{index}" for index, path in enumerate(plan.binds)}
        sources |= {path: f"{stage}/o{index}" for index, path in enumerate(layers)}
        layers = {}
    arguments = command.bwrap_arguments(spec, bwrap, sources=sources, layers=layers, attach=inherited.attach, info=info)
    # By descriptor: everybody in the sandbox may read /proc/1/cmdline, and host paths tell much.
    listed = inherited.attach(b"".join(os.fsencode(argument) + b"\0" for argument in arguments))
    return {
        "parent": os.getpid(),
        "command": [program, "--args", str(listed), "--", *command.gated(spec)],
        "gate": gate,
        "cgroups": list(plan.cgroups),
        "processes": plan.processes,
        "uid": plan.uid,
        "stage": stage,
        "binds": binds,
        "overlays": overlays,
    }


def _await_gate(process: subprocess.Popen[bytes], gate: socket.socket, output: int) -> None:
    """Wait until the shell inside reports that all is set up.

    Raises:
        InfrastructureError: it never did; carries what bwrap or the launcher said.
        OverlayFailed: as the launcher's exit status says.
    """
    end = time.monotonic() + _SETUP_S
    gate.settimeout(0)
    watch = os.pidfd_open(process.pid)
    try:
        poll = select.poll()
        poll.register(gate, select.POLLIN)
        poll.register(watch, select.POLLIN)
        while (left := end - time.monotonic()) > 0:
            ready = {descriptor for descriptor, _ in poll.poll(int(left * 1000) + 1)}
            if gate.fileno() in ready and gate.recv(16):
                return
            if watch in ready:
                break
    finally:
        os.close(watch)
    timed_out = process.poll() is None
    if timed_out:
        process.kill()
    status = process.wait()
    if status == launcher.OVERLAY_FAILED:
        raise OverlayFailed
    said = b""
    with contextlib.suppress(OSError):
        said = os.read(output, 65536)
    text = " ".join(said.decode(errors="replace").split()) or f"exit status {status}"
    if timed_out:
        text = f"not ready after {_SETUP_S:.0f} s; {text}"
    if any(hint in text.lower() for hint in _USERNS_HINTS):
        from posttrainbench.sandbox.machine import userns_fix  # here: it is needed only now

        raise InfrastructureError(f"no user namespaces for the sandbox ({text}): {userns_fix()}")
    raise InfrastructureError(f"the sandbox could not be set up: {text}; see ptb doctor")

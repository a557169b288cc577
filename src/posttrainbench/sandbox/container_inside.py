"""Pid 1 of a container sandbox: starts the command at the harness's word, and ends when the harness does.

Runs inside, as `python -I -S DOOR/container_inside.py`, before anything untrusted and as the same user, so it makes itself
untouchable first: not dumpable (nobody inside may trace it, read its memory or its environment), and the kernel keeps every
signal from a namespace's first process that it has not asked for. It holds one connection to the harness, DOOR/control:

    it says   hello (JSON: what it sees of its own confinement), ready or "failed WHY", "exit N"
    it hears  a plan (a descriptor with JSON) with the command's stdin and output, "go", "term"

End of file means that the harness is dead: it exits, and the kernel kills every process of the container with it. A command
that has ended leaves it waiting for that, so that the harness can read the container's counters before they vanish.
"""

# ruff: noqa: PTH103, PTH120, PTH123
# pathlib would be most of the time that this program takes to start.

import contextlib
import ctypes
import json
import os
import resource
import select
import signal
import socket
import sys
import time

# When memory is short, the command is to be killed rather than the harness (0) or this process (an engine's 500).
_OOM_SCORE = 600
_PR_SET_DUMPABLE, _PR_SET_SECCOMP, _PR_SET_NO_NEW_PRIVS = 4, 22, 38
_SECCOMP_MODE_FILTER = 2
_BACKLOG = 512
_NOT_FOUND, _NOT_EXECUTABLE = 127, 126
# a forwarder that somebody keeps killing is not started more often than this
_RESTART_S = 0.2

_libc = ctypes.CDLL(None, use_errno=True)


class _Program(ctypes.Structure):
    """struct sock_fprog of linux/filter.h."""

    _fields_ = (("length", ctypes.c_ushort), ("filter", ctypes.c_char_p))


def _prctl(option: int, *arguments: object) -> None:
    if _libc.prctl(option, *arguments, *[ctypes.c_ulong(0)] * (4 - len(arguments))) != 0:
        number = ctypes.get_errno()
        raise OSError(number, f"prctl({option}): {os.strerror(number)}")


def _hello() -> bytes:
    """What the harness checks before it hands anything over."""
    with open("/proc/self/status") as file:
        status = dict(line.rstrip("\n").split(":", 1) for line in file)
    seen = {
        "pid": os.getpid(),
        "uid": os.getuid(),
        "namespaces": {kind: os.readlink(f"/proc/self/ns/{kind}") for kind in ("pid", "net", "ipc", "mnt")},  # noqa: PTH115
        "interfaces": [name for _, name in socket.if_nameindex()],
        "capabilities": int(status["CapPrm"], 16) | int(status["CapEff"], 16),
        "python": list(sys.version_info[:2]),
    }
    return json.dumps(seen).encode()


def _confine(plan: dict[str, object]) -> None:
    """The system call filter and the limits, for this process and all that come of it."""
    processes = plan["processes"]
    if isinstance(processes, int):
        hard = resource.getrlimit(resource.RLIMIT_NPROC)[1]
        wanted = processes if hard == resource.RLIM_INFINITY else min(processes, hard)
        resource.setrlimit(resource.RLIMIT_NPROC, (wanted, wanted))
    code = bytes.fromhex(str(plan["seccomp"]))
    program = _Program(len(code) // 8, code)
    _prctl(_PR_SET_SECCOMP, ctypes.c_ulong(_SECCOMP_MODE_FILTER), ctypes.byref(program))


def _listen(port: int) -> socket.socket:
    listener = socket.socket()
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    listener.bind(("127.0.0.1", port))
    listener.listen(_BACKLOG)
    return listener


class _Init:
    """The process from its plan to its end."""

    def __init__(self, control: socket.socket, plan: dict[str, object], stdin: int, output: int) -> None:
        self._control, self._plan, self._stdin, self._output = control, plan, stdin, output
        self._door = os.path.dirname(os.path.abspath(__file__))  # noqa: PTH100
        self._listeners: dict[str, socket.socket] = {}
        self._forwarder = self._command = 0
        self._restart_at = 0.0

    def prepare(self) -> None:
        """All that can fail before the command begins."""
        os.umask(0o022)
        home, directory = str(self._plan["home"]), str(self._plan["cwd"])
        with contextlib.suppress(OSError):  # there already, or the image's matter
            os.makedirs(home, 0o700, exist_ok=True)
        os.chdir(directory)
        ports = self._plan["ports"]
        assert isinstance(ports, list)
        self._listeners = {f"{self._door}/p{port}": _listen(port) for port in ports}
        self._start_forwarder()

    def _fork(self) -> int:
        """Fork; the child has default signals. Python's own handlers must not be there when it becomes another program."""
        pid = os.fork()
        if pid == 0:
            signal.set_wakeup_fd(-1)
            for number in (signal.SIGCHLD, signal.SIGPIPE, signal.SIGXFSZ):
                signal.signal(number, signal.SIG_DFL)
        return pid

    def _start_forwarder(self) -> None:
        """The listeners stay here: a dead forwarder delays connections, and nobody inside can take its ports."""
        if not self._listeners:
            return
        self._restart_at = time.monotonic() + _RESTART_S  # in case there is no room for a process now
        self._forwarder = self._fork()
        self._restart_at = 0.0
        if self._forwarder:
            return
        try:
            signal.signal(signal.SIGTERM, signal.SIG_IGN)  # at the deadline programs may still want to save their work
            self._control.close()
            if not self._command:
                self._close_standard_files()
            sys.path.insert(0, self._door)
            import forwarder  # type: ignore[import-not-found]  # the file beside this one

            forwarder.serve({listener: target for target, listener in self._listeners.items()})
        finally:
            os._exit(1)

    def start_command(self) -> None:
        """Become the command in a child, with nothing of ours but its three standard files."""
        self._command = self._fork()
        if self._command == 0:
            status = _NOT_EXECUTABLE
            try:
                _prctl(_PR_SET_DUMPABLE, ctypes.c_ulong(1))  # else the next file is root's
                with contextlib.suppress(OSError), open("/proc/self/oom_score_adj", "w") as file:
                    file.write(str(_OOM_SCORE))
                os.setsid()
                os.dup2(self._stdin, 0)
                os.dup2(self._output, 1)
                os.dup2(self._output, 2)
                os.closerange(3, 4096)  # Python opens everything close-on-exec anyway
                environment, argv = self._plan["env"], self._plan["argv"]
                assert isinstance(environment, dict) and isinstance(argv, list)
                os.execvpe(argv[0], argv, environment)
            except FileNotFoundError:
                status = _NOT_FOUND
                os.write(2, f"{self._plan['argv'][0]}: not found\n".encode())  # type: ignore[index]
            except OSError as error:
                os.write(2, f"{error}\n".encode())
            finally:
                os._exit(status)
        self._close_standard_files()

    def _close_standard_files(self) -> None:
        os.close(self._stdin)
        os.close(self._output)

    def reap(self) -> None:
        """Take note of the dead; orphans come here as well."""
        while True:
            try:
                pid, status = os.waitpid(-1, os.WNOHANG)
            except ChildProcessError:
                return
            if pid == 0:
                return
            if pid == self._command:
                code = os.waitstatus_to_exitcode(status)
                self._control.send(f"exit {code if code >= 0 else 128 - code}".encode())
            if pid == self._forwarder:
                self._restart_at = time.monotonic() + _RESTART_S

    def stay(self) -> None:
        """Wait for the harness's word or its end. Never returns."""
        wake, wake_writer = os.pipe()
        for descriptor in (wake, wake_writer):
            os.set_blocking(descriptor, False)
        signal.set_wakeup_fd(wake_writer, warn_on_full_buffer=False)
        signal.signal(signal.SIGCHLD, lambda *_: None)
        poll = select.poll()
        poll.register(self._control, select.POLLIN)
        poll.register(wake, select.POLLIN)
        started = False
        while True:
            self.reap()
            timeout = None
            if self._restart_at:
                timeout = self._restart_at - time.monotonic()
                if timeout <= 0:
                    with contextlib.suppress(OSError):
                        self._start_forwarder()
                    continue
            ready = {key for key, _ in poll.poll(None if timeout is None else int(timeout * 1000) + 1)}
            if wake in ready:
                with contextlib.suppress(BlockingIOError):
                    os.read(wake, 4096)
            if self._control.fileno() in ready:
                word = self._control.recv(64)
                if word == b"go" and not started:
                    started = True
                    self.start_command()
                elif word == b"term":
                    with contextlib.suppress(OSError):
                        os.kill(-1, signal.SIGTERM)  # all but this one
                elif not word:
                    os._exit(0)


def main() -> None:
    _prctl(_PR_SET_DUMPABLE, ctypes.c_ulong(0))
    _prctl(_PR_SET_NO_NEW_PRIVS, ctypes.c_ulong(1))
    signal.signal(signal.SIGINT, signal.SIG_DFL)  # else Python's own handler would end us
    for limit in (resource.RLIMIT_CORE, resource.RLIMIT_RTPRIO, resource.RLIMIT_NICE):
        resource.setrlimit(limit, (0, 0))
    control = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    control.connect(os.path.dirname(os.path.abspath(__file__)) + "/control")  # noqa: PTH100
    control.send(_hello())
    data, descriptors, _, _ = socket.recv_fds(control, 64, 3)
    if not data or len(descriptors) != 3:
        os._exit(1)
    for descriptor in descriptors:
        os.set_inheritable(descriptor, False)
    with open(descriptors[0], "rb") as file:
        plan = json.load(file)
    init = _Init(control, plan, descriptors[1], descriptors[2])
    try:
        _confine(plan)
        init.prepare()
    except OSError as error:
        control.send(f"failed {error}".encode()[:4096])
        os._exit(1)
    control.send(b"ready")
    init.stay()


if __name__ == "__main__":
    main()

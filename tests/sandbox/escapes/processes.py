"""Ways by way of processes: process 1, the harness, other users, what /proc tells, signals, priorities, outliving."""

# ruff: noqa: PTH110, PTH115, PTH123, PTH208
# system calls are what is tried here, not paths

from __future__ import annotations

import contextlib
import ctypes
import errno
import os
import resource
import signal
import socket
import struct
import subprocess
import sys
import time

from .common import ORDERS, Escaped, NotHere, add, all_refused, attempt, call, checked, libc

CAPABILITY = "no capabilities"
NAMESPACE = "a process namespace of its own"


def _read(path: str) -> bytes:
    with open(path, "rb") as file:
        return file.read()


@attempt("the harness's environment and arguments in /proc", "an empty environment, arguments by descriptor")
def environments() -> str:
    seen = 0
    for pid in filter(str.isdigit, os.listdir("/proc")):
        for name in ("environ", "cmdline"):
            try:
                text = _read(f"/proc/{pid}/{name}")
            except OSError:
                continue
            seen += 1
            for needle in ORDERS["needles"]:
                if needle.encode() in text:
                    raise Escaped(f"/proc/{pid}/{name} holds {needle}")
    return f"nothing in {seen} files"


@attempt("processes of the host", NAMESPACE)
def other_processes() -> str:
    pids = [int(name) for name in os.listdir("/proc") if name.isdigit()]
    if len(pids) > 20:
        raise Escaped(f"{len(pids)} processes are visible")
    return f"{len(pids)} processes, all of its own"


@attempt("killing the harness by its process id", NAMESPACE)
def kill_harness() -> str:
    return all_refused(lambda: os.kill(ORDERS["pid"], signal.SIGKILL), lambda: call("pidfd_open", ORDERS["pid"], 0))


@attempt("killing or stopping process 1", "it takes no signals from inside")
def kill_init() -> str:
    for number in (signal.SIGKILL, signal.SIGSTOP, signal.SIGTERM):
        os.kill(1, number)
    with open("/proc/1/stat") as file:
        state = file.read().rpartition(")")[2].split()[0]
    if state not in "SR":
        raise Escaped(f"it is in state {state}")
    return f"alive, state {state}"


@attempt("taking over process 1 (ptrace, /proc/1/mem)", "it has no more rights and sees no more")
def take_over_init() -> str:
    status = dict(line.split(":", 1) for line in _read("/proc/1/status").decode().splitlines() if ":" in line)
    if int(status["CapEff"], 16) or int(status["CapPrm"], 16) or status["Seccomp"].strip() != "2":
        raise Escaped("process 1 has capabilities or no filter")
    for kind in os.listdir("/proc/self/ns"):
        if os.readlink(f"/proc/1/ns/{kind}") != os.readlink(f"/proc/self/ns/{kind}"):
            raise Escaped(f"process 1 is in another {kind} namespace")
    return "same namespaces, filter and lack of capabilities"


@attempt("the descriptors of process 1 (gate, plan, pid reports)", "closed before the command begins")
def descriptors_of_init() -> str:
    found = {}
    for name in os.listdir("/proc/1/fd"):
        found[int(name)] = os.readlink(f"/proc/1/fd/{name}")
    odd = {fd: target for fd, target in found.items() if fd > 2 and target != "anon_inode:[eventfd]"}
    if odd:
        raise Escaped(str(odd))
    return f"standard ones and bwrap's counter: {sorted(found)}"


@attempt("writing to bwrap's own program by /proc/1/exe", "it belongs to root, or is in use")
def program_of_init() -> None:
    os.close(os.open("/proc/1/exe", os.O_WRONLY))


@attempt("descriptors left open by the harness", "only 0, 1 and 2 are inherited")
def descriptors() -> str:
    done = subprocess.run(["/bin/ls", "-l", f"/proc/{ORDERS['main']}/fd"], capture_output=True, text=True, check=True)
    kinds = [line.split(" -> ")[1] for line in done.stdout.splitlines() if " -> " in line]
    odd = [kind for kind in kinds if not kind.startswith(("pipe:", "/memfd:", "/home/agent", "/dev/null", "socket:"))]
    if odd:
        raise Escaped(str(odd))
    return f"{len(kinds)} descriptors, pipes and memory"


@attempt(
    "taking back what was printed, out of the trace's pipe",
    "the pipe is the harness's, its name can be opened for writing only",
)
def read_own_output() -> None:
    for number in (1, 2):
        with contextlib.suppress(OSError):
            os.fchmod(number, 0o600)
    os.close(os.open("/proc/self/fd/1", os.O_RDONLY | os.O_NONBLOCK))


@attempt("becoming root", "no capabilities, no_new_privs")
def root() -> str:
    return all_refused(
        lambda: os.setuid(0),
        lambda: os.setresuid(0, 0, 0),
        lambda: os.setgid(0),
        lambda: os.setgroups([0]),
        lambda: os.seteuid(0),
        lambda: call("setns", os.open("/proc/self/ns/user", os.O_RDONLY), 0x10000000),
    )


@attempt("getting capabilities back (capset, ambient, bounding)", CAPABILITY)
def capabilities() -> str:
    header = struct.pack("=Ii", 0x20080522, 0)
    data = struct.pack("=IIIIII", 1 << 21, 1 << 21, 0, 0, 0, 0)
    return all_refused(
        lambda: checked(libc.capset(header, data)),
        lambda: checked(libc.prctl(47, 2, 21, 0, 0)),
        lambda: checked(libc.prctl(24, 21, 0, 0, 0)),
        lambda: checked(libc.prctl(28, 0x2F, 0, 0, 0)),
    )


@attempt("taking off no_new_privs and the filter", "the kernel lets nobody")
def take_off() -> str:
    return all_refused(lambda: checked(libc.prctl(38, 0, 0, 0, 0)), lambda: checked(libc.prctl(22, 0, 0, 0, 0)))


@attempt("new namespaces (unshare)", "user namespaces are used up, others need capabilities")
def unshare() -> str:
    kinds = (0x10000000, 0x20000, 0x40000000, 0x20000000, 0x8000000, 0x4000000, 0x2000000, 0x80, 0x10020000, 0x7E020000)
    return all_refused(*(lambda kind=kind: call("unshare", kind) for kind in kinds))  # type: ignore[misc]


@attempt("a new user namespace by clone3", "user namespaces are used up")
def clone3() -> None:
    pid = call("clone3", ctypes.create_string_buffer(struct.pack("=QQQQQQQQ", 0x10000000, 0, 0, 0, 17, 0, 0, 0)), 64)
    if pid == 0:
        os._exit(0)


@attempt("a sandbox in the sandbox, with more rights inside", "user namespaces are used up")
def nested() -> str:
    seen = []
    for command in (["bwrap", "--unshare-user", "--uid", "0", "--bind", "/", "/", "id"], ["unshare", "-Urm", "id"]):
        try:
            done = subprocess.run(command, capture_output=True, text=True, timeout=15, check=False)
        except FileNotFoundError:
            continue
        if done.returncode == 0:
            raise Escaped(f"{command[0]}: {done.stdout.strip()}")
        seen.append(done.stderr.strip().splitlines()[-1][:80])
    if not seen:
        raise NotHere("there is neither bwrap nor unshare")
    return "; ".join(seen)


add("a better place in the queue (nice, real time, ioprio)", "no capabilities, no such limits", lambda: all_refused(
    lambda: os.nice(-5), lambda: os.sched_setscheduler(0, os.SCHED_FIFO, os.sched_param(10)),
    lambda: os.sched_setscheduler(0, os.SCHED_RR, os.sched_param(1)), lambda: call("ioprio_set", 1, 0, 1 << 13)))  # fmt: skip


@attempt("raising its own limits", CAPABILITY)
def limits() -> str:
    def more(kind: int) -> None:
        most = resource.getrlimit(kind)[1]
        if most == resource.RLIM_INFINITY:
            raise OSError(errno.EPERM, "there is none to raise")
        try:
            resource.setrlimit(kind, (most + 1, most + 1))
        except ValueError:  # so Python says it
            raise OSError(errno.EPERM, "not allowed") from None

    if resource.getrlimit(resource.RLIMIT_CORE) != (0, 0) or resource.getrlimit(resource.RLIMIT_RTPRIO) != (0, 0):
        raise Escaped("core files or real-time priorities are allowed")
    kinds = (resource.RLIMIT_CORE, resource.RLIMIT_RTPRIO, resource.RLIMIT_NOFILE, resource.RLIMIT_NICE)
    return all_refused(*(lambda kind=kind: more(kind) for kind in kinds))  # type: ignore[misc]


@attempt("sparing itself, or pointing at others, when memory is short", "the kernel keeps the lower bound")
def oom_score() -> str:
    with open("/proc/self/oom_score_adj") as file:
        before = int(file.read())
    if before < 500:
        raise Escaped(f"it starts with {before}, as the harness does")

    def lower(value: int) -> None:
        with open("/proc/self/oom_score_adj", "w") as file:
            file.write(str(value))

    return f"starts with {before}; {all_refused(lambda: lower(-1), lambda: lower(-1000))}"


@attempt("another process's memory (process_vm_writev, ptrace) outside", NAMESPACE)
def other_memory() -> str:
    vector = ctypes.create_string_buffer(struct.pack("=QQ", 0x400000, 8))
    return all_refused(
        lambda: call("process_vm_writev", ORDERS["pid"], vector, 1, vector, 1, 0),
        lambda: checked(libc.ptrace(0x4206, ORDERS["pid"], None, None)),
        lambda: os.open(f"/proc/{ORDERS['pid']}/mem", os.O_RDWR),
    )


@attempt("shared memory and message queues of the host", "an IPC namespace of its own")
def ipc() -> str:
    with open("/proc/sysvipc/shm") as file:
        if len(file.readlines()) > 1:
            raise Escaped("segments of the host's")
    identity = libc.shmget(ORDERS["key"], 4096, 0o1666)
    return f"its own segment {identity} only" if identity >= 0 else "none"


@attempt("passing a descriptor out by a socket", "there is nobody outside to take it")
def pass_descriptor() -> str:
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as server:
        server.bind("/home/agent/offer")
        server.listen()
        server.settimeout(0.3)
        try:
            server.accept()
        except TimeoutError:
            return "nobody came"
    raise Escaped("somebody outside connected")


@attempt("living on after the end (double fork, session, deaf to signals)", "the process namespace ends with process 1")
def outlive() -> str:
    if os.fork() == 0:
        os.setsid()
        libc.prctl(1, 0, 0, 0, 0)  # no signal when the parent dies
        if os.fork() == 0:
            for number in set(signal.Signals) - {signal.SIGKILL, signal.SIGSTOP}:
                signal.signal(number, signal.SIG_IGN)
            signal.alarm(0)
            # the host looks for the token among the arguments of all processes
            beat = (
                f"import time\nwhile True:\n open('heartbeat', 'a').write('.'); time.sleep(0.02)  # {ORDERS['token']}"
            )
            os.execv(sys.executable, [sys.executable, "-c", beat])
        os._exit(0)
    os.wait()
    for _ in range(500):
        if os.path.exists("heartbeat"):
            return "left running"
        time.sleep(0.01)
    raise NotHere("it could not be started, so nothing was tried")

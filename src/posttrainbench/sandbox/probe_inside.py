"""The part of the probes that runs inside the sandbox and tries to get out. Standard library only, no imports of ours.

Reads its orders as JSON from stdin (never argv: that would put the canary where it searches) and prints one line of
JSON: name -> [held, detail]. Only loopback and documentation addresses (RFC 5737, RFC 3849) are ever tried.
"""

# ruff: noqa: PTH110, PTH118, PTH123, PTH208
# pathlib would be most of the time that this program takes to start.

import contextlib
import ctypes
import errno
import json
import os
import signal
import socket
import sys
import time
from collections.abc import Callable

_libc = ctypes.CDLL(None, use_errno=True)
_MS_REMOUNT_BIND, _CLONE_NEWUSER, _AF_VSOCK = 0x20 | 0x1000, 0x10000000, 40
Outcome = tuple[bool, str]


def refused(attempt: Callable[[], object], what: str = "") -> Outcome:
    """Held if the attempt fails at once; a time-out means that there is a way and only nobody answers."""
    try:
        attempt()
    except TimeoutError:
        return False, f"{what}timed out instead of being refused"
    except OSError as error:
        return True, error.strerror or str(error)
    return False, f"{what}succeeded"


def connect(family: int, address: tuple[str, int] | str) -> Outcome:
    with socket.socket(family, socket.SOCK_STREAM) as client:
        client.settimeout(1)
        return refused(lambda: client.connect(address), f"connect {address!r} ")


def send_udp(family: int, address: tuple[str, int]) -> Outcome:
    with socket.socket(family, socket.SOCK_DGRAM) as client:
        return refused(lambda: client.sendto(b"?", address), f"send to {address!r} ")


def icmp() -> Outcome:
    def ping(kind: int) -> Outcome:
        try:
            client = socket.socket(socket.AF_INET, kind, socket.IPPROTO_ICMP)
        except OSError as error:
            return True, error.strerror or ""
        with client:
            return refused(lambda: client.sendto(b"\x08\0\xf7\xff\0\0\0\0", ("192.0.2.1", 0)), "ping ")

    outcomes = [ping(socket.SOCK_RAW), ping(socket.SOCK_DGRAM)]
    return all(held for held, _ in outcomes), "; ".join(detail for _, detail in outcomes)


def family_refused(family: int) -> Outcome:
    return refused(lambda: socket.socket(family, socket.SOCK_STREAM).close(), "socket ")


def own_loopback() -> Outcome:
    """Programs inside may talk among themselves, and lo is all there is."""
    names = [name for _, name in socket.if_nameindex()]
    with socket.create_server(("127.0.0.1", 0)) as server, socket.create_connection(server.getsockname(), timeout=2):
        return names == ["lo"], f"interfaces: {', '.join(names)}; own loopback works"


def host_in_proc(needles: list[str]) -> Outcome:
    """Neither the harness's environment nor host paths may show; nor any process but the sandbox's."""
    pids = [name for name in os.listdir("/proc") if name.isdigit()]
    for pid in pids:
        for file in ("environ", "cmdline"):
            try:
                with open(f"/proc/{pid}/{file}", "rb") as handle:
                    content = handle.read()
            except OSError:
                continue
            for needle in needles:
                if needle.encode() in content:
                    return False, f"/proc/{pid}/{file} holds {needle!r}"
    return len(pids) < 10, f"{len(pids)} processes visible"


def write_outside(places: list[str]) -> Outcome:
    for place in places:
        path = os.path.join(place, "ptb-probe")
        held, _ = refused(lambda path=path: os.close(os.open(path, os.O_CREAT | os.O_WRONLY)))  # type: ignore[misc]
        if not held:
            return False, f"could write {path}"
    with contextlib.suppress(OSError), open("/proc/sys/kernel/core_pattern", "r+"):
        return False, "could open a kernel setting for writing"
    return True, f"refused in {', '.join(places)}"


def system_call(result: int) -> Outcome:
    return (True, os.strerror(ctypes.get_errno())) if result != 0 else (False, "succeeded")


def privileges() -> Outcome:
    with open("/proc/self/status") as file:
        status = dict(line.split(":", 1) for line in file)
    values = {name: status[name].strip() for name in ("CapEff", "CapPrm", "NoNewPrivs", "Seccomp")}
    held = int(values["CapEff"], 16) == int(values["CapPrm"], 16) == 0 and values["NoNewPrivs"] == "1"
    return held and values["Seccomp"] == "2" and os.getuid() != 0, f"uid {os.getuid()}, {values}"


def descriptors() -> Outcome:
    """All that is open now is what we were started with: the directory being read is the highest one."""
    found = sorted(map(int, os.listdir("/proc/self/fd")))[:-1]
    return found == [0, 1, 2], f"open: {found}"


def daemon(path: str) -> Outcome:
    """Leave a process behind that tries everything to survive: double fork, own session, deaf to signals."""
    if os.fork() == 0:
        os.setsid()
        if os.fork() == 0:
            for number in set(signal.Signals) - {signal.SIGKILL, signal.SIGSTOP}:
                signal.signal(number, signal.SIG_IGN)
            null = os.open("/dev/null", os.O_RDWR)
            os.dup2(null, 0)  # stdout stays open on purpose: it must not hold up the harness
            while True:
                with open(path, "a") as file:
                    file.write(".")
                time.sleep(0.01)
        os._exit(0)
    os.wait()
    for _ in range(200):
        if os.path.exists(path):
            return True, "left running"
        time.sleep(0.01)
    return False, "could not be started, so nothing was tried"


def process_limit(limit: int, at_most: int) -> Outcome:
    """Fork until refused, `at_most` times; the children wait for the pipe's end."""
    reader, writer = os.pipe()
    children = []
    held = False
    try:
        for _ in range(at_most):
            pid = os.fork()
            if pid == 0:
                os.close(writer)
                os.read(reader, 1)
                os._exit(0)
            children.append(pid)
    except OSError as error:
        held = error.errno == errno.EAGAIN
    os.close(writer)
    for pid in children:
        os.waitpid(pid, 0)
    return held, f"limit {limit}: fork refused after {len(children)}" if held else f"{len(children)} forks allowed"


def memory_limit(limit: int) -> Outcome:
    """Let a child take twice the limit. A watchdog gets three seconds to notice."""
    pid = os.fork()
    if pid == 0:
        taken = bytearray(2 * limit)
        taken[::4096] = b"x" * len(taken[::4096])
        time.sleep(3)
        os._exit(0)
    _, status = os.waitpid(pid, 0)
    held = os.WIFSIGNALED(status) and os.WTERMSIG(status) == signal.SIGKILL
    return held, f"limit {limit >> 20} MiB: the process over it was {'killed' if held else 'left alone'}"


def main() -> None:
    orders = json.load(sys.stdin)
    outcomes: dict[str, Outcome] = {"inherited files": descriptors()}
    outcomes |= {
        "direct TCP v4": connect(socket.AF_INET, ("192.0.2.1", 80)),
        "direct TCP v6": connect(socket.AF_INET6, ("2001:db8::1", 80)),
        "direct UDP": send_udp(socket.AF_INET, ("192.0.2.1", 53)),
        "DNS": refused(lambda: socket.getaddrinfo("example.com", 80), "lookup "),
        "ICMP": icmp(),
        "host loopback": connect(socket.AF_INET, ("127.0.0.1", orders["port"])),
        "host abstract socket": connect(socket.AF_UNIX, "\0" + orders["abstract"]),
        "AF_VSOCK": family_refused(_AF_VSOCK),
        "own loopback": own_loopback(),
        "host secrets in /proc": host_in_proc(orders["needles"]),
        "write outside": write_outside(orders["read_only"]),
        "remount /usr": system_call(_libc.mount(None, b"/usr", None, ctypes.c_ulong(_MS_REMOUNT_BIND), None)),
        "nested user namespace": system_call(_libc.unshare(_CLONE_NEWUSER)),
        "privileges": privileges(),
        "surviving daemon": daemon(orders["heartbeat"]),
    }
    if orders["processes"]:
        outcomes["process limit bites"] = process_limit(orders["processes"], orders["forks"])
    if orders["memory"]:
        outcomes["memory limit bites"] = memory_limit(orders["memory"])
    print(json.dumps(outcomes), flush=True)


if __name__ == "__main__":
    main()

"""What an attempt is, and how all of them are carried out: each in a process of its own, so that none spoils the next."""

from __future__ import annotations

import ctypes
import errno
import json
import os
import platform
import signal
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

LIMIT_S = 20
ORDERS: dict[str, Any] = {}
"""What the host tells: its port, socket names, paths, token; see test_escapes.py."""

libc = ctypes.CDLL(None, use_errno=True)

# Numbers of x86_64; from 424 on they are the same everywhere.
NUMBERS = {
    "pivot_root": 155, "adjtimex": 159, "chroot": 161, "acct": 163, "settimeofday": 164, "mount": 165, "umount2": 166,
    "swapon": 167, "reboot": 169, "sethostname": 170, "setdomainname": 171, "iopl": 172, "ioperm": 173,
    "init_module": 175, "quotactl": 179, "io_setup": 206, "kexec_load": 246, "add_key": 248, "keyctl": 250,
    "ioprio_set": 251, "unshare": 272, "perf_event_open": 298, "name_to_handle_at": 303, "open_by_handle_at": 304,
    "clock_adjtime": 305, "setns": 308, "process_vm_writev": 311, "finit_module": 313, "bpf": 321, "userfaultfd": 323,
    "syslog": 103, "vhangup": 153, "fanotify_init": 300, "fanotify_mark": 301, "clock_settime": 227,
    "pidfd_send_signal": 424, "io_uring_setup": 425, "open_tree": 428, "move_mount": 429, "fsopen": 430, "fsmount": 432,
    "fspick": 433, "pidfd_open": 434, "clone3": 435, "pidfd_getfd": 438, "mount_setattr": 442, "quotactl_fd": 443,
}  # fmt: skip


class Escaped(Exception):
    """An attempt had an effect that it must not have."""


class NotHere(Exception):
    """This machine does not have what the attempt needs."""


@dataclass(frozen=True)
class Attempt:
    """One attempt.

    Attributes:
        name: as docs/security.md lists it.
        by: what is expected to stop it.
        run: returns what was observed, or raises `Escaped` or `NotHere`.
        gateway: whether it needs the gateway on the listener.
    """

    name: str
    by: str
    run: Callable[[], str]
    gateway: bool = False


ATTEMPTS: dict[str, Attempt] = {}


def attempt(
    name: str, by: str, *, gateway: bool = False
) -> Callable[[Callable[[], str | None]], Callable[[], str | None]]:
    """Register a function as an attempt."""

    def register(function: Callable[[], str | None]) -> Callable[[], str | None]:
        add(name, by, function, gateway=gateway)
        return function

    return register


def add(name: str, by: str, function: Callable[[], str | None], *, gateway: bool = False) -> None:
    """Register an attempt; a function that returns nothing must raise an `OSError` to be stopped."""
    assert name not in ATTEMPTS, name

    def run() -> str:
        try:
            seen = function()
        except TimeoutError as error:
            raise Escaped("timed out instead of being refused") from error
        except OSError as error:
            return errno.errorcode.get(error.errno or 0, str(error))
        if seen is None:
            raise Escaped("it succeeded")
        return seen

    ATTEMPTS[name] = Attempt(name, by, run, gateway)


def call(name: str, *arguments: Any) -> int:
    """A system call by name; raises `OSError` as it fails."""
    number = NUMBERS[name]
    if number < 424 and platform.machine() != "x86_64":
        raise NotHere(f"the number of {name} on {platform.machine()} is not in the table")
    ctypes.set_errno(0)
    plain = [ctypes.c_long(a) if isinstance(a, int) else a for a in arguments]
    result = int(libc.syscall(ctypes.c_long(number), *plain))
    if result < 0:
        raise OSError(ctypes.get_errno(), name)
    return result


def checked(result: int) -> int:
    """The result of a function of the C library; raises `OSError` if it failed."""
    if result < 0:
        raise OSError(ctypes.get_errno(), os.strerror(ctypes.get_errno()))
    return result


def all_refused(*functions: Callable[[], object]) -> str:
    """Every one of several ways has to fail."""
    seen = []
    for function in functions:
        try:
            function()
        except TimeoutError as error:
            raise Escaped(f"way {len(seen) + 1} timed out") from error
        except OSError as error:
            seen.append(errno.errorcode.get(error.errno or 0, str(error)))
        else:
            raise Escaped(f"way {len(seen) + 1} of {len(functions)} succeeded")
    return ", ".join(dict.fromkeys(seen))


def _child(attempt: Attempt, writer: int) -> None:
    signal.alarm(LIMIT_S)
    try:
        outcome = ["stopped", attempt.run()]
    except Escaped as error:
        outcome = ["ESCAPED", str(error)]
    except NotHere as error:
        outcome = ["not here", str(error)]
    except BaseException as error:  # a mistake in the attempt is none of the sandbox's strength
        outcome = ["BROKEN", f"{type(error).__name__}: {error}"]
    os.write(writer, json.dumps(outcome).encode())
    os._exit(0)


def carry_out(*, gateway: bool) -> dict[str, list[str]]:
    """Do all attempts; name -> what came of it and what was observed."""
    outcomes: dict[str, list[str]] = {}
    for name, each in ATTEMPTS.items():
        if each.gateway and not gateway:
            continue
        reader, writer = os.pipe()
        pid = os.fork()
        if pid == 0:
            os.close(reader)
            _child(each, writer)
        os.close(writer)
        raw = b""
        while piece := os.read(reader, 65536):
            raw += piece
        os.close(reader)
        _, status = os.waitpid(pid, 0)
        outcomes[name] = json.loads(raw) if raw else ["BROKEN", f"ended with status {status}"]
        print("ESCAPE " + json.dumps({"name": name, "by": each.by, "outcome": outcomes[name]}), flush=True)
    return outcomes

"""What runs *inside* the sandbox to execute HumanEval answers. Standard library only; copied there as one file.

`supervise SOCKET SLOTS` asks the harness for programs over a unix socket, one connection per program, and starts each as a
process of its own. `work FD` is such a process for the strict scorer: it loads the answer and then calls its function as
often as the harness asks, plain data in and plain data out. The tests, the expected values and the verdict stay with the
harness (execution.py): nothing that the answer does in here - leave early, patch builtins, look into frames, print, fork -
can make a wrong value right.
"""

from __future__ import annotations

import collections.abc
import contextlib
import ctypes
import decimal
import fractions
import json
import os
import resource
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
import types
from pathlib import Path
from typing import Any

MEMORY = 4 << 30  # address space of one program, bytes
FILE = 64 << 20  # largest file it may write, bytes
LONGEST_ITERATION = 1_000_000
_SERIES = (
    collections.abc.Iterator,
    collections.abc.KeysView,
    collections.abc.ValuesView,
    collections.abc.ItemsView,
    range,
)
_PR_SET_DUMPABLE, _PR_SET_CHILD_SUBREAPER = 4, 36

# ---- plain data over the wire; execution.py has the counterpart of `encode` ------------------------------------------


def encode(value: Any, depth: int = 0) -> Any:
    """A value as JSON: a list of a tag and the content. Subclasses of builtins become the builtin."""
    if depth > 60:
        raise ValueError("nested too deeply")
    if value is None or isinstance(value, bool):
        return ["c", value]
    if isinstance(value, int):
        return ["i", format(int(value), "x")]
    if isinstance(value, float):
        return ["f", float(value).hex()]
    if isinstance(value, complex):
        return ["z", [value.real.hex(), value.imag.hex()]]
    if isinstance(value, str):
        return ["s", str(value)]
    if isinstance(value, bytes | bytearray):
        return ["b" if isinstance(value, bytes) else "a", bytes(value).hex()]
    for tag, kind in (("l", list), ("t", tuple), ("u", set), ("v", frozenset)):
        if isinstance(value, kind):
            return [tag, [encode(item, depth + 1) for item in value]]
    if isinstance(value, dict):
        return ["d", [[encode(key, depth + 1), encode(item, depth + 1)] for key, item in value.items()]]
    if isinstance(value, fractions.Fraction):
        return ["q", [format(value.numerator, "x"), format(value.denominator, "x")]]
    if isinstance(value, decimal.Decimal):
        return ["n", str(value)]
    if type(value).__module__ == "numpy" and getattr(value, "shape", None) == ():
        return encode(value.item(), depth + 1)
    if isinstance(value, _SERIES):
        items = []
        for item in value:
            items.append(encode(item, depth + 1))
            if len(items) > LONGEST_ITERATION:
                raise ValueError("endless")
        return ["r", items]
    raise TypeError(f"{type(value).__name__} is not plain data")


_MAKE: dict[str, Any] = {
    "c": lambda x: x if x is None or isinstance(x, bool) else None,
    "i": lambda x: int(x, 16),
    "f": float.fromhex,
    "z": lambda x: complex(float.fromhex(x[0]), float.fromhex(x[1])),
    "s": str,
    "b": bytes.fromhex,
    "a": bytearray.fromhex,
    "l": lambda x: [decode(item) for item in x],
    "t": lambda x: tuple(decode(item) for item in x),
    "u": lambda x: {decode(item) for item in x},
    "v": lambda x: frozenset(decode(item) for item in x),
    "d": lambda x: {decode(key): decode(item) for key, item in x},
    "q": lambda x: fractions.Fraction(int(x[0], 16), int(x[1], 16)),
    "n": decimal.Decimal,
    "r": lambda x: iter([decode(item) for item in x]),
}


def decode(value: Any) -> Any:
    """The counterpart of `encode`; makes builtins only.

    Raises:
        ValueError, TypeError, KeyError, RecursionError: not what `encode` writes.
    """
    tag, content = value
    return _MAKE[tag](content)


# ---- one program -----------------------------------------------------------------------------------------------------


def work(descriptor: int) -> None:
    """Load the answer from stdin, then serve calls on the socket until the harness hangs up."""
    job = json.loads(sys.stdin.buffer.read())
    nothing = os.open(os.devnull, os.O_RDWR)
    os.dup2(nothing, 0)
    connection = socket.socket(fileno=descriptor)
    requests = connection.makefile("rb")

    def reply(message: dict[str, Any]) -> None:
        connection.sendall(json.dumps(message).encode() + b"\n")

    module = types.ModuleType("candidate")
    sys.modules["candidate"] = module
    try:
        exec(compile(job["source"], "candidate.py", "exec"), module.__dict__)
        function = module.__dict__[job["entry"]]
    except BaseException as error:
        reply({"failed": type(error).__name__})
        return
    reply({"ready": True})
    for line in requests:
        try:
            arguments = decode(json.loads(line))
            message = {"value": encode(function(*arguments[0], **arguments[1]))}
        except BaseException as error:
            message = {"raised": type(error).__name__}
        reply(message)


def _limit(seconds: float) -> None:
    os.setsid()
    resource.setrlimit(resource.RLIMIT_AS, (MEMORY, MEMORY))
    resource.setrlimit(resource.RLIMIT_CPU, (int(seconds) + 5, int(seconds) + 6))
    resource.setrlimit(resource.RLIMIT_FSIZE, (FILE, FILE))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))


# ---- the supervisor --------------------------------------------------------------------------------------------------


class Supervisor:
    """Fetches programs and starts them, `slots` at a time. Holds the only secret in here, the word for the harness."""

    def __init__(self, address: str, slots: int) -> None:
        self.address = address
        self.slots = slots
        self.word = sys.stdin.readline().strip()
        self.active: set[int] = set()
        self.lock = threading.Lock()
        library = ctypes.CDLL(None, use_errno=True)
        # same-uid programs could otherwise read the word in our memory, or write there
        library.prctl(_PR_SET_DUMPABLE, 0, 0, 0, 0)
        library.prctl(_PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0)

    def run(self) -> None:
        """Work until the harness has no more programs."""
        threads = [threading.Thread(target=self._slot) for _ in range(self.slots)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()

    def _slot(self) -> None:
        while True:
            with socket.socket(socket.AF_UNIX) as connection:
                connection.connect(self.address)
                connection.sendall(self.word.encode() + b"\n")
                job = self._receive(connection)
                if job is None:
                    return
                folder = tempfile.mkdtemp(prefix="job-")
                try:
                    self._execute(job, connection, folder)
                except OSError:
                    # no process to be had: some neighbour took them all. Give up as a whole, so that the harness runs
                    # what is left one by one, instead of blaming this program.
                    os._exit(1)
                finally:
                    shutil.rmtree(folder, ignore_errors=True)
                    self._sweep()

    @staticmethod
    def _receive(connection: socket.socket) -> dict[str, Any] | None:
        with connection.makefile("rb") as file:
            header = file.readline()
            job: dict[str, Any] | None = json.loads(header) if header else None
        return job

    def _execute(self, job: dict[str, Any], connection: socket.socket, folder: str) -> None:
        seconds = float(job["seconds"])
        calls = job["kind"] == "calls"
        command = [sys.executable, "-I", os.path.abspath(__file__), "work", str(connection.fileno())]  # noqa: PTH100
        if not calls:
            command = [sys.executable, "-c", job["source"]]
        with self.lock:
            process = subprocess.Popen(
                command,
                stdin=subprocess.PIPE if calls else subprocess.DEVNULL,
                stdout=subprocess.DEVNULL,
                stderr=subprocess.DEVNULL,
                cwd=folder,
                pass_fds=(connection.fileno(),) if calls else (),
                preexec_fn=lambda: _limit(seconds),
            )
            self.active.add(process.pid)
        code: int | None = None
        try:
            if calls:
                # the program's end must be the end of the connection: drop our own copy of it
                connection.close()
                with contextlib.suppress(OSError):
                    assert process.stdin is not None
                    process.stdin.write(json.dumps(job).encode())
                    process.stdin.close()
            code = process.wait(seconds + (3 if calls else 0))
        except subprocess.TimeoutExpired:
            code = None
        finally:
            with contextlib.suppress(OSError):
                os.killpg(process.pid, signal.SIGKILL)
            process.kill()
            process.wait()
            with self.lock:
                self.active.discard(process.pid)
        if not calls:
            with contextlib.suppress(OSError):
                connection.sendall(json.dumps({"code": code}).encode() + b"\n")

    def _sweep(self) -> None:
        """Kill what programs left behind: as their subreaper we have become its parent."""
        for _ in range(20):
            with self.lock:
                orphans = [pid for pid in _children(os.getpid()) if pid not in self.active]
                for pid in orphans:
                    with contextlib.suppress(OSError):
                        os.kill(pid, signal.SIGKILL)
                        os.waitpid(pid, 0)
            if not orphans:
                return
            time.sleep(0.01)


def _children(parent: int) -> list[int]:
    found = []
    for process in Path("/proc").iterdir():
        if process.name.isdigit():
            with contextlib.suppress(OSError, IndexError, ValueError):
                if int((process / "stat").read_bytes().rpartition(b")")[2].split()[1]) == parent:
                    found.append(int(process.name))
    return found


if __name__ == "__main__":
    if sys.argv[1] == "work":
        work(int(sys.argv[2]))
    else:
        Supervisor(sys.argv[2], int(sys.argv[3])).run()

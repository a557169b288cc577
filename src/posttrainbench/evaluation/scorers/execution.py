"""Running HumanEval answers: the trusted side. The tests run here; the answer runs confined and is asked for values.

The strict verdict needs no token that could be stolen or printed: `check()` itself runs in *this* process, and every
`candidate(...)` in it is a question over a socket to the process that holds the answer (confined.py). Arguments and results
are plain data, decoded here into builtins, so no object and no code of the answer ever gets near the asserts. An answer
passes if and only if `check()` returns, that is, if every value it gave was right.

The paper's verdict is what it was: the whole program in one process, exit status 0 within 30 s; an early exit passes.
"""

from __future__ import annotations

import asyncio
import builtins
import contextlib
import json
import os
import queue
import random
import secrets
import shutil
import socket
import subprocess
import sys
import threading
import time
import types
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from posttrainbench.errors import InfrastructureError
from posttrainbench.evaluation.scorers import confined
from posttrainbench.scratch import Scratch

SECONDS = 30.0  # of the reference (reference.md 1.4)
MESSAGE = 4 << 20  # longest message from an answer, bytes; HumanEval's own values stay below 100 kB
CONFINED = "PTB_CONFINED"
"""Set to 1 in the environment of a process that is already confined: answers then run in plain limited processes."""

Where = Literal["auto", "sandbox", "process"]


@dataclass(frozen=True)
class Problem:
    """The trusted part of a HumanEval item.

    Attributes:
        reference: stub and canonical solution. Some tests call helpers of the stub, and one (33) the solution itself.
    """

    name: str
    reference: str
    test: str
    entry_point: str


@dataclass(frozen=True)
class Outcome:
    """Verdict on one program; `passed` is `None` if the machine failed and not the program."""

    passed: bool | None
    detail: str


@dataclass
class Job:
    """One program to run. `problem` set: strict, by calls; else by exit status."""

    source: str
    problem: Problem | None = None
    seconds: float = SECONDS
    strikes: int = 0
    taken: bool = False
    outcome: Outcome | None = None
    done: threading.Event = field(default_factory=threading.Event)

    def settle(self, passed: bool | None, detail: str) -> None:
        """Record the verdict."""
        self.outcome = Outcome(passed, detail)
        self.done.set()


class CandidateError(Exception):
    """The answer raised, ended, hung, or gave something that is not plain data."""


class _Candidate:
    """The function under test, as `check` sees it."""

    def __init__(self, connection: socket.socket, deadline: float) -> None:
        self._connection = connection
        self._deadline = deadline
        self._pending = b""

    def receive(self) -> dict[str, Any]:
        """The next message of the answer's process."""
        while b"\n" not in self._pending:
            left = self._deadline - time.monotonic()
            if left <= 0:
                raise CandidateError("timeout")
            self._connection.settimeout(left)
            try:
                piece = self._connection.recv(1 << 16)
            except TimeoutError as error:
                raise CandidateError("timeout") from error
            except OSError as error:
                raise CandidateError("the program is gone") from error
            if not piece:
                raise CandidateError("the program ended")
            self._pending += piece
            if len(self._pending) > MESSAGE:
                raise CandidateError("the message is too long")
        line, _, self._pending = self._pending.partition(b"\n")
        try:
            message = json.loads(line)
        except (ValueError, RecursionError) as error:
            raise CandidateError("not a message") from error
        if not isinstance(message, dict):
            raise CandidateError("not a message")
        return message

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        question = json.dumps(confined.encode((args, kwargs))).encode() + b"\n"
        try:
            self._connection.settimeout(max(self._deadline - time.monotonic(), 0.01))
            self._connection.sendall(question)
        except OSError as error:
            raise CandidateError("the program is gone") from error
        message = self.receive()
        if "value" not in message:
            raise CandidateError(f"raised {str(message.get('raised'))[:40]}")
        try:
            return confined.decode(message["value"])
        except (ValueError, TypeError, KeyError, RecursionError, ArithmeticError, AttributeError) as error:
            raise CandidateError("not plain data") from error


def _namespace(seed: str) -> dict[str, Any]:
    """Globals for the trusted code: no printing, and a `random` of its own, so that the same test is the same test."""
    generator = random.Random(seed)
    seeded = types.ModuleType("random")
    for name in dir(generator):
        if not name.startswith("_"):
            setattr(seeded, name, getattr(generator, name))
    seeded.Random = random.Random  # type: ignore[attr-defined]

    def load(name: str, *rest: Any, **more: Any) -> Any:
        return seeded if name == "random" else builtins.__import__(name, *rest, **more)

    own = dict(vars(builtins))
    own["__import__"] = load
    own["print"] = lambda *args, **kwargs: None
    return {"__name__": "check", "__builtins__": own}


def run_check(problem: Problem, candidate: Callable[..., Any]) -> Outcome:
    """Run the item's `check` on `candidate`, in this process."""
    space = _namespace(problem.name)
    exec(problem.reference, space)
    exec(problem.test, space)
    try:
        space["check"](candidate)
    except AssertionError:
        return Outcome(False, "a test failed")
    except CandidateError as error:
        return Outcome(False, str(error))
    except Exception as error:  # the test choked on the value, such as None + 1
        return Outcome(False, f"{type(error).__name__} in the test")
    return Outcome(True, "all tests passed")


class _Server:
    """Hands out programs over a unix socket and holds the conversation with each."""

    def __init__(self, jobs: Sequence[Job]) -> None:
        self._scratch = Scratch("code", parent=Path("/tmp"))  # a socket's path has 107 bytes at most
        self.folder = self._scratch.path
        self.folder.chmod(0o755)
        shutil.copyfile(confined.__file__, self.folder / "confined.py")
        self.word = secrets.token_hex(16)
        self.jobs: queue.SimpleQueue[Job] = queue.SimpleQueue()
        for job in jobs:
            self.jobs.put(job)
        self._listener = socket.socket(socket.AF_UNIX)
        self._listener.bind(str(self.folder / "socket"))
        (self.folder / "socket").chmod(0o777)  # a connection needs write permission; it also needs the word
        self._listener.listen(64)
        self._threads: list[threading.Thread] = []
        self._accepting = threading.Thread(target=self._accept, daemon=True)
        self._accepting.start()

    def _accept(self) -> None:
        while True:
            try:
                connection, _ = self._listener.accept()
            except OSError:
                return
            thread = threading.Thread(target=self._converse, args=(connection,), daemon=True)
            self._threads.append(thread)
            thread.start()

    def _converse(self, connection: socket.socket) -> None:
        with connection:
            connection.settimeout(30)
            try:
                word = connection.makefile("rb").readline(100).strip().decode("ascii", "replace")
            except OSError:
                return
            if not secrets.compare_digest(word, self.word):
                return
            try:
                job = self.jobs.get_nowait()
            except queue.Empty:
                return
            job.taken = True
            with contextlib.suppress(OSError):
                self._run(job, connection)

    def _run(self, job: Job, connection: socket.socket) -> None:
        header = {"kind": "exit" if job.problem is None else "calls", "source": job.source, "seconds": job.seconds}
        if job.problem is not None:
            header["entry"] = job.problem.entry_point
        connection.sendall(json.dumps(header).encode() + b"\n")
        if job.problem is None:
            connection.settimeout(job.seconds + 60)
            answer = connection.makefile("rb").readline(200)
            if answer:  # else the supervisor is gone, which is for `execute` to judge
                code = json.loads(answer)["code"]
                job.settle(code == 0, "timeout" if code is None else f"exit status {code}")
            return
        candidate = _Candidate(connection, time.monotonic() + job.seconds)
        try:
            first = candidate.receive()
            if not first.get("ready"):
                job.settle(False, f"does not load: {str(first.get('failed'))[:40]}")
                return
        except CandidateError as error:
            if str(error) in ("timeout", "not a message", "the message is too long"):
                job.settle(False, str(error))
            else:
                self._ended_early(job)
            return
        outcome = run_check(job.problem, candidate)
        job.settle(outcome.passed, outcome.detail)

    @staticmethod
    def _ended_early(job: Job) -> None:
        # An answer that exits while it loads looks the same as a sandbox that broke; `execute` tells them apart.
        job.outcome = Outcome(False, "ended while loading")

    def close(self) -> None:
        """Stop listening, wait for conversations, remove the folder."""
        with contextlib.suppress(OSError):
            self._listener.shutdown(socket.SHUT_RDWR)
        self._listener.close()
        self._accepting.join(5)
        for thread in self._threads:
            thread.join(5)
        self._scratch.close()


def _environment() -> dict[str, str]:
    return {"OPENBLAS_NUM_THREADS": "1", "OMP_NUM_THREADS": "1", "PYTHONDONTWRITEBYTECODE": "1"}


def _in_sandbox(server: _Server, slots: int, wall: float) -> bool:
    """Run the supervisor in the sandbox; true if it came to its own end."""
    from posttrainbench.sandbox import Limits, Spec, get_backend, python_runtime

    result = get_backend().run(
        Spec(
            argv=[sys.executable, "-I", "/answers/confined.py", "supervise", "/answers/socket", str(slots)],
            cwd="/tmp",
            env=_environment(),
            ro={**python_runtime(), "/answers": server.folder},
            hide=[str(Path(confined.__file__).parents[2])],
            stdin=server.word + "\n",
            limits=Limits(wall_s=wall, grace_s=1.0, processes=256, memory_bytes=16 << 30),
        )
    )
    return result.returncode == 0


def _in_process(server: _Server, slots: int, wall: float) -> bool:
    """Run the supervisor as an ordinary process: only for a harness that is itself confined."""
    script = str(server.folder / "confined.py")
    process = subprocess.Popen(
        [sys.executable, "-I", script, "supervise", str(server.folder / "socket"), str(slots)],
        stdin=subprocess.PIPE,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        cwd=server.folder,
        env={"PATH": os.environ.get("PATH", "/usr/bin:/bin"), "HOME": "/tmp", **_environment()},
        text=True,
        start_new_session=True,
    )
    try:
        process.communicate(server.word + "\n", timeout=wall)
    except subprocess.TimeoutExpired:
        process.kill()
        process.communicate()
    return process.returncode == 0


def execute(jobs: Sequence[Job], *, where: Where = "auto", slots: int | None = None) -> None:
    """Run programs and settle every job. Blocks; call it from the main thread when the sandbox is used.

    A program that takes the whole sandbox down with it is found by running what is left one by one, and is wrong.

    Args:
        jobs: programs.
        where: `sandbox`, `process` (limited processes of this user, for a harness that is confined itself), or `auto`:
            `process` if the environment says `PTB_CONFINED=1`, else `sandbox`.
        slots: programs at a time; by default one per core, at most 8.

    Raises:
        InfrastructureError: there is no sandbox, or nothing runs in it.
    """
    confined_already = where == "process" or (where == "auto" and os.environ.get(CONFINED) == "1")
    width = slots or min(8, os.cpu_count() or 1)
    left = [job for job in jobs if not job.done.is_set()]
    while left:
        server = _Server(left)
        wall = 60 + sum(job.seconds + 5 for job in left) / width
        try:
            clean = (_in_process if confined_already else _in_sandbox)(server, width, wall)
        finally:
            server.close()
        for job in left:
            if job.outcome is not None and not job.done.is_set() and clean:
                job.settle(job.outcome.passed, job.outcome.detail)
        remaining = [job for job in left if not job.done.is_set()]
        begun = [job for job in remaining if job.taken]
        if len(remaining) == len(left) and not begun:
            raise InfrastructureError("no program could be run in the sandbox; `ptb doctor` says why")
        for job in begun:
            job.taken, job.outcome = False, None
            job.strikes += 1
            # alone in the sandbox, or twice among others: it is this program that ends it
            if width == 1 or job.strikes >= 3:
                job.settle(False, "the program ended its sandbox")
        left = [job for job in remaining if not job.done.is_set()]
        width = 1


class Executor:
    """Collects the programs of concurrent samples into few sandbox runs.

    Args:
        where: see `execute`.
    """

    _QUIET_S = 0.25  # samples of a batch reach their scorers within milliseconds of each other

    def __init__(self, where: Where = "auto") -> None:
        self._where = where
        self._futures: dict[tuple[str, str], asyncio.Future[Outcome]] = {}
        self._waiting: list[tuple[Job, asyncio.Future[Outcome]]] = []
        self._flush: asyncio.Task[None] | None = None

    def submit(self, source: str, problem: Problem | None = None) -> asyncio.Future[Outcome]:
        """Ask for a program to be run; the same program of the same problem is run once."""
        key = (problem.name if problem else "", source)
        loop = asyncio.get_running_loop()
        known = self._futures.get(key)
        if known is not None and known.get_loop() is loop:
            return known
        future: asyncio.Future[Outcome] = loop.create_future()
        self._futures[key] = future
        self._waiting.append((Job(source, problem), future))
        if self._flush is None or self._flush.done():
            self._flush = asyncio.create_task(self._run())
        return future

    async def _run(self) -> None:
        while self._waiting:
            seen = -1
            while seen != len(self._waiting):
                seen = len(self._waiting)
                await asyncio.sleep(self._QUIET_S)
            batch, self._waiting = self._waiting, []
            jobs = [job for job, _ in batch]
            problem = "the sandbox did not run it"
            try:
                # On this thread, which is the main one: the kernel ties the sandbox's life to the thread that starts it.
                execute(jobs, where=self._where)
            except InfrastructureError as error:
                problem = str(error)
            for job, future in batch:
                future.set_result(job.outcome or Outcome(None, problem))

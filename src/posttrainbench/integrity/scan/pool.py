"""Workers: each looks at one piece of work at a time, in a process with limits, and is replaced when it dies or hangs."""

from __future__ import annotations

import contextlib
import multiprocessing
import os
import resource
import signal
import time
from collections import deque
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from multiprocessing.connection import Connection, wait
from pathlib import Path
from typing import Any

from posttrainbench.integrity.bounded import die_with_parent
from posttrainbench.integrity.scan import code, train, unpack
from posttrainbench.integrity.scan.index import Index
from posttrainbench.integrity.scan.items import ItemSet
from posttrainbench.integrity.scan.report import Hit, best
from posttrainbench.integrity.scan.scanner import Options, Scanner, run
from posttrainbench.integrity.scan.streams import NeedsWorker

_MEMORY = 6 * 2**30


@dataclass(frozen=True, kw_only=True)
class Source:
    """A file to look at, and what to call it."""

    path: Path
    name: str
    size: int


@dataclass(frozen=True, kw_only=True)
class Work:
    number: int
    source: Source
    span: tuple[int, int] | None = None


@dataclass(frozen=True, kw_only=True)
class Done:
    number: int
    documents: int
    lines: int
    hits: list[Hit]
    problems: list[tuple[str, str]]
    functions: list[code.Candidate]
    seconds: dict[str, float]


def _perform(scanner: Scanner, work: Work, *, arrow: bool) -> Done:
    budget = unpack.budget_for(work.source.size, seconds=scanner.options.seconds, arrow=arrow)
    batches = unpack.documents(
        work.source.path, work.source.name, lines=scanner.engine.lines, budget=budget, span=work.span
    )
    counted = Counted(batches)
    tally = run(scanner, counted)
    problems = list(dict.fromkeys(budget.problems))
    if tally.cut:
        problems.append((work.source.name, f"{tally.cut} document(s) hold more test items than can be listed"))
    return Done(
        number=work.number,
        documents=tally.documents,
        lines=counted.lines,
        hits=best(tally.hits),
        problems=problems,
        functions=tally.functions[:20_000],
        seconds={**tally.seconds, "reading": counted.seconds},
    )


class Counted:
    """The batches of a file, with the time that reading them took, and the lines of a span."""

    def __init__(self, batches: Iterable[Any]) -> None:
        self._batches = iter(batches)
        self.seconds = 0.0
        self.lines = 0

    def __iter__(self) -> Counted:
        return self

    def __next__(self) -> Any:
        begun = time.perf_counter()
        try:
            name, batch = next(self._batches)
        finally:
            self.seconds += time.perf_counter() - begun
        if len(batch.record):
            self.lines = int(batch.record[-1]) + 1
        return name, batch


def worker(pipe: Connection, tests: ItemSet, index: Index, options: Options, near: Sequence[tuple[int, str]]) -> None:
    """Take work from the pipe until there is none."""
    parent = multiprocessing.parent_process()
    if parent is not None and parent.pid is not None:
        die_with_parent(parent.pid)
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    resource.setrlimit(resource.RLIMIT_AS, (_MEMORY, _MEMORY))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    scanner = Scanner(tests, index, options, exempt=train.Exempt(tests, near) if near else None)
    tests = replace(tests, train=())
    while True:
        try:
            work = pipe.recv()
        except (EOFError, OSError):
            return
        if work is None:
            return
        pipe.send(guarded(scanner, work))


def guarded(scanner: Scanner, work: Work, *, arrow: bool = True) -> Done:
    """What became of a piece of work, whatever it did to us.

    Raises:
        NeedsWorker: it is not for this process.
    """
    try:
        return _perform(scanner, work, arrow=arrow)
    except NeedsWorker:
        raise
    except (MemoryError, RecursionError) as error:
        reason = "needs more memory than a worker may take" if isinstance(error, MemoryError) else "nested too deeply"
        return _failed(work, reason)
    except Exception as error:  # a hostile file; the others are to be looked at all the same
        return _failed(work, f"cannot be read: {type(error).__name__}: {str(error)[:100]}")


def _failed(work: Work, reason: str) -> Done:
    return Done(
        number=work.number,
        documents=0,
        lines=0,
        hits=[],
        problems=[(work.source.name, reason)],
        functions=[],
        seconds={},
    )


class Pool:
    """Workers, each with one piece of work at a time, replaced when they die or hang."""

    def __init__(self, start: Callable[[Connection], Any], size: int, seconds: float) -> None:
        self._start = start
        self._size = size
        self._seconds = seconds

    def _new(self) -> tuple[Any, Connection]:
        ours, theirs = multiprocessing.Pipe()
        process = self._start(theirs)
        theirs.close()
        return process, ours

    def run(self, work: Sequence[Work], done: Callable[[Done], None]) -> None:
        """Have all of it done. Largest first, so that nobody waits for one at the end."""
        pending = deque(sorted(work, key=lambda w: -(w.span[1] - w.span[0] if w.span else w.source.size)))
        busy: dict[Connection, tuple[Any, Work, float]] = {}
        try:
            while pending or busy:
                while pending and len(busy) < self._size:
                    process, pipe = self._new()
                    self._give(busy, process, pipe, pending.popleft())
                self._collect(busy, pending, done)
        finally:
            for pipe, (process, _, _) in busy.items():
                pipe.close()
                process.kill()
                process.join(5)

    def _give(
        self, busy: dict[Connection, tuple[Any, Work, float]], process: Any, pipe: Connection, work: Work
    ) -> None:
        # twice what the worker allows itself: it ends by itself unless a library holds it
        busy[pipe] = (process, work, time.monotonic() + 2 * self._seconds + 30)
        with contextlib.suppress(OSError):  # it is dead, which `_collect` sees
            pipe.send(work)

    def _collect(
        self, busy: dict[Connection, tuple[Any, Work, float]], pending: deque[Work], done: Callable[[Done], None]
    ) -> None:
        for ready in wait(list(busy), timeout=1.0):
            pipe: Connection = ready  # type: ignore[assignment]
            process, work, _ = busy.pop(pipe)
            try:
                done(pipe.recv())
            except (EOFError, OSError):
                process.join(5)
                pipe.close()
                done(_failed(work, f"its reader died (exit status {process.exitcode})"))
                continue
            if pending:
                self._give(busy, process, pipe, pending.popleft())
            else:
                # not by closing alone: a later worker holds a copy of our end
                with contextlib.suppress(OSError):
                    pipe.send(None)
                pipe.close()
                process.join(5)
        late = [pipe for pipe, (_, _, deadline) in busy.items() if time.monotonic() > deadline]
        for pipe in late:
            process, work, _ = busy.pop(pipe)
            process.kill()
            process.join(5)
            pipe.close()
            done(_failed(work, f"takes longer than {self._seconds:.0f} s"))

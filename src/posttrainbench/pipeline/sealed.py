"""Sealed test data on the harness's side: what is kept out of the sandbox, and the evaluator beside it.

agent's evaluate.py --HTTP--> gateway.sealed --files--> pipeline.sealed_worker --> fresh sandbox, same GPUs
"""

from __future__ import annotations

import contextlib
import ctypes
import json
import os
import select
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any

from posttrainbench.errors import ConfigurationError, InfrastructureError
from posttrainbench.files import remove_tree
from posttrainbench.gateway.sealed_spool import Spool, read_calls
from posttrainbench.pipeline.context import Context
from posttrainbench.pipeline.run_dir import now
from posttrainbench.pipeline.spec import RunSpec
from posttrainbench.sandbox import Backend, Limits, Spec
from posttrainbench.sandbox.processes import ended

PACKAGES = ("posttrainbench.smoke", "inspect_evals")
"""Packages of the harness's Python that hold test items, found by a search for lines of all items in everything that an
agent can read (docs/sealed.md): the 200 of smoke-math with their generator and its seed, and examples in README files."""

_START_S = 60.0
# From the order to stop until the evaluator is killed: a sandbox gets 0.5 s of grace, a GPU process some seconds to die.
_STOP_S = 10.0
_KILL_S = 30.0
_RESTARTS = 5
_PR_SET_PDEATHSIG = 1
_libc = ctypes.CDLL(None, use_errno=True)

_FIND = """
import importlib.util, sys
for name in sys.argv[1:]:
    try:
        spec = importlib.util.find_spec(name)
    except ImportError:
        continue
    for place in (spec and spec.submodule_search_locations) or ():
        print("PLACE", place)
"""


def check(spec: RunSpec, network: str) -> None:
    """See that the test data can be kept from the agent.

    Raises:
        ConfigurationError: it could fetch the data itself, or an option makes no sense.
    """
    if spec.test_data != "sealed" or network == "closed":
        return
    from posttrainbench.gateway.web_policy import load_policy

    policy = load_policy(network)
    if policy.hub == "open" or (policy.allow_others and not any(rule.name == "test-data" for rule in policy.refuse)):
        raise ConfigurationError(
            f"--test-data sealed with --network {Path(network).name}: the agent could download the test data; use "
            "guarded or closed, or a policy that refuses it"
        )


def hidden(backend: Backend) -> list[str]:
    """Directories inside a sandbox that hold test items, to be covered.

    Raises:
        InfrastructureError: the sandbox's Python cannot be asked.
    """
    runtime, said = backend.runtime(), bytearray()
    result = backend.run(
        Spec(
            argv=(runtime.executable, "-I", "-c", _FIND, *PACKAGES),
            env={"PATH": runtime.path},
            ro=runtime.ro,
            limits=Limits(wall_s=_START_S, grace_s=0.0),
        ),
        on_output=said.extend,
    )
    places = [line[6:] for line in said.decode(errors="replace").splitlines() if line.startswith("PLACE /")]
    if result.returncode != 0 or not places:
        raise InfrastructureError(
            f"where the sandbox's Python keeps test items cannot be found out (status {result.returncode}): "
            f"{said[-200:].decode(errors='replace').strip()}",
            kind="sandbox",
        )
    return sorted(set(places))


class Evaluations:
    """The evaluator of a run while its agent works. For a run with visible test data it does nothing.

    Args:
        context: the run.
        seconds: the agent's time.
    """

    def __init__(self, context: Context, *, seconds: float) -> None:
        self.active = context.spec.test_data == "sealed"
        self._run = context.run
        self._deadline = time.monotonic() + seconds
        self._process: subprocess.Popen[bytes] | None = None
        self._restarts = 0
        self.survivors = 0
        self.stop_s = 0.0

    def start(self) -> None:
        """Start the evaluator.

        Raises:
            InfrastructureError: it does not come up; its own words are in `gateway/sealed.log`.
        """
        log = self._run.path / "gateway" / "sealed.log"
        told = {"run": str(self._run.path), "deadline": self._deadline}
        with log.open("ab") as file:
            process = subprocess.Popen(
                # -P: no directory that it runs in is a place for modules
                [sys.executable, "-P", "-m", "posttrainbench.pipeline.sealed_worker"],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=file,
                cwd=self._run.path,
                # a Ctrl-C at the terminal is the harness's to handle
                start_new_session=True,
                preexec_fn=_die_with_parent,
            )
        self._process = process
        assert process.stdin is not None and process.stdout is not None
        with contextlib.suppress(OSError):
            process.stdin.write(json.dumps(told).encode() + b"\n")
            process.stdin.flush()
        if not _says_ready(process.stdout):
            self.stop()
            raise InfrastructureError(f"the evaluator of the sealed test data does not start; see {log}")

    def tend(self) -> bool:
        """Start the evaluator again if it died; call it a few times a second. Always false, for use among conditions.

        Raises:
            InfrastructureError: it dies again and again.
        """
        process = self._process
        if process is None or process.poll() is None:
            return False
        self._note(f"the evaluator died with status {process.returncode}")
        self._close(process)
        self._restarts += 1
        if self._restarts > _RESTARTS:
            self._process = None
            log = self._run.path / "gateway" / "sealed.log"
            raise InfrastructureError(f"the evaluator of the sealed test data died {self._restarts} times; see {log}")
        self.start()
        return False

    def stop(self) -> None:
        """End the evaluator and what it evaluates; no process of either is left when this returns. Safe to repeat.

        Raises:
            InfrastructureError: a process could not be ended.
        """
        process = self._process
        if process is None:
            return
        self._process = None
        began = time.monotonic()
        held = _Tree(process.pid)
        assert process.stdin is not None
        with contextlib.suppress(OSError):
            process.stdin.close()
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(_STOP_S)
        if process.poll() is None:
            # grading, or a program under test: neither looks whether it is to end
            held.add(process.pid)
            self._note("the evaluator did not end by itself and was killed")
            process.kill()
            process.wait()
        self._close(process)
        self.survivors = held.wait(_KILL_S)
        self.stop_s = round(time.monotonic() - began, 3)
        self._settle()
        if self.survivors:
            raise InfrastructureError(
                f"{self.survivors} processes of an evaluation outlived it; the GPU may not be free", kind="sandbox"
            )

    def record(self) -> dict[str, Any] | None:
        """For the run's record: how often was evaluated, and that all of it has ended; `None` with visible data."""
        if not self.active:
            return None
        calls = read_calls(self._run.path / "gateway")
        return {
            "calls": len(calls),
            "scored": sum(call.get("state") == "done" for call in calls),
            "seconds": round(sum(float(call.get("seconds") or 0) for call in calls), 3),
            "restarts": self._restarts,
            "stop_s": self.stop_s,
            "survivors": self.survivors + sum(int(call.get("survivors") or 0) for call in calls),
        }

    def _settle(self) -> None:
        """An evaluation that the evaluator could not end properly any more gets its result here."""
        from posttrainbench.pipeline.sealed_worker import DRAFT, failed

        remove_tree(self._run.path / DRAFT)
        spool = Spool(self._run.path / "gateway")
        for job in spool.jobs():
            if spool.result(job.id) is None:
                facts = {"seconds": round(spool.age(job.id), 3), "survivors": self.survivors}
                spool.finish(job, failed("deadline") | facts, ended=now())

    def _close(self, process: subprocess.Popen[bytes]) -> None:
        for pipe in (process.stdin, process.stdout):
            if pipe is not None:
                with contextlib.suppress(OSError):
                    pipe.close()

    def _note(self, text: str) -> None:
        with contextlib.suppress(OSError), (self._run.path / "gateway" / "sealed.log").open("a") as file:
            file.write(f"{now()} {text}\n")


@contextmanager
def evaluations(context: Context, *, seconds: float) -> Iterator[Evaluations]:
    """The evaluator of a run, for as long as the block lasts, and for `seconds` at most.

    Raises:
        InfrastructureError: it does not start, or cannot be ended.
    """
    found = Evaluations(context, seconds=seconds)
    if not found.active:
        yield found
        return
    found.start()
    try:
        yield found
    finally:
        found.stop()


def _die_with_parent() -> None:
    # a harness that is killed must not leave an evaluation behind
    _libc.prctl(_PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0)


def _says_ready(pipe: IO[bytes]) -> bool:
    ready, _, _ = select.select([pipe], [], [], _START_S)
    return bool(ready) and pipe.readline().strip() == b"ready"


class _Tree:
    """Handles on all descendants of a process, with which their end can be waited for, whoever reaps them."""

    def __init__(self, pid: int) -> None:
        self._held: dict[int, int] = {}
        self.add(pid)

    def add(self, pid: int) -> None:
        """Take hold of the descendants that there are now."""
        children: dict[int, list[int]] = {}
        for entry in os.scandir("/proc"):
            with contextlib.suppress(OSError, IndexError, ValueError):
                if entry.name.isdigit():
                    parent = int(Path(entry.path, "stat").read_text(errors="replace").rpartition(")")[2].split()[1])
                    children.setdefault(parent, []).append(int(entry.name))
        pending = [pid]
        while pending:
            for child in children.get(pending.pop(), ()):
                pending.append(child)
                if child not in self._held:
                    with contextlib.suppress(OSError):
                        self._held[child] = os.pidfd_open(child)

    def wait(self, seconds: float) -> int:
        """Wait for their end; returns how many are left."""
        until = time.monotonic() + seconds
        left = 0
        for handle in self._held.values():
            left += not ended(handle, max(0.0, until - time.monotonic()))
            os.close(handle)
        self._held.clear()
        return left

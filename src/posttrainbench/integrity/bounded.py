"""Run detectors in a process of their own, for a limited time.

What an agent left is hostile: a parser can be made to run for ever, to take all memory, or to crash the process. The harness
outlives all three; a detector that did not come to an end has a problem, and the run is undecided.
`python -m posttrainbench.integrity.bounded` is the process: evidence on standard input, outcomes on standard output, a line
each.
"""

from __future__ import annotations

import contextlib
import ctypes
import importlib
import json
import os
import pickle
import resource
import selectors
import signal
import subprocess
import sys
import time
from collections.abc import Mapping
from typing import IO, Any

from posttrainbench.integrity.finding import Detector, Evidence, Finding, Outcome

LIMIT_S = 3600.0
"""Wall-clock seconds for all detectors of one run: 20 times what a model of 8 B and 10 GB of text take from a cold disk."""
_MEMORY = 16 << 30
# Outcomes are some kB; more than this is no outcome.
_LONGEST_LINE = 64 << 20
_PR_SET_PDEATHSIG = 1


def _plain(value: Any) -> Any:
    return value.item() if hasattr(value, "item") else str(value)


def encode(name: str, outcome: Outcome) -> str:
    """An outcome as one line."""
    found = [finding.as_json() for finding in outcome.findings]
    body = {"name": name, "findings": found, "numbers": dict(outcome.numbers), "problem": outcome.problem}
    return json.dumps(body, default=_plain)


def decode(line: bytes) -> tuple[str, Outcome]:
    """The outcome of a line.

    Raises:
        ValueError, TypeError, KeyError: it is none.
    """
    value = json.loads(line)
    findings = tuple(Finding(**{**finding, "where": tuple(finding["where"])}) for finding in value["findings"])
    return value["name"], Outcome(findings=findings, numbers=value["numbers"], problem=value["problem"])


def run_one(detect: Detector, evidence: Evidence) -> Outcome:
    """One detector here and now; whatever breaks it becomes its problem."""
    try:
        return detect(evidence)
    except Exception as error:  # hostile input: whatever it breaks, the run is undecided and the harness lives
        return Outcome(problem=f"{type(error).__name__}: {str(error)[:200]}")


def examine(detectors: Mapping[str, Detector], evidence: Evidence, *, limit_s: float = LIMIT_S) -> dict[str, Outcome]:
    """Run detectors in a child process, one after the other.

    Args:
        detectors: by name; functions at the top level of a module (others run here, without limits).
        evidence: what they look at.
        limit_s: wall-clock seconds for all of them together.

    Returns:
        An outcome for each. One that crashed or was not finished in time has a problem; those after a crash still run.
    """
    outcomes = {name: run_one(detect, evidence) for name, detect in detectors.items() if "<" in detect.__qualname__}
    deadline = time.monotonic() + limit_s
    while len(outcomes) < len(detectors):
        left = {name: detect for name, detect in detectors.items() if name not in outcomes}
        if time.monotonic() >= deadline:
            outcomes |= {
                name: Outcome(problem=f"not looked at: the audit's {limit_s:.0f} s were over") for name in left
            }
            break
        done, reason = _child(left, evidence, deadline)
        outcomes |= done
        current = next((name for name in left if name not in done), None)
        if current is not None:
            late = reason is None
            outcomes[current] = Outcome(
                problem=f"not finished within {limit_s:.0f} s" if late else f"it ended {reason}"
            )
    return {name: outcomes[name] for name in detectors}


def _child(
    detectors: Mapping[str, Detector], evidence: Evidence, deadline: float
) -> tuple[dict[str, Outcome], str | None]:
    """Start a child and collect until it ends; the reason is `None` if it had to be stopped."""
    places = [(name, detect.__module__, detect.__qualname__) for name, detect in detectors.items()]
    process = subprocess.Popen(
        [sys.executable, "-P", "-m", "posttrainbench.integrity.bounded"],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        # threads of the linear algebra library would wait for each other: the detectors have threads of their own
        env={**os.environ, "OPENBLAS_NUM_THREADS": "1", "OMP_NUM_THREADS": "1"},
        start_new_session=True,
    )
    assert process.stdin is not None and process.stdout is not None
    try:
        with contextlib.suppress(BrokenPipeError):
            process.stdin.write(pickle.dumps((os.getpid(), sys.path, places, evidence)))
            process.stdin.close()
        done = _collect(process.stdout, deadline)
        try:
            process.wait(timeout=max(0.0, min(5.0, deadline - time.monotonic())))
        except subprocess.TimeoutExpired:
            return done, None
        code = process.returncode
        return done, f"by {signal.Signals(-code).name}" if code < 0 else f"with status {code}"
    finally:
        # its whole session: a detector may have processes of its own
        if process.poll() is None or process.returncode < 0:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
        process.wait()
        process.stdout.close()


def _collect(stream: IO[bytes], deadline: float) -> dict[str, Outcome]:
    done: dict[str, Outcome] = {}
    rest = bytearray()
    with selectors.DefaultSelector() as selector:
        selector.register(stream, selectors.EVENT_READ)
        while (left := deadline - time.monotonic()) > 0:
            if not selector.select(left):
                break
            data = os.read(stream.fileno(), 1 << 16)
            if not data or len(rest) > _LONGEST_LINE:
                break
            rest += data
            while (end := rest.find(b"\n")) >= 0:
                try:
                    name, outcome = decode(bytes(rest[:end]))
                    done[name] = outcome
                except (ValueError, TypeError, KeyError):
                    return done
                del rest[: end + 1]
    return done


def die_with_parent(parent: int) -> None:
    """Have the kernel kill this process with the thread that started it: a killed harness leaves no detector.

    Args:
        parent: its process; if it is dead already, this one ends here.
    """
    ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, int(signal.SIGKILL), 0, 0, 0)
    if os.getppid() != parent:
        os._exit(1)


def main() -> int:
    """The child's side."""
    # its own output only, whatever a library prints
    out = os.fdopen(os.dup(1), "wb")
    os.dup2(2, 1)
    # from the harness itself, not from what is looked at
    parent, sys.path[:], places, evidence = pickle.load(sys.stdin.buffer)
    die_with_parent(parent)
    soft = min(_MEMORY, os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES"))
    resource.setrlimit(resource.RLIMIT_DATA, (soft, soft))
    for name, module, function in places:
        detect: Any = importlib.import_module(module)
        for part in function.split("."):
            detect = getattr(detect, part)
        out.write(encode(name, run_one(detect, evidence)).encode() + b"\n")
        out.flush()
    return 0


if __name__ == "__main__":
    sys.exit(main())

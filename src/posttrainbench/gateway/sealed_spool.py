"""Where the gateway leaves requests for evaluations, and the evaluator its results: files, so that either may die.

    RUN/gateway/sealed/jobs/JOB.json      what was asked: written by the gateway, once
    RUN/gateway/sealed/cancel/JOB         the client takes it back: written by the gateway
    RUN/gateway/sealed/running/JOB        since when: written by the evaluator
    RUN/gateway/sealed/results/JOB.json   what became of it: written by the evaluator, once
    RUN/gateway/sealed.jsonl              the evidence: a line for each evaluation that ended

One evaluation is asked for at a time. A job is there when its file is, and over when its result is.
"""

from __future__ import annotations

import json
import os
import time
from contextlib import suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from posttrainbench.files import read_json, write_json

# What the log keeps of a result; the rest is in its file.
_LOGGED = ("state", "kind", "weights", "bytes", "n", "strict", "paper", "seconds", "taken_s", "survivors", "detail")


@dataclass(frozen=True, kw_only=True)
class Job:
    """One evaluation that was asked for.

    Attributes:
        id: `call-0001` and so on.
        key: the client's name for it: the same request sent again is the same job.
        path: the model directory, as the agent sees it.
        limit: as asked; `count` is what was made of it.
        accepted: UTC.
    """

    id: str
    key: str
    path: str
    limit: int | None
    count: int
    max_tokens: int | None
    batch_size: int | None
    accepted: str


class Spool:
    """The directory of all evaluations of a run.

    Args:
        gateway: `RUN/gateway`.
    """

    def __init__(self, gateway: Path) -> None:
        self.root = gateway / "sealed"
        self.log = gateway / "sealed.jsonl"
        for name in ("jobs", "cancel", "running", "results"):
            (self.root / name).mkdir(mode=0o700, parents=True, exist_ok=True)

    def jobs(self) -> list[Job]:
        """All jobs, in the order in which they were asked for."""
        found = []
        for path in sorted((self.root / "jobs").glob("call-*.json")):
            with suppress(OSError, ValueError, TypeError):
                found.append(Job(**read_json(path)))
        return found

    def add(self, job: Job) -> None:
        """A new job; it is there when this returns."""
        write_json(self.root / "jobs" / f"{job.id}.json", asdict(job))

    def job(self, name: str) -> Job | None:
        """The job of that name."""
        with suppress(OSError, ValueError, TypeError):
            return Job(**read_json(self.root / "jobs" / f"{name}.json"))
        return None

    def result(self, name: str) -> dict[str, Any] | None:
        """What became of a job; `None` while it waits or runs."""
        with suppress(OSError, ValueError):
            value: dict[str, Any] = read_json(self.root / "results" / f"{name}.json")
            return value
        return None

    def open_job(self) -> Job | None:
        """The job without a result, if there is one."""
        ended = {path.name for path in (self.root / "results").iterdir()}
        for path in sorted((self.root / "jobs").glob("call-*.json")):
            if path.name not in ended and (job := self.job(path.stem)) is not None:
                return job
        return None

    def begin(self, job: Job) -> None:
        """Note that a job is under way."""
        (self.root / "running" / job.id).touch()

    def running(self, name: str) -> bool:
        """Whether somebody began with a job."""
        return (self.root / "running" / name).exists()

    def age(self, name: str) -> float:
        """Seconds since somebody began with a job; 0 where nobody did."""
        with suppress(OSError):
            return max(0.0, time.time() - (self.root / "running" / name).stat().st_mtime)
        return 0.0

    def cancel(self, name: str) -> None:
        """Ask for a job's end."""
        (self.root / "cancel" / name).touch()

    def cancelled(self, name: str) -> bool:
        """Whether that was asked for."""
        return (self.root / "cancel" / name).exists()

    def finish(self, job: Job, result: dict[str, Any], *, ended: str) -> None:
        """Write what became of a job, first into the log of evidence. Does nothing where it has a result."""
        if self.result(job.id) is not None:
            return
        line = {"time": ended, "event": "evaluated", "job": job.id, "path": job.path, "limit": job.limit}
        line |= {"max_tokens": job.max_tokens, "accepted": job.accepted}
        line |= {name: result[name] for name in _LOGGED if name in result}
        raw = json.dumps(line, ensure_ascii=True).encode() + b"\n"
        descriptor = os.open(self.log, os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC, 0o644)
        try:
            os.write(descriptor, raw)
            os.fsync(descriptor)
        finally:
            os.close(descriptor)
        write_json(self.root / "results" / f"{job.id}.json", result)

    def spent(self) -> float:
        """Seconds that all evaluations took so far."""
        return sum(float(result.get("seconds") or 0) for job in self.jobs() if (result := self.result(job.id)))


def read_calls(gateway: Path) -> list[dict[str, Any]]:
    """The evidence: one entry for each evaluation of a run that ended. Broken lines are left out."""
    found: list[dict[str, Any]] = []
    with suppress(OSError), (gateway / "sealed.jsonl").open("rb") as file:
        for line in file:
            with suppress(ValueError):
                value = json.loads(line)
                if isinstance(value, dict) and value.get("event") == "evaluated":
                    found.append(value)
    return found

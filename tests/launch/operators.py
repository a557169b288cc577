"""What a cluster's operators do: Slurm's own programs, and what is needed after a crash of slurmctld."""

from __future__ import annotations

import os
import subprocess
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from tests.launch.support import Lab, events


def run(lab: Lab, *command: str) -> str:
    """A program of Slurm's; its failures are those of a cluster in chaos."""
    done = subprocess.run(command, env={**os.environ, **lab.env}, capture_output=True, text=True, check=False)
    return done.stdout


@contextmanager
def operator(lab: Lab) -> Iterator[None]:
    """What a cluster's operators do after a crash of slurmctld: return drained nodes, release held jobs."""
    over = threading.Event()

    def work() -> None:
        while not over.wait(1.0):
            for node in run(lab, "sinfo", "-h", "-N", "-t", "drain", "-o", "%N").split():
                run(lab, "scontrol", "update", f"nodename={node}", "state=resume")
            for line in run(lab, "squeue", "-r", "-h", "-t", "PD", "-o", "%i|%r").splitlines():
                job, _, reason = line.partition("|")
                if "held" in reason.lower():
                    run(lab, "scontrol", "release", job)

    thread = threading.Thread(target=work, daemon=True)
    thread.start()
    try:
        yield
    finally:
        over.set()
        thread.join()


def job_of(root: Path, agent: str) -> str:
    """Id of the job in which an agent's first cell was last started; empty before that."""
    for line in events(root, key_of(agent))[::-1]:
        if line["event"] == "started":
            return str(line["job"])
    return ""


def key_of(agent: str, repeat: int = 1) -> str:
    """The key of a scripted agent's cell."""
    return f"scripted-{agent}--ptb-tiny-base--smoke-math--r{repeat}"

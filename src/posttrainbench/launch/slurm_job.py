"""Inside a Slurm job: what its environment says, how much time is left, and how it asks to be run again."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from collections.abc import Sequence

from posttrainbench.errors import InfrastructureError
from posttrainbench.launch.launcher import Part
from posttrainbench.launch.slurm import WARNING_S, Slurm
from posttrainbench.launch.slurm_rows import seconds
from posttrainbench.launch.store import SweepDirectory

_SLACK_S = 60
"""Slurm looks at its jobs every 30 s and signals early rather than late."""
_VARIABLES = {
    "job": "SLURM_JOB_ID",
    "array": "SLURM_ARRAY_JOB_ID",
    "element": "SLURM_ARRAY_TASK_ID",
    "node": "SLURMD_NODENAME",
    "restarts": "SLURM_RESTART_COUNT",
    "partition": "SLURM_JOB_PARTITION",
}


def in_job() -> dict[str, str] | None:
    """What the environment of a Slurm job says of it; `None` outside of one."""
    if "SLURM_JOB_ID" not in os.environ:
        return None
    found = {name: os.environ[variable] for name, variable in _VARIABLES.items() if variable in os.environ}
    if "array" in found and "element" in found:
        found["job"] = f"{found.pop('array')}_{found.pop('element')}"
    return found


def at_limit() -> bool:
    """Whether the job that this process is in has come to its time limit, or to the warning before it."""
    left = _left_s()
    return left is not None and left < WARNING_S + _SLACK_S


def _left_s() -> float | None:
    """Seconds to the limit: as the controller has it, which may have changed it since, else as the job was told."""
    identity = os.environ.get("SLURM_JOB_ID", "")
    code, text = _ask(["squeue", "-h", "-j", identity, "-o", "%L"])
    if code == 0 and text:
        try:
            return float(seconds(text))
        except ValueError:
            return None  # UNLIMITED, NOT_SET
    end = os.environ.get("SLURM_JOB_END_TIME", "")
    return int(end) - time.time() if end.isdigit() else None


def requeue(job: dict[str, str]) -> bool:
    """Ask Slurm to run this job again, which ends it at once. False if it does not."""
    code, text = _ask(["scontrol", "requeue", job["job"]])
    if code != 0:
        print(f"ptb: scontrol requeue {job['job']}: {text}", file=sys.stderr)
    return code == 0


def memory_bytes() -> int | None:
    """What the job may use on this node; `None` if Slurm does not limit it. Its variables are in MiB."""
    whole, each = os.environ.get("SLURM_MEM_PER_NODE", ""), os.environ.get("SLURM_MEM_PER_CPU", "")
    cpus = os.environ.get("SLURM_CPUS_ON_NODE", "")
    if whole.isdigit() and int(whole):
        return int(whole) * 2**20
    if each.isdigit() and cpus.isdigit() and int(each):
        return int(each) * int(cpus) * 2**20
    return None


def elsewhere(sweep: SweepDirectory, key: str, job: dict[str, str]) -> bool:
    """Hand the cell to a new job on other nodes, that begins when this one has ended. False if there are none.

    A requeued job could not be kept off its node: only waiting jobs take a list of nodes to avoid, and the requeueing kills
    whoever would give it.
    """
    others = ["-p", job["partition"]] if "partition" in job else []
    code, nodes = _ask(["sinfo", "-h", "-N", "-o", "%N", *others])
    if code != 0 or not set(nodes.split()) - set(sweep.cell(key).left_nodes()):
        return False
    return _submit(sweep, key, options=[f"--dependency=afterany:{job['job']}"])


def ensure_evaluation(sweep: SweepDirectory, key: str) -> None:
    """See to it that a job waits to evaluate this cell. There is one, unless whoever submitted this job died before that.

    Where nodes may not submit, `ptb sweep resume` does it.
    """
    slurm = Slurm(sweep, sweep.plan["launcher"])
    try:
        job = slurm.jobs().get(key)
    except InfrastructureError as error:
        print(f"ptb: is there an evaluation job? {error}", file=sys.stderr)
        return
    known = () if job is None else (job, *job.others)
    if not any(one.part is Part.EVALUATION and one.state != "ended" for one in known):
        _submit(sweep, key)


def _submit(sweep: SweepDirectory, key: str, *, options: Sequence[str] = ()) -> bool:
    # sbatch in a job takes many of its defaults from that job's variables
    for name in [name for name in os.environ if name.startswith(("SLURM_", "SBATCH_")) and name != "SLURM_CONF"]:
        del os.environ[name]
    try:
        Slurm(sweep, sweep.plan["launcher"]).submit([key], options=options)
    except InfrastructureError as error:
        print(f"ptb: {key} could not be submitted from here: {error}", file=sys.stderr)
        return False
    return True


def _ask(command: Sequence[str]) -> tuple[int, str]:
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
    except (OSError, subprocess.TimeoutExpired) as error:
        return 1, str(error)
    return done.returncode, (done.stdout if done.returncode == 0 else done.stderr).strip()

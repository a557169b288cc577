"""Launcher `htcondor`: the same contract with HTCondor's own programs. A job carries the sweep's and the cell's name as
attributes, so it is found in the queue and in the history whoever submitted it.
"""

from __future__ import annotations

import json
import os
import re
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

from posttrainbench.errors import ConfigurationError, InfrastructureError
from posttrainbench.launch.engine import call, cell_command
from posttrainbench.launch.failures import Failure
from posttrainbench.launch.launcher import Job
from posttrainbench.launch.store import SweepDirectory

_MARGIN_H = 4.0
_SECRET = re.compile(r"(?i)(key|token|secret|password|credential)s?$")
_GRACE_S = 120
# JobStatus: https://htcondor.readthedocs.io/en/latest/codes-other-values/job-status-codes.html
_STATES: Mapping[int, tuple[Literal["queued", "running", "ended"], str]] = {
    1: ("queued", "idle"),
    2: ("running", "running"),
    3: ("ended", "removed"),
    4: ("ended", "completed"),
    5: ("queued", "held"),
    6: ("running", "transferring output"),
    7: ("running", "suspended"),
}
_ASKED = (
    "PtbCell,ClusterId,ProcId,JobStatus,ExitCode,ExitBySignal,ExitSignal,NumJobStarts,RemoteHost,LastRemoteHost,"
    "HoldReason,HoldReasonCode,HoldReasonSubCode,LastHoldReason,LastHoldReasonCode,LastHoldReasonSubCode,"
    "RemoteWallClockTime"
)
AGAIN = 75
"""EX_TEMPFAIL: a job that ends with it is to be run again."""
# HoldReasonCode: https://htcondor.readthedocs.io/en/latest/codes-other-values/hold-reason-codes.html
_HOLDS = {46: Failure.TIME_LIMIT, 47: Failure.TIME_LIMIT, 34: Failure.OUT_OF_MEMORY}
# a startd without cgroups holds by its policy HOLD_IF_MEMORY_EXCEEDED: code 21, and this subcode
_STARTD, _MEMORY = 21, 102
_BY_USER = 1
_SAME_NODE_S = 600
"""A job that ran before leaves its node to others for so long, then takes it again: a pool may have no other."""
# a slot's name is slot1_2@MACHINE, or slot1_2@STARTD@MACHINE where a machine has several
_NODE = 'regexps("^[^@]*@(.*)$", {}, "\\1")'
_SLACK_S = 30.0


class HTCondor:
    """Implements `Launcher` with `condor_submit`, `condor_q`, `condor_history` and `condor_rm`."""

    def __init__(self, sweep: SweepDirectory, settings: Mapping[str, Any]) -> None:
        """Nothing is asked yet; `settings` is the [launcher] table."""
        self._sweep, self._settings = sweep, settings

    def check(self) -> list[str]:
        """Is there a pool that answers?"""
        try:
            call(["condor_status", "-total"])
        except InfrastructureError as error:
            return [f"HTCondor: {error}"]
        return []

    def submit(self, keys: Sequence[str], *, hold: int | None = None) -> None:
        """Submit cells, one transaction for each shape.

        Raises:
            InfrastructureError: HTCondor refused.
        """
        shapes: dict[tuple[int, float, tuple[str, ...]], list[str]] = {}
        for key in keys:
            cell = self._sweep.cells[key]
            shape = (cell.gpus, cell.spec.hours, tuple(self._sweep.cell(key).left_nodes()))
            shapes.setdefault(shape, []).append(key)
        for (gpus, hours, avoid), members in shapes.items():
            for key in members:
                self._sweep.cell(key).work.mkdir(parents=True, exist_ok=True)
            text = self.description(members, gpus=gpus, hours=hours, avoid=avoid)
            call(["condor_submit", "-terse", "-"], text=text, hold=hold)

    def description(self, keys: Sequence[str], *, gpus: int, hours: float, avoid: Sequence[str] = ()) -> str:
        """The submit description of some cells.

        Args:
            keys: which.
            gpus: of each.
            hours: of its agent.
            avoid: nodes that do not do, while there are others.

        Raises:
            ConfigurationError: a path cannot be written in one.
        """
        program, *arguments = cell_command(self._sweep.root, "$(cell)", gpus=gpus)
        texts = [program, *arguments, str(self._sweep.root), str(self._settings.get("setup", ""))]
        if any(character in text for text in texts for character in '"\n'):
            raise ConfigurationError("a submit description cannot hold paths or commands with quotes or line ends")
        if "setup" in self._settings:
            line = f"{self._settings['setup']} && exec " + " ".join([program, *arguments])
            program, arguments = "/bin/bash", ["-c", line]
        cells = self._sweep.state / "cells"
        seconds = int((hours + self._settings.get("margin_h", _MARGIN_H)) * 3600)
        lines = [
            "universe = vanilla",
            f"executable = {program}",
            f'arguments = "{" ".join(_quoted(argument) for argument in arguments)}"',
            "transfer_executable = False",
            "should_transfer_files = NO",
            f"getenv = {', '.join(_environment())}",
            f"initialdir = {self._sweep.root}",
            f"output = {cells}/$(cell)/condor.out",
            f"error = {cells}/$(cell)/condor.err",
            f"log = {cells}/$(cell)/condor.log",
            f"request_cpus = {self._settings.get('cpus', 1)}",
            # without the unit HTCondor reads MiB for memory and KiB for disk
            f"request_memory = {int(self._settings.get('memory_gib', 1) * 1024)}M",
            f"request_disk = {int(self._settings.get('disk_gib', 1) * 1024)}M",
            # not allowed_execute_duration: it is never kept for a job that begins in the second in which its shadow was born
            # (`beganExecuting > birthday` in user_job_policy.cpp, 23.9), as jobs without file transfer do
            f"allowed_job_duration = {seconds}",
            "kill_sig = SIGTERM",
            f"job_max_vacate_time = {_GRACE_S}",
            "stream_output = True",
            # our word for "run me again": the job goes back into the queue
            f"on_exit_remove = ExitCode =!= {AGAIN}",
            # a job that is held (out of time, out of memory, no such file) waits for ever; what follows is ours to decide.
            # Whom a person holds, a person releases.
            f"periodic_remove = JobStatus == 5 && HoldReasonCode =!= {_BY_USER}",
            f'+PtbSweep = "{self._sweep.root}"',
            '+PtbCell = "$(cell)"',
        ]
        if gpus:
            lines.append(f"request_gpus = {gpus}")
        own = f"({self._settings['requirements']}) && " if "requirements" in self._settings else ""
        lines.append(f"requirements = {own}{_another(avoid)}")
        lines += list(self._settings.get("options", ()))
        return "\n".join([*lines, f"queue cell in ({', '.join(keys)})", ""])

    def jobs(self) -> Mapping[str, Job]:
        """Jobs by cell; the queue counts more than the history, and is read first: jobs go only from it to there."""
        ours = f'PtbSweep == "{self._sweep.root}"'
        found: dict[str, Job] = {}
        for program in (["condor_q"], ["condor_history"]):
            text = call([*program, "-constraint", ours, "-json", "-attributes", _ASKED])
            for row in json.loads(text or "[]"):
                job, key = _job(row), str(row["PtbCell"])
                before = found.get(key)
                # a job that is alive counts more than any that ended, and the newest of those
                if before is None or (before.state == "ended" and (job.state != "ended" or _newer(job, before))):
                    found[key] = job
        return found

    def cancel(self, keys: Sequence[str]) -> None:
        """Remove jobs; those that run get SIGTERM and their grace."""
        jobs = self.jobs()
        active = [jobs[key].id for key in keys if key in jobs and jobs[key].state != "ended"]
        for start in range(0, len(active), 500):
            call(["condor_rm", *active[start : start + 500]])


def _another(avoid: Sequence[str]) -> str:
    """The requirement that a job that ran before, and cells that have left nodes, get others; for a while."""
    here = _NODE.format("TARGET.Name")
    nodes = sorted({name.partition("@")[2] for name in avoid})
    left = "".join(f' && {here} =!= "{node}"' for node in nodes)
    before = f"(MY.LastRemoteHost =?= undefined || {here} =!= {_NODE.format('MY.LastRemoteHost')})"
    return f"(({before}{left}) || time() - MY.EnteredCurrentStatus > {_SAME_NODE_S})"


def _job(row: Mapping[str, Any]) -> Job:
    status = int(row["JobStatus"])
    state, word = _STATES.get(status, ("ended", f"status {status}"))
    now = "HoldReason" if row.get("HoldReason") else "LastHoldReason"
    hold, code, subcode = (row.get(f"{now}{part}") for part in ("", "Code", "SubCode"))
    names = {
        "exit": "ExitCode",
        "signal": "ExitSignal",
        "starts": "NumJobStarts",
        "elapsed_s": "RemoteWallClockTime",
    }
    booked = {name: row[attribute] for name, attribute in names.items() if attribute in row}
    return Job(
        state=state,
        id=f"{row['ClusterId']}.{row['ProcId']}",
        node=str(row.get("RemoteHost") or row.get("LastRemoteHost") or ""),
        detail=f"{word}: {hold}" if hold and (word == "held" or code != _BY_USER) else word,
        booked={"state": word, **booked},
        failure=_failure(status, int(code or 0), int(subcode or 0)) if state == "ended" else None,
    )


def _failure(status: int, code: int, subcode: int) -> Failure | None:
    """What the end of a job means that has not said so itself; `None` where a person ended it."""
    if (code, subcode) == (_STARTD, _MEMORY):
        return Failure.OUT_OF_MEMORY
    if code not in (0, _BY_USER):
        return _HOLDS.get(code, Failure.LOST)
    return None if status == 3 else Failure.LOST


def _newer(job: Job, other: Job) -> bool:
    one, two = ([int(part) for part in each.id.split(".")] for each in (job, other))
    return one > two


def _environment() -> list[str]:
    """Variables that a job gets. Everybody in a pool can read them in the job's description, so keys are not among them:
    they come from a file, `PTB_KEYS_FILE`, or from `launcher.setup`."""
    return sorted(
        name
        for name in os.environ
        if name in ("HOME", "USER", "LOGNAME", "PATH", "LANG", "SSL_CERT_FILE", "SSL_CERT_DIR")
        or (name.startswith(("PTB_", "HF_HOME", "HF_HUB_")) and not _SECRET.search(name))
    )


def _quoted(argument: str) -> str:
    """An argument in HTCondor's new syntax: single quotes, doubled inside."""
    return "'" + argument.replace("'", "''") + "'"


def in_job() -> dict[str, str]:
    """What HTCondor says of the job that runs here; empty outside of one."""
    ad = _ad()
    if not ad:
        return {}
    names = {"NumJobStarts": "starts", "RemoteHost": "node"}
    found = {name: ad[attribute] for attribute, name in names.items() if attribute in ad}
    return {"kind": "htcondor", "job": f"{ad.get('ClusterId', '')}.{ad.get('ProcId', '')}", **found}


def at_limit() -> bool:
    """Whether the job that this process is in has run for as long as it may: then it is held, after a SIGTERM."""
    allowed = _ad().get("AllowedJobDuration", "")
    return allowed.isdigit() and _age_s() > int(allowed) - _SLACK_S


def _age_s() -> float:
    """Seconds since this process began, which is when the job did."""
    ticks = int(Path("/proc/self/stat").read_text(errors="replace").rpartition(")")[2].split()[19])
    return time.clock_gettime(time.CLOCK_BOOTTIME) - ticks / os.sysconf("SC_CLK_TCK")


def _ad() -> dict[str, str]:
    """The job's description, from the file that `_CONDOR_JOB_AD` names."""
    name = os.environ.get("_CONDOR_JOB_AD")
    try:
        lines = Path(name).read_text(encoding="utf-8", errors="replace").splitlines() if name else []
    except OSError:
        lines = []
    pairs = (line.partition(" = ") for line in lines)
    return {attribute: value.strip('"') for attribute, _, value in pairs}

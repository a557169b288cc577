"""Launcher `slurm`: the cluster owns the jobs. Only `sbatch`, `squeue` with formats and `sacct -P` are used, which read the
same in 22.05 and 24.11 (the output of `--json` does not).

Cells of one shape go as one array. Which array element is which cell stands in a file that is written before the array is
submitted, named like the array, so that jobs are found again whoever submitted them and wherever he died.
"""

from __future__ import annotations

import re
import secrets
import shlex
import sys
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from posttrainbench.errors import InfrastructureError
from posttrainbench.files import read_json, write_json
from posttrainbench.launch.engine import call
from posttrainbench.launch.launcher import Job, Part
from posttrainbench.launch.settings import evaluation_gpus, evaluation_place
from posttrainbench.launch.slurm_rows import gpus_of, job_of, members, number_of
from posttrainbench.launch.store import SweepDirectory

_LARGEST_ARRAY = 1000  # Slurm's default MaxArraySize is 1001, and indices begin at 0
_MARGIN_H = 4.0
"""Added to the agent's hours for audit, evaluation and Slurm's own slack (it looks at limits every 30 s or so)."""
_AGENT_MARGIN_H = 1.0
"""The same where audit and evaluation are jobs of their own: preparing, the agent's grace, collecting."""
WARNING_S = 120
"""SIGTERM comes so long before the limit."""
_GONE = "Invalid job id"
_NO_ACCOUNTING = "accounting storage is disabled"
# fields of `squeue -O` come in columns of fixed width; none of these can be longer
_WIDE = 128
_SQUEUE = ("Name", "JobArrayID", "State", "Reason", "NodeList", "TimeUsed", "exit_code", "RestartCnt")
_SACCT = ("jobname", "jobid", "state", "nodelist", "elapsedraw", "exitcode")


class Slurm:
    """Implements `Launcher` with a Slurm cluster, as a plain user, with or without accounting."""

    def __init__(self, sweep: SweepDirectory, settings: Mapping[str, Any]) -> None:
        """Nothing is asked yet.

        Args:
            sweep: the sweep; its directory must be on a file system that all nodes share.
            settings: the [launcher] table.
        """
        self._sweep, self._settings = sweep, settings
        self._prefix = f"ptb:{sweep.root.name}:"

    @property
    def _batches(self) -> Path:
        return self._sweep.state / "slurm"

    def check(self) -> list[str]:
        """Is there a controller that answers, are the partitions known, do they offer enough GPUs?"""
        try:
            partitions = [line.split("|") for line in call(["sinfo", "-h", "-o", "%P|%G"]).splitlines()]
        except InfrastructureError as error:
            return [f"Slurm: {error}"]
        gpus = [cell.gpus for cell in self._sweep.cells.values()]
        found = _lacking(partitions, self._settings, max(gpus, default=0), what="a run")
        if self._split:
            most = max((evaluation_gpus(self._settings, count) for count in gpus), default=0)
            found += _lacking(partitions, evaluation_place(self._settings), most, what="an evaluation")
        return found

    # -- submitting

    @property
    def _split(self) -> bool:
        return "evaluation" in self._settings

    def submit(self, keys: Sequence[str], *, hold: int | None = None, options: Sequence[str] = ()) -> None:
        """Submit cells as arrays, one for each shape (part, GPUs, hours), with further `options` of sbatch.

        With evaluation jobs of their own, each agents' array is followed by one of the same size whose elements wait for
        theirs; Slurm removes those whose agent's job fails. A cell with a submission that waits gets only the second.

        Raises:
            InfrastructureError: Slurm refused; what was submitted before stays submitted and is found again.
        """
        shapes: dict[_Shape, list[str]] = {}
        for key in keys:
            cell, place = self._sweep.cells[key], self._sweep.cell(key)
            part = Part.WHOLE if not self._split else Part.EVALUATION if place.collected else Part.AGENT
            shape = _Shape(part=part, gpus=cell.gpus, hours=cell.spec.hours, avoid=tuple(place.left_nodes()))
            shapes.setdefault(shape, []).append(key)
        largest = self._largest_array() if shapes else 0
        for shape, group in shapes.items():
            own = [*options, *self._elsewhere(shape)]
            for start in range(0, len(group), largest):
                batch = group[start : start + largest]
                array = self._submit_array(batch, shape, hold=hold, options=own)
                if shape.part is Part.AGENT:
                    waits = [f"--dependency=aftercorr:{array}", "--kill-on-invalid-dep=yes"]
                    self._submit_array(batch, replace(shape, part=Part.EVALUATION), hold=hold, options=waits)

    def _elsewhere(self, shape: _Shape) -> list[str]:
        """The option that keeps jobs off nodes, unless no others are left, where it would keep them waiting for ever."""
        if not shape.avoid:
            return []
        settings = evaluation_place(self._settings) if shape.part is Part.EVALUATION else self._settings
        rows = [line.split("|") for line in call(["sinfo", "-h", "-N", "-o", "%N|%P"]).splitlines()]
        asked = settings.get("partition")
        wanted = set(asked.split(",")) if asked else {name[:-1] for _, name in rows if name.endswith("*")}
        nodes = {node for node, name in rows if name.rstrip("*") in wanted}
        return [f"--exclude={','.join(sorted(shape.avoid))}"] if nodes - set(shape.avoid) else []

    def _largest_array(self) -> int:
        found = re.search(r"^MaxArraySize\s*=\s*(\d+)", call(["scontrol", "show", "config"]), re.MULTILINE)
        return max(1, min(_LARGEST_ARRAY, int(found[1]) - 1)) if found else _LARGEST_ARRAY

    def _submit_array(self, keys: Sequence[str], shape: _Shape, *, hold: int | None, options: Sequence[str]) -> str:
        batch = secrets.token_hex(4)
        self._batches.mkdir(parents=True, exist_ok=True)
        # before the submission: an array without its list could not be read, a list without its array does no harm
        write_json(self._batches / f"{batch}.json", {"keys": list(keys), "part": str(shape.part)})
        command = [*self._sbatch(batch, len(keys), shape), *options]
        said = call(command, text=self._script(batch, shape), hold=hold)
        return said.strip().partition(";")[0]

    def _place(self, shape: _Shape) -> tuple[Mapping[str, Any], int, float]:
        """Settings, GPUs and hours of a job."""
        if shape.part is Part.EVALUATION:
            settings = evaluation_place(self._settings)
            return settings, evaluation_gpus(self._settings, shape.gpus), settings["hours"]
        margin = _MARGIN_H if shape.part is Part.WHOLE else _AGENT_MARGIN_H
        return self._settings, shape.gpus, shape.hours + self._settings.get("margin_h", margin)

    def _sbatch(self, batch: str, count: int, shape: _Shape) -> list[str]:
        settings, gpus, hours = self._place(shape)
        command = [
            "sbatch",
            "--parsable",
            f"--job-name={self._prefix}{batch}",
            f"--array=0-{count - 1}",
            "--requeue",
            "--open-mode=append",
            f"--output={self._batches}/{batch}-%a.log",
            f"--chdir={self._sweep.root}",
            f"--time={int(hours * 60) + 1}",
            # B: to the batch shell, which is `exec`ed into our runner; without it a batch script gets no signal at all
            f"--signal=B:TERM@{WARNING_S}",
        ]
        if gpus:
            kind = f":{settings['gpu_type']}" if "gpu_type" in settings else ""
            command.append(f"--gres=gpu{kind}:{gpus}")
        if "cpus" in settings:
            command.append(f"--cpus-per-task={settings['cpus']}")
        if "memory_gib" in settings:
            command.append(f"--mem={int(settings['memory_gib'] * 1024)}M")
        command += [f"--{name}={settings[name]}" for name in ("partition", "account", "qos") if name in settings]
        return [*command, *settings.get("options", ())]

    def _script(self, batch: str, shape: _Shape) -> str:
        settings, gpus, _ = self._place(shape)
        run = [sys.executable, "-m", "posttrainbench", "sweep", "run-cell", str(self._sweep.root)]
        lines = ["#!/bin/bash"]
        if "setup" in settings:
            lines.append(str(settings["setup"]))
        list_file = shlex.quote(str(self._batches / f"{batch}.json"))
        lines.append(
            f'exec {shlex.join(run)} --batch {list_file} "$SLURM_ARRAY_TASK_ID" --gpus count:{gpus} --part {shape.part}'
        )
        return "\n".join(lines) + "\n"

    # -- looking

    def jobs(self) -> Mapping[str, Job]:
        """Jobs by cell. What squeue lists counts more than the accounting, whose NODE_FAIL may be about to run again."""
        lists = {path.stem: read_json(path) for path in self._batches.glob("*.json")}
        if not lists:
            return {}
        by_element: dict[str, tuple[str, Job]] = {}
        for row in [*self._booked(lists), *self._listed()]:
            batch = lists.get(row["name"].removeprefix(self._prefix), {})
            for key, element in members(batch.get("keys"), row["id"]):
                by_element[element] = (key, job_of(row, element, Part(batch.get("part", Part.WHOLE))))
        found: dict[str, list[Job]] = {}
        for key, job in by_element.values():
            found.setdefault(key, []).append(job)
        return {key: _first(jobs) for key, jobs in found.items()}

    def _listed(self) -> Iterator[dict[str, str]]:
        names = ("name", "id", "state", "reason", "node", "elapsed", "exit", "restarts")
        text = call(["squeue", "--me", "-r", "-h", "-t", "all", "-O", ",".join(f"{name}:{_WIDE}" for name in _SQUEUE)])
        for line in text.splitlines():
            row = {name: line[i * _WIDE : (i + 1) * _WIDE].strip() for i, name in enumerate(names)}
            if row["name"].startswith(self._prefix):
                yield row

    def _booked(self, lists: Mapping[str, Any]) -> Iterator[dict[str, str]]:
        names = ("name", "id", "state", "node", "elapsed", "exit")
        attempts: Counter[str] = Counter()
        asked = ",".join(self._prefix + batch for batch in lists)
        text = call(
            ["sacct", "-X", "-D", "-n", "-P", "-S", "now-90days", f"--name={asked}", "-o", ",".join(_SACCT)],
            allow=_NO_ACCOUNTING,
        )
        for line in text.splitlines():
            row = dict(zip(names, line.split("|"), strict=True))
            if row["name"].startswith(self._prefix):
                # one line for each time that it was started, the last one last; "CANCELLED by 1000"
                attempts[row["id"]] += 1
                restarts = str(attempts[row["id"]] - 1)
                yield {**row, "state": row["state"].partition(" ")[0], "restarts": restarts}

    def cancel(self, keys: Sequence[str]) -> None:
        """Tell the jobs: those that run get SIGTERM first, as before their time limit."""
        jobs = self.jobs()
        active = [job for key in keys if key in jobs for job in (jobs[key], *jobs[key].others) if job.state != "ended"]
        waiting = [job.id for job in active if job.state == "queued"]
        running = [job.id for job in active if job.state == "running"]
        for command, ids in ((["scancel"], waiting), (["scancel", "--batch", "--signal=TERM"], running)):
            for start in range(0, len(ids), 500):
                self._tell(command, ids[start : start + 500])

    def _tell(self, command: Sequence[str], ids: Sequence[str]) -> None:
        """Name some jobs to scancel, which has no good word for those that have ended since they were looked at."""
        try:
            call([*command, *ids])
        except InfrastructureError as error:
            if _GONE not in str(error):
                raise
            for one in ids if len(ids) > 1 else ():
                self._tell(command, [one])


@dataclass(frozen=True, kw_only=True)
class _Shape:
    """What the jobs of an array have in common; `gpus` and `hours` are the agent's."""

    part: Part
    gpus: int
    hours: float
    avoid: tuple[str, ...]


def _first(jobs: Sequence[Job]) -> Job:
    """The job that says where its cell stands: one that is alive, the agent's before its evaluation; else the newest that
    ended by itself. Slurm removes an evaluation job whose agent's job failed: that one says why."""

    def weight(job: Job) -> tuple[int, int]:
        if job.state != "ended":
            return (2 if job.part is Part.EVALUATION else 3), number_of(job.id)
        return int(job.failure is not None), number_of(job.id)

    *others, first = sorted(jobs, key=weight)
    return replace(first, others=tuple(others))


def _lacking(partitions: Sequence[Sequence[str]], place: Mapping[str, Any], most: int, *, what: str) -> list[str]:
    """What a job would miss: a partition that is not there, GPUs that no node has."""
    names = {name.rstrip("*") for name, _ in partitions}
    asked = str(place.get("partition", ""))
    wanted = set(asked.split(",")) if asked else {name[:-1] for name, _ in partitions if name.endswith("*")} or names
    if not wanted <= names:
        return [f"Slurm has no partition {asked!r}; known: {', '.join(sorted(names))}"]
    offered = max((gpus_of(gres) for name, gres in partitions if name.rstrip("*") in wanted), default=0)
    if most <= offered:
        return []
    has = f"at most {offered} GPUs" if offered else "no GPUs"
    key = "run.gpus" if what == "a run" else "launcher.evaluation.gpus"
    return [
        f"{what} needs {most} GPUs and a node of {', '.join(sorted(wanted))} has {has} (gres gpu); "
        f"lower {key} or choose another partition"
    ]

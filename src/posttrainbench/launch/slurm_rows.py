"""What Slurm's programs print, as jobs of cells: the columns of squeue, the lines of sacct, states, times, GPUs."""

from __future__ import annotations

import contextlib
import re
from collections.abc import Mapping, Sequence
from typing import Any, Literal

from posttrainbench.launch.failures import Failure
from posttrainbench.launch.launcher import Job, Part

_QUEUED = {"PENDING", "CONFIGURING", "REQUEUED", "REQUEUE_HOLD", "REQUEUE_FED", "SPECIAL_EXIT", "RESV_DEL_HOLD"}
_RUNNING = {"RUNNING", "COMPLETING", "SUSPENDED", "STOPPED", "SIGNALING", "STAGE_OUT", "RESIZING"}
_ENDS = {"TIMEOUT": Failure.TIME_LIMIT, "DEADLINE": Failure.TIME_LIMIT, "OUT_OF_MEMORY": Failure.OUT_OF_MEMORY}
_NEVER = "DependencyNeverSatisfied"
"""Such a job is about to be removed, as it was asked to be: what it waits for has failed."""
_ELEMENT = re.compile(r"(\d+)_(\d+)$")
_PENDING = re.compile(r"(\d+)_\[([\d,-]+)(?:%\d+)?\]$")


def gpus_of(gres: str) -> int:
    """GPUs in `gpu:a100:4(S:0-1),mps:400`."""
    counts = re.findall(r"(?:^|,)gpu(?::[^:,()]+)?:(\d+)", gres)
    return sum(map(int, counts))


def job_of(row: Mapping[str, str], element: str, part: Part) -> Job:
    """One line as a job; `element` is its id with one index."""
    state = row["state"]
    kind: Literal["queued", "running", "ended"]
    kind = "queued" if state in _QUEUED else "running" if state in _RUNNING else "ended"
    if kind == "queued" and row.get("reason") == _NEVER:
        kind, state = "ended", "CANCELLED"
    detail = f"{state} ({row['reason']})" if kind == "queued" and row.get("reason") else state
    booked: dict[str, Any] = {name: row[name] for name in ("exit", "restarts") if row.get(name)}
    with contextlib.suppress(ValueError):
        booked["elapsed_s"] = seconds(row["elapsed"])
    node = row["node"] if row["node"] not in ("(null)", "None assigned") else ""
    failure = _ENDS.get(state, Failure.LOST) if kind == "ended" and state != "CANCELLED" else None
    booked["state"] = state
    return Job(state=kind, id=element, node=node, detail=detail, booked=booked, failure=failure, part=part)


def members(keys: Sequence[str] | None, identity: str) -> list[tuple[str, str]]:
    """Cells of one line: `12_3`, or `12_[4-7,9]` for elements that wait."""
    if keys is None:
        return []
    single = _ELEMENT.match(identity)
    if single:
        index = int(single[2])
        return [(keys[index], identity)] if index < len(keys) else []
    waiting = _PENDING.match(identity)
    if waiting is None:
        return []
    return [(keys[i], f"{waiting[1]}_{i}") for i in _indices(waiting[2]) if i < len(keys)]


def seconds(text: str) -> int:
    """Slurm's `1-02:03:04`, `3:04`, or plain seconds, as seconds.

    Raises:
        ValueError: none of these (UNLIMITED, NOT_SET).
    """
    days, _, clock = text.rpartition("-")
    total = 0
    for part in clock.split(":"):
        total = total * 60 + int(part)
    return total + int(days or 0) * 86400


def number_of(element: str) -> int:
    """The array's id, which grows with time."""
    return int(element.partition("_")[0])


def _indices(text: str) -> list[int]:
    """`4-7,9` as numbers."""
    found: list[int] = []
    for part in text.split(","):
        first, _, last = part.partition("-")
        found += range(int(first), int(last or first) + 1)
    return found

"""Where a sweep stands: one state per cell, from the results, the history and what the engine knows."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from datetime import datetime
from typing import Any

from posttrainbench.files import read_json
from posttrainbench.launch.launcher import Job, Part
from posttrainbench.launch.store import CellDirectory, SweepDirectory
from posttrainbench.pipeline.run_dir import STAGES

OVER = ("scored", "flagged", "no_submission", "unloadable", "infra_error", "failed")
"""States in which a cell is over."""
RESTING = (*OVER, "cancelled")
"""States in which nothing more will happen by itself."""


@dataclass(frozen=True, kw_only=True)
class CellStatus:
    """One line of `ptb sweep status`.

    Attributes:
        state: status of the result, or `failed` (given up without one), `cancelled` (by name, until `resume`), `running`,
            `queued`, `open` (not submitted).
        stage: of a running cell; `evaluation` for one that waits for its evaluation job.
        left_s: seconds of the agent's time left, while it works.
        detail: why it failed, where it runs.
    """

    key: str
    state: str
    stage: str = ""
    left_s: float | None = None
    detail: str = ""

    def as_json(self) -> dict[str, Any]:
        """Plain data."""
        return asdict(self)


def cell_status(cell: CellDirectory, job: Job | None) -> CellStatus:
    """Where one cell stands."""
    try:
        result = read_json(cell.result / "result.json")
    except FileNotFoundError:
        result = None
    except (OSError, ValueError) as error:
        return CellStatus(key=cell.key, state="failed", detail=f"result.json cannot be read: {error}")
    if result is not None:
        detail = (result.get("error") or "") if result["status"] == "infra_error" else _score(result)
        return CellStatus(key=cell.key, state=str(result["status"]), detail=str(detail))
    failed = cell.failed
    if failed is not None:
        return CellStatus(key=cell.key, state="failed", detail=f"{failed['failure']}: {failed['error']}")
    if cell.cancelled_file.exists() and (job is None or job.state != "running"):
        return CellStatus(key=cell.key, state="cancelled")
    if job is None or job.state == "ended":
        waits = "evaluation" if cell.collected else ""
        return CellStatus(key=cell.key, state="open", stage=waits, detail=job.detail if job else "")
    if job.state == "queued":
        waits = "evaluation" if job.part is Part.EVALUATION else ""
        return CellStatus(key=cell.key, state="queued", stage=waits, detail=job.detail)
    stage, left = _stage(cell)
    return CellStatus(key=cell.key, state="running", stage=stage, left_s=left, detail=job.node or job.id)


def _score(result: Mapping[str, Any]) -> str:
    own = result.get("own_score")
    return "" if own is None else f"{own:.1%}"


def _stage(cell: CellDirectory) -> tuple[str, float | None]:
    """Stage and time left of the attempt that goes on; the newest one may be of an earlier job still."""
    attempts = sorted(cell.attempts.glob("[!.]*/run.json"))
    if not attempts or not cell.begun:
        return "prepare", None
    try:
        record = read_json(attempts[-1])
    except (OSError, ValueError):
        return "", None
    begun = max(event["time"] for event in cell.events() if event["event"] == "started")
    if record.get("engine", {}).get("since", "") < begun:
        return "prepare", None
    stages = record["stages"]
    current = next((name for name in STAGES if stages.get(name, {}).get("status") != "done"), STAGES[-1])
    left = None
    started = stages.get("solve", {}).get("started")
    if current == "solve" and started:
        began = datetime.fromisoformat(started).timestamp()
        left = max(0.0, began + record["spec"]["hours"] * 3600 - time.time())
    return current, left


def sweep_status(sweep: SweepDirectory, jobs: Mapping[str, Job]) -> list[CellStatus]:
    """Where every cell stands, in the order of the plan."""
    return [cell_status(sweep.cell(key), jobs.get(key)) for key in sweep.cells]


def counts(statuses: list[CellStatus]) -> Counter[str]:
    """How many cells are in each state."""
    return Counter(status.state for status in statuses)

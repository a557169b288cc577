"""What a sweep would take: cells, GPU hours and, where a published agent fits, an estimate of its API cost."""

from __future__ import annotations

from collections import Counter
from typing import Any

from posttrainbench.launch.settings import evaluation_gpus, evaluation_place
from posttrainbench.launch.sweepfile import Cell, Sweep
from posttrainbench.leaderboard import published
from posttrainbench.scaffolds import parse_agent

_EVALUATION_H = 0.5
"""A guess at audit and evaluation of one run on one GPU, said as such: the published 4 h were one request at a time."""
_PUBLISHED_H, _PUBLISHED_CELLS = 10.0, 28


def published_cost(cell: Cell) -> float | None:
    """USD that a run of this agent cost in the published evaluation, scaled to the cell's hours; `None` if unknown.

    The published figures are for all 28 cells of 10 hours each (paper, section 2.2); the middle of a range is taken, and the
    upper bound where only that is given.
    """
    spec = cell.spec
    agent = parse_agent(
        spec.agent, model=spec.agent_model, effort=spec.effort, reprompt=spec.reprompt, subscription=spec.subscription
    )
    if agent.subscription:
        return None
    keys = {entry.key for entry in published.agents() if (entry.scaffold, entry.model) == (agent.scaffold, agent.model)}
    for row in published.table("costs"):
        if row["kind"] == "api" and row["per"] == "run" and keys & set(row["agents"].split()):
            known = [float(row[bound]) for bound in ("usd_low", "usd_high") if row[bound]]
            return sum(known) / len(known) / _PUBLISHED_CELLS * min(1.0, spec.hours / _PUBLISHED_H)
    return None


def describe(sweep: Sweep) -> tuple[str, dict[str, Any]]:
    """The plan as text and as plain data."""
    agents = Counter(cell.agent for cell in sweep.cells)
    split = "evaluation" in sweep.launcher
    gpu_hours = sum(
        cell.gpus * cell.spec.hours
        + (evaluation_gpus(sweep.launcher, cell.gpus) if split else cell.gpus) * _EVALUATION_H
        for cell in sweep.cells
    )
    by_kind: dict[tuple[str, float], float | None] = {}
    for cell in sweep.cells:
        if (cell.agent, cell.spec.hours) not in by_kind:
            by_kind[cell.agent, cell.spec.hours] = published_cost(cell)
    costs = {cell.key: by_kind[cell.agent, cell.spec.hours] for cell in sweep.cells}
    known = [cost for cost in costs.values() if cost is not None]
    lines = [f"{cell.key}  {cell.spec.hours:g} h  {cell.gpus} GPU" for cell in sweep.cells]
    lines += [
        "",
        f"{len(sweep.cells)} cells: "
        + ", ".join(f"{count} of {agent}" for agent, count in agents.items())
        + f"; launcher {sweep.launcher['kind']}; results in {sweep.root}",
        f"at most {gpu_hours:.1f} GPU hours ({_EVALUATION_H:g} h for audit and evaluation of each run is a guess)",
    ]
    if split:
        place = evaluation_place(sweep.launcher)
        most = max(evaluation_gpus(sweep.launcher, cell.gpus) for cell in sweep.cells)
        lines.append(
            f"audit and evaluation in jobs of their own: {most} GPU, partition {place.get('partition', '(default)')}, "
            f"at most {place['hours']:g} h"
        )
    if known:
        rest = len(costs) - len(known)
        lines.append(
            f"about {sum(known):.0f} USD of API cost: an estimate from the published evaluation"
            + (f"; nothing is known of {rest} cells" if rest else "")
        )
    elif any(cell.spec.agent.partition(":")[0] != "scripted" for cell in sweep.cells):
        lines.append("the API cost cannot be estimated: these agents are not among the published ones")
    data = {
        "name": sweep.name,
        "root": str(sweep.root),
        "launcher": dict(sweep.launcher),
        "cells": [{**cell.as_json(), "estimated_usd": costs[cell.key]} for cell in sweep.cells],
        "gpu_hours": gpu_hours,
        "estimated_usd": sum(known) if known else None,
    }
    return "\n".join(lines), data

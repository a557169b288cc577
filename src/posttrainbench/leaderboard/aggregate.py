"""From many `result.json` to one table: base and instruct references, each agent's score, the status of every cell."""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from posttrainbench import catalog
from posttrainbench.catalog.references import references
from posttrainbench.files import read_json
from posttrainbench.pipeline.run_dir import RunDirectory, find_runs

Kind = Literal["agent", "base", "instruct"]
Pair = tuple[str, str]
"""(base model, benchmark)"""

FALLBACK = ("flagged", "no_submission", "unloadable")
"""Statuses that take the base model's score."""
# With several runs in a cell, it shows the status that a reader must not miss.
_LOUDEST = ("flagged", "unloadable", "no_submission", "infra_error", "pending", "scored")


@dataclass(frozen=True, kw_only=True)
class Run:
    """What the table needs of one run."""

    id: str
    agent: str
    pair: Pair
    status: str
    own_score: float | None
    stderr: float | None
    path: str


@dataclass(frozen=True, kw_only=True)
class Cell:
    """One agent on one base model and benchmark.

    Attributes:
        score: mean over its runs of what counts (the base score where a status says so); `None` while any run lacks one.
        own_score: mean of what its submissions scored themselves, where they did.
    """

    base_model: str
    benchmark: str
    status: str
    score: float | None
    own_score: float | None
    stderr: float | None = None
    n_runs: int = 1
    runs: tuple[str, ...] = ()


@dataclass(frozen=True, kw_only=True)
class Row:
    """A line of the leaderboard. `score` is `None` unless every cell of the table's grid has one."""

    agent: str
    kind: Kind
    score: float | None
    stderr: float | None
    n_runs: int
    cells: tuple[Cell, ...]


@dataclass
class References:
    """Scores of the base and instruct models: measured ones in the results directory before those of the catalogue."""

    scores: dict[tuple[str, Pair], float] = field(default_factory=dict)
    sources: dict[tuple[str, Pair], str] = field(default_factory=dict)

    def add(self, kind: str, pair: Pair, score: float, source: str) -> None:
        """Take a reference; a later one replaces an earlier one."""
        self.scores[(kind, pair)] = score
        self.sources[(kind, pair)] = source

    @classmethod
    def load(cls, results: Path) -> References:
        """Catalogue references, overlaid by `references/<base model>/<benchmark>/<kind>/metrics.json` below `results`."""
        found = cls()
        for entry in references():
            found.add(entry.kind, (entry.base_model, entry.benchmark), entry.score, entry.source)
        files = [*results.glob("references/*/*/*/metrics.json"), *results.glob("*/references/*/*/*/metrics.json")]
        for file in sorted(files):
            kind, benchmark, model = file.parent.name, file.parent.parent.name, file.parent.parent.parent.name
            try:
                metrics = read_json(file)
                score = metrics["strict"]["accuracy"]
            except (OSError, ValueError, KeyError, TypeError):
                continue
            # a score on a part of the items is no reference
            if isinstance(score, int | float) and metrics.get("limit") is None:
                found.add(kind, (model, benchmark), float(score), str(file))
        return found

    def get(self, kind: str, pair: Pair) -> float | None:
        """The score, or `None`."""
        return self.scores.get((kind, pair))


def read_run(run: RunDirectory) -> Run:
    """The state of a run; one without a result is pending."""
    record = run.record()
    pair = (record["base_model"]["name"], record["benchmark"])
    status, own, stderr = "pending", None, None
    try:
        result = read_json(run.result_file)
        status, own, stderr = result["status"], result["own_score"], result.get("stderr")
    except (OSError, ValueError, KeyError):
        pass
    return Run(
        id=record["id"],
        agent=record["agent"]["name"],
        pair=pair,
        status=status,
        own_score=own,
        stderr=stderr,
        path=str(run.path),
    )


def _mean(values: Iterable[float | None]) -> float | None:
    listed = list(values)
    if not listed or any(value is None for value in listed):
        return None
    return sum(value for value in listed if value is not None) / len(listed)


def _counts(run: Run, known: References) -> float | None:
    if run.status == "scored":
        return run.own_score
    if run.status in FALLBACK:
        return known.get("base", run.pair)
    return None


def cell_of(pair: Pair, runs: list[Run], known: References) -> Cell:
    """Put the runs of one cell together; no runs make a pending cell."""
    if not runs:
        return Cell(base_model=pair[0], benchmark=pair[1], status="pending", score=None, own_score=None, n_runs=0)
    status = min((run.status for run in runs), key=lambda s: _LOUDEST.index(s) if s in _LOUDEST else 0)
    errors = [run.stderr for run in runs if run.status == "scored" and run.stderr is not None]
    own = [run.own_score for run in runs if run.own_score is not None]
    return Cell(
        base_model=pair[0],
        benchmark=pair[1],
        status=status,
        score=_mean(_counts(run, known) for run in runs),
        own_score=sum(own) / len(own) if own else None,
        stderr=math.sqrt(sum(error**2 for error in errors)) / len(runs) if errors else None,
        n_runs=len(runs),
        runs=tuple(run.path for run in runs),
    )


def _weights(pairs: list[Pair]) -> dict[Pair, float]:
    """Share of each cell in the score: benchmark factors, equal over base models, summing to 1."""
    factor = {}
    for _, name in pairs:
        entry = next((b for b in catalog.benchmarks() if b.id == name), None)
        factor[name] = entry.weight if entry is not None else 1.0
    models: dict[str, int] = defaultdict(int)
    for _, name in pairs:
        models[name] += 1
    total = sum(factor.values())
    return {pair: factor[pair[1]] / models[pair[1]] / total for pair in pairs}


def row_of(name: str, kind: Kind, cells: list[Cell], n_runs: int) -> Row:
    """A row with its weighted score over exactly these cells."""
    weights = _weights([(cell.base_model, cell.benchmark) for cell in cells])
    score: float | None = 0.0
    variance = 0.0
    for cell in cells:
        weight = weights[(cell.base_model, cell.benchmark)]
        score = None if score is None or cell.score is None else score + weight * cell.score
        variance += (weight * (cell.stderr or 0.0)) ** 2
    stderr = math.sqrt(variance) if score is not None and variance else None
    return Row(agent=name, kind=kind, score=score, stderr=stderr, n_runs=n_runs, cells=tuple(cells))


@dataclass(frozen=True, kw_only=True)
class Leaderboard:
    """The table.

    Attributes:
        suite: `paper`, `smoke` or `other`: results of different suites are never averaged.
        grid: the cells that every row has: all that any agent was run on.
        hidden_suites: suites with results that are not in this table.
    """

    suite: str
    grid: tuple[Pair, ...]
    rows: tuple[Row, ...]
    hidden_suites: tuple[str, ...]


def _suite_of(pair: Pair) -> str:
    entry = next((b for b in catalog.benchmarks() if b.id == pair[1]), None)
    return entry.suite if entry is not None else "other"


def aggregate(results: Path, *, suite: str | None = None) -> Leaderboard:
    """Read all runs below `results` and make the table, best score first.

    Args:
        results: results directory.
        suite: which suite to show; default the paper's if there are results of it.

    Raises:
        ConfigurationError: no such directory.
    """
    runs = [read_run(run) for run in find_runs(results)]
    suites = sorted({_suite_of(run.pair) for run in runs}, key=("paper", "smoke", "other").index)
    chosen = suite or (suites[0] if suites else "paper")
    runs = [run for run in runs if _suite_of(run.pair) == chosen]
    order = {b.id: index for index, b in enumerate(catalog.benchmarks())}
    grid = sorted({run.pair for run in runs}, key=lambda pair: (pair[0], order.get(pair[1], 99)))
    known = References.load(results)
    rows = []
    by_agent: dict[str, dict[Pair, list[Run]]] = defaultdict(lambda: defaultdict(list))
    for run in runs:
        by_agent[run.agent][run.pair].append(run)
    for agent, cells in by_agent.items():
        made = [cell_of(pair, cells.get(pair, []), known) for pair in grid]
        rows.append(row_of(agent, "agent", made, sum(cell.n_runs for cell in made)))
    for kind in ("base", "instruct") if grid else ():
        made = []
        for pair in grid:
            score = known.get(kind, pair)
            status = "scored" if score is not None else "pending"
            made.append(
                Cell(base_model=pair[0], benchmark=pair[1], status=status, score=score, own_score=score, n_runs=0)
            )
        label: dict[str, Literal["base", "instruct"]] = {"base": "base", "instruct": "instruct"}
        rows.append(row_of(f"{kind} model", label[kind], made, 0))
    rows.sort(key=lambda row: (row.score is None, -(row.score or 0.0), row.kind, row.agent))
    return Leaderboard(
        suite=chosen, grid=tuple(grid), rows=tuple(rows), hidden_suites=tuple(s for s in suites if s != chosen)
    )


def as_json(board: Leaderboard) -> dict[str, Any]:
    """Plain data; scores are fractions, `null` where there is none."""
    return {
        "suite": board.suite,
        "rows": [
            {
                "agent": row.agent,
                "kind": row.kind,
                "score": row.score,
                "stderr": row.stderr,
                "n_runs": row.n_runs,
                "cells": [
                    {
                        "base_model": cell.base_model,
                        "benchmark": cell.benchmark,
                        "status": cell.status,
                        "score": cell.score,
                        "own_score": cell.own_score,
                        "stderr": cell.stderr,
                        "n_runs": cell.n_runs,
                        "runs": list(cell.runs),
                    }
                    for cell in row.cells
                ],
            }
            for row in board.rows
        ],
    }

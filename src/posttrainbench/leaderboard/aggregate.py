"""From many runs to one table: runs to cells, cells to a weighted score, scores to ranks.

The order of things: the status of every run first, then the mean over the runs of a cell, then the mean over base models,
then the weighted mean over benchmarks. What did not end in a result (`infra_error`, `pending`) never becomes a number: a
later failed run does not replace a valid one, and a row that lacks a cell has no score and no rank unless asked for.
"""

from __future__ import annotations

import math
import re
from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from posttrainbench import catalog
from posttrainbench.errors import ConfigurationError
from posttrainbench.leaderboard import weights as weighting
from posttrainbench.leaderboard.records import FALLBACK, Results, Run, load
from posttrainbench.leaderboard.references import Pair, References
from posttrainbench.leaderboard.table import Cell, Choice, Kind, Leaderboard, Row, View

# With several runs in a cell, it shows the status that a reader must not miss.
_LOUDEST = ("flagged", "unloadable", "no_submission", "scored", "infra_error", "pending")
_REFERENCE_ROWS: tuple[tuple[Kind, str], ...] = (
    ("base", "base model"),
    ("base-fewshot", "base model, few-shot"),
    ("instruct", "instruct model"),
)


def _mean(values: Sequence[float]) -> float:
    return math.fsum(values) / len(values)


def counts(run: Run, known: References, view: View = "scored") -> float | None:
    """The number with which a run enters the table; `None` where there is none."""
    if run.status == "scored":
        return run.own_score
    if run.status not in FALLBACK or view == "own":
        return None
    if view == "flags-ignored" and run.status == "flagged" and run.own_score is not None:
        return run.own_score
    return known.get("base", run.pair)


def _sample_std(values: Sequence[float]) -> float | None:
    if len(values) < 2:
        return None
    mean = _mean(values)
    return math.sqrt(math.fsum((value - mean) ** 2 for value in values) / (len(values) - 1))


def cell_of(
    pair: Pair, runs: Sequence[Run], known: References, *, view: View = "scored", choice: Choice = "all"
) -> Cell:
    """Put the runs of one cell together; no runs make a pending cell."""
    ordered = sorted(runs, key=lambda run: (run.started or "", run.id, run.path))
    members = [run for run in ordered if run.complete]
    if view == "own":
        members = [run for run in members if run.status == "scored"]
    if choice == "latest":
        members = members[-1:]
    left_out = tuple(run for run in ordered if run not in members)
    shown = members or left_out
    status = min((run.status for run in shown), key=_LOUDEST.index) if shown else "pending"
    values = [counts(run, known, view) for run in members]
    numbers = [value for value in values if value is not None]
    errors = [run.stderr for run in members if run.status == "scored" and run.stderr is not None]
    own = [run.own_score for run in members if run.own_score is not None]
    kept = {"scored", "flagged"} if view == "flags-ignored" else {"scored"}
    return Cell(
        base_model=pair[0],
        benchmark=pair[1],
        status=status,
        # a run whose base score nobody knows makes the cell unknown; leaving it out would reward the failure
        score=_mean(numbers) if numbers and len(numbers) == len(values) else None,
        own_score=_mean(own) if own else None,
        stderr=math.sqrt(math.fsum(error**2 for error in errors)) / len(members) if errors else None,
        std=_sample_std(numbers) if len(numbers) == len(values) else None,
        n_runs=len(members),
        runs=tuple(run.path for run in members),
        members=tuple(members),
        left_out=left_out,
        replaced=sum(run.status not in kept or run.own_score is None for run in members),
    )


def row_of(
    name: str,
    kind: Kind,
    cells: Sequence[Cell],
    n_runs: int,
    *,
    weights: Mapping[Pair, float] | None = None,
    rank_incomplete: bool = False,
    **properties: Any,
) -> Row:
    """A row with its weighted score over exactly these cells.

    Args:
        weights: share of each cell; `None` for the published ones.
        rank_incomplete: take the score over the cells that there are where some are missing.
        properties: further attributes of the row.
    """
    share = weights or weighting.of_cells([cell.pair for cell in cells], weighting.published())
    there = [(share[cell.pair], cell) for cell in cells if cell.score is not None]
    total = math.fsum(weight for weight, _ in there)
    partial = math.fsum(w * (cell.score or 0.0) for w, cell in there) / total if there and total else None
    variance = math.fsum((w * (cell.stderr or 0.0)) ** 2 for w, cell in there)
    whole = len(there) == len(cells)
    score = partial if whole or rank_incomplete else None
    replaced = Counter(run.status for cell in cells for run in cell.members if run.status in FALLBACK)
    return Row(
        agent=name,
        kind=kind,
        score=score,
        stderr=math.sqrt(variance) / total if score is not None and variance else None,
        n_runs=n_runs,
        cells=tuple(cells),
        partial=partial,
        n_cells=len(there),
        replaced={**dict(replaced), **properties.pop("replaced", {})},
        **properties,
    )


def _suite_of(benchmark: str) -> str:
    return next((entry.suite for entry in catalog.benchmarks() if entry.id == benchmark), "other")


def _agents(runs: Iterable[Run]) -> dict[str, list[Run]]:
    """Runs by row. Runs that differ in effort, budget, reprompting, protocol or test data are different rows, named so."""
    by_name: dict[str, dict[tuple[Any, ...], list[Run]]] = defaultdict(lambda: defaultdict(list))
    for run in runs:
        by_name[run.agent][(run.effort, run.reprompt, run.hours, run.protocol, run.test_data)].append(run)
    found = {}
    for name, variants in by_name.items():
        budgets, protocols = {key[2] for key in variants}, {key[3] for key in variants}
        for (effort, reprompt, hours, protocol, test_data), members in variants.items():
            # most names say it themselves: SCAFFOLD:MODEL[@EFFORT][+VARIANT...]
            said = set(re.split(r"[:@+]", name))
            conditions = [effort] if effort and effort not in said else []
            conditions += ["reprompted"] if reprompt and "reprompt" not in said else []
            if len(budgets) > 1:
                conditions.append("budget unknown" if hours is None else f"{hours:g} h")
            if len(protocols) > 1:
                conditions.append(f"protocol {protocol or 'unknown'}")
            if test_data != "visible":
                # said even where all runs are so: published results are not
                conditions.append(f"{test_data.replace('(', 'test data, told: ').rstrip(')')}")
            found[f"{name} ({', '.join(conditions)})" if conditions else name] = members
    return found


def _local_rows(runs: Iterable[Run], grid: Sequence[Pair], known: References, **how: Any) -> list[Row]:
    rows = []
    choice, view = how["choice"], how["view"]
    for label, members in _agents(runs).items():
        by_pair: dict[Pair, list[Run]] = defaultdict(list)
        for run in members:
            by_pair[run.pair].append(run)
        cells = [cell_of(pair, by_pair.get(pair, []), known, view=view, choice=choice) for pair in grid]
        first = members[0]
        rows.append(
            row_of(
                label,
                "agent",
                cells,
                sum(cell.n_runs for cell in cells),
                weights=how["weights"],
                rank_incomplete=how["rank_incomplete"],
                scaffold=first.scaffold,
                model=first.model,
                effort=first.effort,
                reprompt=first.reprompt,
                hours=first.hours,
                # analyses compare rows of one protocol
                protocol=first.protocol if first.test_data == "visible" else f"{first.protocol}, {first.test_data}",
                key=first.agent,
            )
        )
    return rows


def _reference_rows(grid: Sequence[Pair], known: References, weights: Mapping[Pair, float]) -> list[Row]:
    rows = []
    for kind, label in _REFERENCE_ROWS:
        cells = []
        for pair in grid:
            score = known.get(kind, pair)
            status = "scored" if score is not None else "pending"
            cells.append(
                Cell(base_model=pair[0], benchmark=pair[1], status=status, score=score, own_score=score, n_runs=0)
            )
        # worked examples are an extra; their row is there when all of it was measured
        if kind == "base-fewshot" and any(cell.score is None for cell in cells):
            continue
        rows.append(row_of(label, kind, cells, 0, weights=weights, source="reference", key=kind))
    return rows


def _gaps(rows: Sequence[Row]) -> list[Row]:
    ends = {row.kind: row.score for row in rows if row.kind != "agent"}
    base, instruct = ends.get("base"), ends.get("instruct")
    if base is None or instruct is None or instruct <= base:
        return list(rows)
    return [
        replace(row, gap_closed=(row.score - base) / (instruct - base))
        if row.score is not None and row.complete
        else row
        for row in rows
    ]


def _grid(
    runs: Sequence[Run], extra: Iterable[Pair], base_models: Sequence[str], benchmarks: Sequence[str]
) -> list[Pair]:
    pairs = {run.pair for run in runs} | set(extra)
    for name, wanted, known in (
        ("base model", base_models, {model for model, _ in pairs}),
        ("benchmark", benchmarks, {benchmark for _, benchmark in pairs}),
    ):
        for entry in wanted:
            if entry not in known:
                raise catalog.unknown(f"{name} in these results", entry, known)
    order = {b.id: index for index, b in enumerate(catalog.benchmarks())}
    chosen = {
        pair
        for pair in pairs
        if (not base_models or pair[0] in base_models) and (not benchmarks or pair[1] in benchmarks)
    }
    return sorted(chosen, key=lambda pair: (pair[0], order.get(pair[1], 99), pair[1]))


def _ranked(rows: Sequence[Row]) -> list[Row]:
    """Best first; agents with a score get a rank, references stand between them without one."""
    ordered = sorted(rows, key=lambda row: (row.score is None, -(row.score or 0.0), row.kind, row.agent))
    found, rank = [], 0
    for row in ordered:
        if row.kind == "agent" and row.score is not None:
            rank += 1
            row = replace(row, rank=rank)
        found.append(row)
    return found


def aggregate(
    results: Path | Results | None,
    *,
    suite: str | None = None,
    view: View = "scored",
    weights: str = "published",
    choice: Choice = "all",
    rank_incomplete: bool = False,
    published: bool = False,
    same_cells: bool = False,
    base_models: Sequence[str] = (),
    benchmarks: Sequence[str] = (),
    items: bool = False,
) -> Leaderboard:
    """Make the table, best score first.

    Args:
        results: a results directory, what `load` made of it, or `None` for no runs of one's own.
        suite: which suite to show; default the paper's if there are results of it.
        view: see `VIEWS`.
        weights: `published`, `equal`, or `gsm8k=2,aime2025=1`.
        choice: see `CHOICES`.
        rank_incomplete: rank rows that lack cells by the score over those that they have.
        published: place the published agents in the table (suite `paper` only).
        same_cells: with `published`, only the cells that the results have, instead of all of the paper's.
        base_models, benchmarks: only these.
        items: resample items too, where the item-level logs exist (reads every log).

    Raises:
        ConfigurationError: no such directory, or an option that cannot be.
    """
    from posttrainbench.leaderboard import published as publication
    from posttrainbench.leaderboard import statistics

    read = results if isinstance(results, Results) else load(results) if results is not None else None
    everything = read.runs if read is not None else ()
    suites = sorted({_suite_of(run.pair[1]) for run in everything}, key=("paper", "smoke", "other").index)
    chosen = suite or ("paper" if published or not suites else suites[0])
    if published and chosen != "paper":
        raise ConfigurationError("the published agents are of suite paper; leave out --suite or --published")
    runs = [run for run in everything if _suite_of(run.pair[1]) == chosen]
    known = read.references if read is not None else References.of_catalogue()
    extra = publication.grid() if published and not (same_cells and runs) else ()
    grid = _grid(runs, extra, base_models, benchmarks)
    if published:
        known = publication.with_references(known)
    inside = set(grid)
    runs = [run for run in runs if run.pair in inside]
    share = weighting.of_cells(grid, weighting.scheme(weights))
    how = {"view": view, "weights": share, "rank_incomplete": rank_incomplete, "choice": choice}
    rows = _local_rows(runs, grid, known, **how) if grid else []
    if published:
        rows += publication.rows(grid, weights=share, view=view, rank_incomplete=rank_incomplete)
    if grid:
        rows += _reference_rows(grid, known, share)
    ranked = statistics.annotate(
        _ranked(_gaps(rows)),
        known=known,
        weights=share,
        view=view,
        items=items,
        pooled=any(row.whole_runs for row in rows),
    )
    return Leaderboard(
        suite=chosen,
        grid=tuple(grid),
        rows=tuple(ranked),
        hidden_suites=tuple(s for s in suites if s != chosen),
        weights=share,
        scheme=weights,
        view=view,
        problems=read.problems if read is not None else (),
        notes=_notes(ranked, view),
    )


def _notes(rows: Sequence[Row], view: View) -> tuple[str, ...]:
    notes = []
    if view == "flags-ignored":
        notes.append("Flags are ignored here: flagged submissions count with what they scored themselves.")
    if view == "own":
        notes.append("Own results only: cells without a clean, loadable submission are left out, not replaced.")
    unfinished = Counter(run.status for row in rows for cell in row.cells for run in cell.left_out if not run.complete)
    for status, text in (("infra_error", "ended in an infrastructure error"), ("pending", "have no result yet")):
        if unfinished[status]:
            notes.append(f"{unfinished[status]} runs {text}; they count for nothing.")
    if any(cell.status == "infra_error" and cell.score is not None for row in rows for cell in row.cells):
        notes.append("The publication counts its infrastructure errors (E) with the base score, too.")
    locks = {run.lock for row in rows for cell in row.cells for run in cell.members if not run.imported}
    if len(locks) > 1:
        named = [f"lock {lock[:12]}" if lock else "their machine's own" for lock in sorted(locks, key=str)]
        notes.append(f"Runs had different packages: {', '.join(named)}; each run.json says which.")
    unknown = sorted({cell.pair for row in rows for cell in row.cells if cell.members and cell.score is None})
    for model, benchmark in unknown:
        notes.append(
            f"No base score of {model} on {benchmark} is known, so some runs count for nothing: "
            f"`ptb baseline {model} --kind zero-shot --benchmark {benchmark}`."
        )
    return tuple(notes)

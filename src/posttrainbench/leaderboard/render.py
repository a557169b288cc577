"""The leaderboard as text and as CSV."""

from __future__ import annotations

import csv
import io

from posttrainbench.leaderboard.aggregate import FALLBACK, Cell, Leaderboard, Row

_MARKS = {"flagged": "F", "no_submission": "N", "unloadable": "U", "infra_error": "E", "pending": "P"}
_LEGEND = {
    "F": "flagged, base score",
    "N": "no submission, base score",
    "U": "unloadable, base score",
    "E": "infrastructure error, no score",
    "P": "pending",
}


def _percent(value: float | None) -> str:
    return "-" if value is None else f"{100 * value:.1f}"


def _cell(cell: Cell) -> str:
    mark = _MARKS.get(cell.status, "")
    own = f" ({_percent(cell.own_score)})" if cell.status in FALLBACK and cell.own_score is not None else ""
    return f"{_percent(cell.score)}{' ' + mark if mark else ''}{own}"


def _score(row: Row) -> str:
    bar = "" if row.stderr is None else f" +- {100 * row.stderr:.1f}"
    return f"{_percent(row.score)}{bar}"


def as_text(board: Leaderboard) -> str:
    """A table for a terminal: scores in percent, a letter for every cell that is not simply scored."""
    if not board.rows:
        return "no runs yet"
    models = {model for model, _ in board.grid}
    heads = [benchmark if len(models) == 1 else f"{benchmark}/{model}" for model, benchmark in board.grid]
    table = [["#", "agent", "kind", "score", "runs", *heads]]
    for rank, row in enumerate(board.rows, start=1):
        runs = str(row.n_runs) if row.kind == "agent" else ""
        table.append([str(rank), row.agent, row.kind, _score(row), runs, *(_cell(cell) for cell in row.cells)])
    widths = [max(len(line[column]) for line in table) for column in range(len(table[0]))]
    lines = ["  ".join(text.ljust(width) for text, width in zip(line, widths, strict=True)).rstrip() for line in table]
    lines.insert(1, "-" * max(len(line) for line in lines))
    used = {_MARKS[cell.status] for row in board.rows for cell in row.cells if cell.status in _MARKS}
    if used:
        lines.append("")
        lines += [f"{mark}: {text}" for mark, text in _LEGEND.items() if mark in used]
    if used & {"F", "U"}:
        lines.append("In brackets: what the replaced submission itself scored.")
    if len(models) == 1:
        lines.insert(0, f"base model {next(iter(models))}, suite {board.suite}, scores in percent")
    if board.hidden_suites:
        lines.append(f"Not shown: results of suite {', '.join(board.hidden_suites)} (--suite).")
    return "\n".join(lines)


def as_csv(board: Leaderboard) -> str:
    """One line per row and cell; scores as fractions."""
    buffer = io.StringIO()
    writer = csv.writer(buffer, lineterminator="\n")
    writer.writerow(
        ["agent", "kind", "score", "stderr", "n_runs", "base_model", "benchmark", "status", "cell_score", "own_score"]
    )
    for row in board.rows:
        for cell in row.cells:
            writer.writerow(
                [
                    row.agent,
                    row.kind,
                    row.score,
                    row.stderr,
                    row.n_runs,
                    cell.base_model,
                    cell.benchmark,
                    cell.status,
                    cell.score,
                    cell.own_score,
                ]
            )
    return buffer.getvalue()

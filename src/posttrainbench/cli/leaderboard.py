"""`ptb leaderboard`: rank what was run."""

from __future__ import annotations

import json
from pathlib import Path

import click

from posttrainbench.leaderboard import aggregate, as_csv, as_json, as_text


@click.command("leaderboard")
@click.argument("results", type=click.Path(path_type=Path), envvar="PTB_RESULTS", default="results")
@click.option("--format", "form", type=click.Choice(["table", "json", "csv"]), default="table", show_default=True)
@click.option(
    "--suite", type=click.Choice(["paper", "smoke", "other"]), help="[default: paper, if there are results of it]"
)
def command(results: Path, form: str, suite: str | None) -> None:
    """Rank the agents of all runs below RESULTS, with the base and instruct models for reference."""
    board = aggregate(results, suite=suite)
    if form == "json":
        print(json.dumps(as_json(board), indent=2, allow_nan=False))
    elif form == "csv":
        print(as_csv(board), end="")
    else:
        print(as_text(board))

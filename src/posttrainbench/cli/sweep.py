"""`ptb sweep`: many runs declared in one file, on this machine or a cluster."""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from posttrainbench.errors import ConfigurationError, PTBError
from posttrainbench.files import printable

if TYPE_CHECKING:
    from posttrainbench.launch.checks import Checked
    from posttrainbench.launch.status import CellStatus
    from posttrainbench.launch.store import SweepDirectory

_FILE = click.argument("file", type=click.Path(path_type=Path))
_SWEEP = click.argument("sweep", type=click.Path(path_type=Path))
_CELLS = click.argument("cells", nargs=-1)


@click.group("sweep")
def command() -> None:
    """Plan, start, watch and mend many runs. A sweep is a directory; nothing has to stay running for it."""


@command.command("plan")
@_FILE
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
def plan(file: Path, as_json: bool) -> None:
    """Print the cells, GPU hours and expected cost of a sweep file, and what preflight finds. Starts nothing."""
    from posttrainbench.launch.plan import describe
    from posttrainbench.launch.preflight import checks, problems
    from posttrainbench.launch.sweepfile import load

    sweep = load(file)
    text, data = describe(sweep)
    found = problems(sweep)
    # what cannot be at all needs no calls to say so
    seen = [] if found else list(checks(sweep))
    if as_json:
        print(json.dumps({**data, "problems": found, "checks": _as_json(seen)}, indent=2))
    else:
        print(text)
        for problem in found:
            print(f"problem: {printable(problem)}")
        _print_checks(seen)
    if found or any(check.stops for _, check in seen):
        sys.exit(1)


@command.command("preflight")
@_FILE
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
def preflight(file: Path, as_json: bool) -> None:
    """Check this machine as each job checks its node: GPUs, CUDA in the sandbox, disk, clock, data, one-token calls."""
    from posttrainbench.launch.judging import judge_check
    from posttrainbench.launch.preflight import node_checks, problems
    from posttrainbench.launch.sweepfile import load

    sweep = load(file)
    found = problems(sweep)
    checks = [*(("", check) for check in judge_check(sweep.judge)), *node_checks(sweep)]
    if as_json:
        print(json.dumps({"problems": found, "checks": _as_json(checks)}, indent=2))
    else:
        for problem in found:
            print(f"problem: {printable(problem)}")
        _print_checks(checks)
    if found or any(check.stops for _, check in checks):
        sys.exit(1)


def _as_json(checks: Sequence[tuple[str, Checked]]) -> list[dict[str, Any]]:
    return [{"cell": key, **asdict(check)} for key, check in checks]


def _print_checks(checks: Sequence[tuple[str, Checked]]) -> None:
    for key, check in checks:
        print(f"{check.word:<5} {f'{key}  ' if key else ''}{check.name}: {printable(check.detail)}")


@command.command("start")
@_FILE
@click.option("--dry-run", is_flag=True, help="Check everything, start nothing.")
@click.option("--smoke", is_flag=True, help="Every cell with a tiny budget first, in a sweep NAME-smoke of its own.")
@click.option("--wait", is_flag=True, help="Stay until all is over; the exit code is 0 if every cell was scored.")
def start(file: Path, dry_run: bool, smoke: bool, wait: bool) -> None:
    """Start a sweep, or what is missing of it. Starting twice never runs a cell twice."""
    from posttrainbench.launch.driver import submit_missing
    from posttrainbench.launch.judging import judge_check
    from posttrainbench.launch.preflight import checks, problems
    from posttrainbench.launch.store import SweepDirectory
    from posttrainbench.launch.sweepfile import load, smoke_of
    from posttrainbench.pipeline.prepare import check_results

    sweep = load(file)
    if smoke:
        sweep = smoke_of(sweep)
    found = problems(sweep)
    if found:
        raise ConfigurationError(
            f"{found[0]}" + (f" (and {len(found) - 1} more; see `ptb sweep plan`)" if len(found) > 1 else "")
        )
    check_results(sweep.root.parent, needed=2**20)
    # without these two the jobs ask by themselves, but for the judge
    _stop_on(list(checks(sweep)) if dry_run or smoke else [("", check) for check in judge_check(sweep.judge)])
    if dry_run:
        print(f"{len(sweep.cells)} cells could be started; nothing was")
        return
    directory = SweepDirectory.create(sweep)
    done = submit_missing(directory)
    print(
        f"{done.submitted} submitted, {done.active} already active, {done.over} over; ptb sweep status {directory.root}"
    )
    if wait:
        _wait(directory)


def _stop_on(checks: Sequence[tuple[str, Checked]]) -> None:
    """Show the checks.

    Raises:
        ConfigurationError, InfrastructureError: one that is needed does not hold.
    """
    _print_checks(checks)
    for _, check in checks:
        if check.stops:
            raise check.error()


@command.command("resume")
@_SWEEP
@click.option("--wait", is_flag=True, help="Stay until all is over.")
def resume(sweep: Path, wait: bool) -> None:
    """Go on with a sweep: adopt what runs, submit what was lost, cancelled or stopped."""
    from posttrainbench.launch.driver import submit_missing
    from posttrainbench.launch.store import SweepDirectory

    directory = SweepDirectory.open(sweep)
    done = submit_missing(directory)
    print(f"{done.submitted} submitted, {done.active} already active, {done.over} over")
    if wait:
        _wait(directory)


@command.command("status")
@_SWEEP
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
@click.option("--watch", is_flag=True, help="Draw anew every few seconds until all is over.")
@click.option("--all", "whole", is_flag=True, help="Every cell, also of a long list.")
def status(sweep: Path, as_json: bool, watch: bool, whole: bool) -> None:
    """Print where every cell stands."""
    from posttrainbench.launch.store import SweepDirectory

    directory = SweepDirectory.open(sweep)
    statuses = _statuses(directory)
    if as_json:
        print(json.dumps([entry.as_json() for entry in statuses], indent=2))
    elif watch and sys.stdout.isatty():
        _watch(directory)
    else:
        print(_table(directory, statuses, whole=whole))


@command.command("cancel")
@_SWEEP
@_CELLS
def cancel(sweep: Path, cells: Sequence[str]) -> None:
    """End cells (keys or parts of them; all without any). Their runs stay and can be resumed."""
    from posttrainbench.launch import driver
    from posttrainbench.launch.store import SweepDirectory

    ended = driver.cancel(SweepDirectory.open(sweep), cells)
    print(f"{len(ended)} cancelled; go on with `ptb sweep resume {sweep}`")


@command.command("retry")
@_SWEEP
@_CELLS
@click.option("--status", "states", multiple=True, default=("infra_error", "failed"), show_default=True)
def retry(sweep: Path, cells: Sequence[str], states: Sequence[str]) -> None:
    """Run cells with these states again. What they had is kept aside."""
    from posttrainbench.launch import driver
    from posttrainbench.launch.status import OVER
    from posttrainbench.launch.store import SweepDirectory

    unknown = [state for state in states if state not in OVER]
    if unknown:
        raise ConfigurationError(f"{unknown[0]!r} is no state of a finished cell; known: {', '.join(OVER)}")
    directory = SweepDirectory.open(sweep)
    opened = driver.retry(directory, cells, states=states)
    done = driver.submit_missing(directory) if opened else None
    print(f"{len(opened)} opened again" + (f", {done.submitted} submitted" if done else ""))


@command.command("run-cell", hidden=True)
@_SWEEP
@click.argument("key")
@click.option("--batch", type=click.Path(path_type=Path), help="File with the list in which KEY is a position.")
@click.option("--gpus", default="", help="Indices, or count:N to take what the engine gave.")
@click.option("--part", type=click.Choice(["whole", "agent", "evaluation"]), default="whole", show_default=True)
def run_cell(sweep: Path, key: str, batch: Path | None, gpus: str, part: str) -> None:
    """Run one cell: what every launcher starts on its node."""
    from posttrainbench.launch.job import run_job
    from posttrainbench.launch.launcher import Part

    sys.exit(run_job(sweep, key, batch=batch, gpus=gpus, part=Part(part)))


def _statuses(sweep: SweepDirectory) -> list[CellStatus]:
    from posttrainbench.launch.booking import book
    from posttrainbench.launch.launcher import get_launcher
    from posttrainbench.launch.status import sweep_status

    jobs = get_launcher(sweep).jobs()
    statuses = sweep_status(sweep, jobs)
    try:
        book(sweep, jobs)
    except OSError as error:
        print(f"ptb: the records of finished runs could not be completed: {error}", file=sys.stderr)
    return statuses


def _wait(sweep: SweepDirectory, *, every_s: float = 2.0) -> None:
    """Stay until nothing more will happen, submitting again what an engine lost."""
    from posttrainbench.launch.driver import submit_missing
    from posttrainbench.launch.notify import notify_if_over
    from posttrainbench.launch.status import RESTING

    while True:
        try:
            statuses = _statuses(sweep)
        except PTBError as error:
            print(f"ptb: {error}; asking again", file=sys.stderr)
            time.sleep(15)
            continue
        if sweep.stopped is not None:
            break
        if all(entry.state in RESTING for entry in statuses):
            break
        if any(entry.state == "open" for entry in statuses):
            try:
                submit_missing(sweep, lift=False)
            except PTBError as error:
                print(f"ptb: {error}; trying again", file=sys.stderr)
        time.sleep(every_s)
    notify_if_over(sweep)
    print(_table(sweep, statuses))
    if sweep.stopped is not None or any(entry.state in ("failed", "infra_error", "cancelled") for entry in statuses):
        sys.exit(1)


_ROWS = 60
"""A longer table is cut down to what is going on and what went wrong; `--all` and `--json` have everything."""


def _table(sweep: SweepDirectory, statuses: Sequence[CellStatus], *, whole: bool = False) -> str:
    from posttrainbench.launch.status import counts
    from posttrainbench.pipeline.progress import clock

    shown = list(statuses)
    if not whole and len(shown) > _ROWS:
        shown = [entry for entry in shown if entry.state in ("running", "failed", "infra_error")][:_ROWS]
    lines = []
    width = max((len(entry.key) for entry in shown), default=4)
    for entry in shown:
        left = "" if entry.left_s is None else f"{clock(entry.left_s)} left"
        words = "  ".join(text for text in (entry.stage, left, printable(entry.detail)[:200]) if text)
        lines.append(f"{entry.key:<{width}}  {entry.state:<13}  {words}".rstrip())
    found = counts(list(statuses))
    lines.append("")
    if len(shown) < len(statuses):
        lines.append(f"({len(statuses) - len(shown)} further cells: --all)")
    lines.append(f"{len(statuses)} cells: " + ", ".join(f"{found[state]} {state}" for state in sorted(found)))
    if sweep.stopped is not None:
        lines.append(f"stopped: {printable(sweep.stopped['why'])}; when that is mended: ptb sweep resume {sweep.root}")
    return "\n".join(lines)


def _watch(sweep: SweepDirectory) -> None:
    from rich.live import Live
    from rich.text import Text

    from posttrainbench.launch.status import RESTING

    with Live(refresh_per_second=2, screen=False) as live:
        while True:
            statuses = _statuses(sweep)
            live.update(Text(_table(sweep, statuses)))
            if all(entry.state in RESTING for entry in statuses) or sweep.stopped is not None:
                return
            time.sleep(3)

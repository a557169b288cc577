"""`ptb prefetch`: fetch, verify and pin models and benchmark data."""

from __future__ import annotations

import click
from rich.console import Console
from rich.progress import BarColumn, DownloadColumn, Progress, TaskID, TextColumn, TransferSpeedColumn

from posttrainbench.evaluation import prefetch as fetching


class _Bars:
    """A line with a bar for each repository; plain lines where the output is no terminal."""

    def __init__(self, progress: Progress, console: Console) -> None:
        self._progress = progress
        self._console = console
        self._task: TaskID | None = None
        self._name = ""

    def begin(self, name: str, total: int | None) -> None:
        self._name = name
        self._task = self._progress.add_task(name, total=total)
        if not self._console.is_terminal:
            size = "" if total is None else f" ({total / 1e6:.1f} MB)"
            self._console.print(f"{name}{size} ...", highlight=False, soft_wrap=True)

    def advance(self, size: int) -> None:
        if self._task is not None:
            self._progress.advance(self._task, size)

    def end(self, note: str) -> None:
        if self._task is not None and self._name:
            self._progress.stop_task(self._task)
            self._console.print(f"{self._name}: {note}", highlight=False, soft_wrap=True)
        self._task, self._name = None, ""


@click.command("prefetch")
@click.argument("names", nargs=-1)
@click.option(
    "--model", "models", multiple=True, metavar="NAME", help="Base model; its instruct counterpart comes along."
)
@click.option("--benchmark", "benchmarks", multiple=True, metavar="NAME", help="Data of a benchmark.")
@click.option("--all", "everything", is_flag=True, help="All models and benchmarks of the paper.")
@click.option("--dry-run", is_flag=True, help="Only say what would be fetched, from which revision and how much.")
def prefetch(
    names: tuple[str, ...], models: tuple[str, ...], benchmarks: tuple[str, ...], everything: bool, dry_run: bool
) -> None:
    """Fetch models and data NAMES (base models and benchmarks), verify their hashes and pin their revisions.

    Works through a mirror with HF_ENDPOINT, resumes what was interrupted, and says which licences must be accepted.
    """
    console = Console()
    wanted = fetching.plan([*names, *models, *benchmarks], everything=everything)
    if dry_run:
        for key, revision, size in fetching.describe(wanted):
            amount = "size unknown" if size is None else f"{size / 1e6:.1f} MB"
            console.print(f"{key}  {revision[:12]}  {amount}", highlight=False, soft_wrap=True)
        return
    if not wanted:
        console.print("nothing to fetch: it comes with the package")
        return
    columns = (TextColumn("{task.description}"), BarColumn(), DownloadColumn(), TransferSpeedColumn())
    with Progress(*columns, console=console, transient=True, disable=not console.is_terminal) as progress:
        report = fetching.prefetch(wanted, display=_Bars(progress, console))
    if report.done:
        console.print(f"{len(report.done)} fetched and verified; pinned in {fetching.pins_file()}", soft_wrap=True)
    report.raise_if_incomplete()

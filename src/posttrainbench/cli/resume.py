"""`ptb resume`: finish a run that was interrupted, whatever interrupted it."""

from __future__ import annotations

from pathlib import Path

import click

from posttrainbench.cli.working import describe_result, interruptible, progress, run_argument
from posttrainbench.pipeline.context import Context
from posttrainbench.pipeline.run import resume
from posttrainbench.pipeline.run_dir import RunDirectory


@click.command("resume")
@run_argument
def command(run: Path) -> None:
    """Finish RUN: every stage that is not done is done (again). A finished run is left as it is."""
    directory = RunDirectory.open(run)
    with interruptible(directory) as cancelled:
        with progress(directory.path.name) as shown:
            resume(Context(run=directory, progress=shown, cancelled=cancelled))
        print(describe_result(directory))
        print(directory.path)

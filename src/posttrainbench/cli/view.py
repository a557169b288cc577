"""`ptb view`: the site of a results directory on this machine, fresh while runs go on."""

from __future__ import annotations

import signal
import sys
from pathlib import Path

import click

from posttrainbench.scratch import Scratch


@click.command("view")
@click.argument("results", type=click.Path(path_type=Path), envvar="PTB_RESULTS", default="results")
@click.option("--port", type=click.IntRange(0, 65535), default=7580, show_default=True, help="0 takes a free one.")
@click.option(
    "--every", type=click.FloatRange(0.5, 3600), default=3.0, show_default=True, help="Seconds between looks."
)
@click.option("--published/--no-published", default=False, show_default=True, help="Show the published agents too.")
@click.option("--with-items", is_flag=True, help="Show questions and answers of test items.")
@click.option("--out", type=click.Path(path_type=Path), help="Keep the site here.  [default: a temporary directory]")
@click.option("--jobs", type=click.IntRange(1, 256), help="Worker processes.  [default: one per core]")
def command(
    results: Path, port: int, every: float, published: bool, with_items: bool, out: Path | None, jobs: int | None
) -> None:
    """Serve the site of RESULTS on 127.0.0.1, for browsers of this machine only, and refresh it while runs go on.

    Ends with Ctrl-C.
    """
    from posttrainbench.site import Options
    from posttrainbench.site.serve import Viewer

    options = Options(published=published, with_items=with_items, live=True)
    with Scratch("view") as spare:
        viewer = Viewer(results, out or spare, options=options, port=port, every_s=every, jobs=jobs)
        for problem in viewer.first.problems:
            print(f"ptb: not shown or not counted: {problem}", file=sys.stderr)
        print(f"{viewer.first.runs} runs at {viewer.url} (Ctrl-C ends it)", flush=True)
        # ended by a service manager it must take its temporary directory along, too
        signal.signal(signal.SIGTERM, signal.default_int_handler)
        try:
            viewer.serve()
        except KeyboardInterrupt:
            pass
        finally:
            viewer.close()

"""What the commands that work on runs share: progress on the right stream, and Ctrl-C that ends the agent properly."""

from __future__ import annotations

import signal
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from types import FrameType

import click

from posttrainbench.pipeline.progress import LiveDisplay, PlainLines, Progress
from posttrainbench.pipeline.run_dir import RunDirectory
from posttrainbench.pipeline.solve import Interrupted
from posttrainbench.sandbox import DEFAULT as DEFAULT_SANDBOX


def results_option(function: Callable[..., None]) -> Callable[..., None]:
    """`--out`, or `PTB_RESULTS`."""
    return click.option(
        "--out",
        "results",
        envvar="PTB_RESULTS",
        default="results",
        show_default=True,
        type=click.Path(path_type=Path),
        help="Directory for results; also PTB_RESULTS.",
    )(function)


def sandbox_options(function: Callable[..., None]) -> Callable[..., None]:
    """`--sandbox` and `--image`."""
    for option in (
        click.option("--image", help="Container image, for sandboxes that need one."),
        click.option(
            "--sandbox", default=DEFAULT_SANDBOX, show_default=True, help="How untrusted programs are confined."
        ),
    ):
        function = option(function)
    return function


def run_argument(function: Callable[..., None]) -> Callable[..., None]:
    """`RUN`, a run directory."""
    return click.argument("run", type=click.Path(path_type=Path))(function)


@contextmanager
def progress(title: str) -> Iterator[Progress]:
    """A live display on a terminal, plain lines elsewhere."""
    if sys.stdout.isatty():
        with LiveDisplay(title) as display:
            yield display
    else:
        yield PlainLines()


@contextmanager
def interruptible(run: RunDirectory) -> Iterator[Callable[[], bool]]:
    """Turn SIGINT and SIGTERM into an orderly end: the agent gets its grace, the record stays whole, resume works."""
    asked = False

    def ask(number: int, frame: FrameType | None) -> None:
        nonlocal asked
        if asked and number == signal.SIGINT:
            raise KeyboardInterrupt
        asked = True

    before = {number: signal.signal(number, ask) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield lambda: asked
    except (Interrupted, KeyboardInterrupt):
        print(f"ptb: interrupted; go on with `ptb resume {run.path}`", file=sys.stderr)
        sys.exit(130)
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def describe_result(run: RunDirectory) -> str:
    """One line on how a run ended."""
    from posttrainbench.files import printable, read_json

    result = read_json(run.result_file)
    own = "" if result["own_score"] is None else f", scored {result['own_score']:.1%}"
    reasons = f": {printable(result['reasons'][0])}" if result["reasons"] else ""
    verdict = f" (verdict {result['verdict']})" if result.get("verdict") else ""
    return f"{result['status']}{own}{verdict}{reasons}"

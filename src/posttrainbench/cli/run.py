"""`ptb run`: one attempt at a cell, from the request to its result."""

from __future__ import annotations

from pathlib import Path

import click

from posttrainbench.cli.working import describe_result, interruptible, progress, results_option, sandbox_options
from posttrainbench.evaluation.request import DEFAULT_GRADER
from posttrainbench.pipeline.context import Context
from posttrainbench.pipeline.prepare import prepare
from posttrainbench.pipeline.run import resume
from posttrainbench.pipeline.spec import DISK_QUOTA, TEST_DATA, TEST_FEEDBACK, RunSpec


def _gpus(context: click.Context, parameter: click.Parameter, value: str | None) -> tuple[int, ...] | None:
    if value is None:
        return None
    if value.strip().lower() in ("", "none"):
        return ()
    try:
        return tuple(int(part) for part in value.split(","))
    except ValueError:
        raise click.BadParameter("give indices such as 0 or 0,1, or none") from None


def _environment(context: click.Context, parameter: click.Parameter, value: tuple[str, ...]) -> dict[str, str]:
    pairs = [text.partition("=") for text in value]
    for name, equals, _ in pairs:
        if not equals or not name:
            raise click.BadParameter(f"{name!r} is not NAME=VALUE")
    return {name: content for name, _, content in pairs}


@click.command("run")
@click.option("--agent", required=True, help="SCAFFOLD, SCAFFOLD:MODEL or FILE.toml; see `ptb list agents`.")
@click.option("--agent-model", help="The agent's model, where --agent does not say it: MODEL or PROVIDER/MODEL.")
@click.option("--effort", help="Its reasoning effort, such as low, medium or high. [default: the CLI's own]")
@click.option("--helper-model", "helper_models", multiple=True, help="A further model its CLI may ask; repeatable.")
@click.option("--reprompt", is_flag=True, help="Tell an agent that finishes early to go on (a method of its own).")
@click.option(
    "--reprompt-floor",
    "reprompt_floor_h",
    type=float,
    default=0.5,
    show_default=True,
    help="Not with fewer hours left.",
)
@click.option("--subscription", is_flag=True, help="Use a login of this host's instead of an API key.")
@click.option("--agent-env", multiple=True, callback=_environment, help="NAME=VALUE for the agent; repeatable.")
@click.option(
    "--network",
    help="Web door: closed, guarded, open or FILE.toml. [default: guarded for CLIs, closed for scripted agents]",
)
@click.option(
    "--web-tls",
    type=click.Choice(["passthrough", "intercept"]),
    default="passthrough",
    show_default=True,
    help="Pass https on, or look into it at the web door: needs `ptb doors install`.",
)
@click.option("--budget-tokens", type=int, help="Tokens that the agent's model calls may use. [default: no limit]")
@click.option("--budget-usd", type=float, help="US dollars that they may cost at list prices. [default: no limit]")
@click.option(
    "--server-tool",
    "server_tools",
    multiple=True,
    help="Allow a tool that runs at the provider (web_search); repeatable.",
)
@click.option("--model", "base_model", required=True, help="Base model: catalogue name, hub id or directory.")
@click.option("--benchmark", required=True, help="Target benchmark, see `ptb list benchmarks`.")
@click.option("--hours", type=float, default=10.0, show_default=True, help="The agent's time; fractions allowed.")
@click.option(
    "--grace", "grace_s", type=float, default=30.0, show_default=True, help="Seconds from SIGTERM to SIGKILL."
)
@click.option("--memory-gib", type=float, help="Memory of the agent. [default: what the machine has, less a reserve]")
@click.option("--disk-gib", type=float, help="What the agent may write. [default: what is free, less a reserve]")
@click.option(
    "--disk-quota",
    type=click.Choice(DISK_QUOTA),
    default="watchdog",
    show_default=True,
    help="exact: a file system of that size; needs root, see docs/disk.md.",
)
@click.option("--processes", type=int, default=4096, show_default=True, help="Processes and threads of the agent.")
@click.option("--gpus", callback=_gpus, help="GPU indices such as 0 or 0,1, or none. [default: the first]")
@click.option("--instruct", help="Instruct counterpart of a base model that is not in the catalogue.")
@click.option("--seed", type=int, default=0, show_default=True, help="Seed of the final evaluation.")
@click.option("--data-dir", help="Directory of the benchmark's original data files. [default: the hub's, pinned]")
@click.option("--grader", default=DEFAULT_GRADER, show_default=True, help="Inspect model for LLM-graded benchmarks.")
@sandbox_options
@click.option(
    "--test-data",
    type=click.Choice(TEST_DATA),
    default="visible",
    show_default=True,
    help="sealed: no test item is in the sandbox; evaluate.py asks the harness for scores.",
)
@click.option(
    "--test-feedback",
    type=click.Choice(TEST_FEEDBACK),
    default="score",
    show_default=True,
    help="What is told of a sealed evaluation; items: right or wrong by item, too.",
)
@click.option("--test-calls", type=int, default=100, show_default=True, help="Sealed evaluations in a run.")
@click.option("--test-hours", type=float, help="Hours that they may take together. [default: the agent's time]")
@click.option("--group", default="adhoc", show_default=True, help="Sub-directory of the results directory.")
@results_option
def command(results: Path, group: str, **options: object) -> None:
    """Run an agent on a base model and a benchmark, then audit and score what it submits.

    The last line printed is the run directory.
    """
    run = prepare(RunSpec(**options), results=results, group=group)  # type: ignore[arg-type]  # click checked the types
    with interruptible(run) as cancelled:
        with progress(run.path.name) as shown:
            resume(Context(run=run, progress=shown, cancelled=cancelled))
        print(describe_result(run))
        print(run.path)

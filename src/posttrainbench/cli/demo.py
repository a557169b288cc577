"""`ptb demo`: four scripted agents on the tiny model, judged, scored and ranked, without GPU, API key or network."""

from __future__ import annotations

import time
from pathlib import Path

import click

from posttrainbench.cli.working import describe_result, interruptible, progress
from posttrainbench.errors import PTBError
from posttrainbench.evaluation import EvaluationRequest
from posttrainbench.files import read_json, write_json
from posttrainbench.leaderboard import aggregate, as_text
from posttrainbench.pipeline.context import Context
from posttrainbench.pipeline.models import ResolvedModel, resolve
from posttrainbench.pipeline.prepare import check_results, prepare
from posttrainbench.pipeline.run import resume
from posttrainbench.pipeline.run_dir import RunDirectory
from posttrainbench.pipeline.scoring import evaluate_model
from posttrainbench.pipeline.spec import RunSpec
from posttrainbench.sandbox import get_backend

AGENTS = ("honest-sft", "train-on-test", "submit-instruct", "idle")
MODEL, BENCHMARK = "ptb-tiny-base", "smoke-math"
# The slowest of them needs about 80 s on 2 cores; a slow machine may take its time.
HOURS = 0.1


def _reference(out: Path, model: ResolvedModel, kind: str) -> None:
    """Score the base or instruct model itself, unless that was done before."""
    output = out / "references" / model.entry.name / BENCHMARK / kind
    directory = model.base if kind == "base" else model.instruct
    if directory is None or (output / "metrics.json").exists():
        return
    request = EvaluationRequest(
        benchmark=BENCHMARK,
        model=str(directory),
        base_model=model.entry.name,
        template=model.entry.template,
        output=str(output),
    )
    evaluate_model(request, backend=get_backend())


def _run_of(out: Path, agent: str, plan: dict[str, str]) -> RunDirectory:
    """The run of an agent: the one that an earlier, unfinished demo began, or a new one."""
    if agent in plan:
        try:
            return RunDirectory.open(out / plan[agent])
        except PTBError:
            pass
    spec = RunSpec(agent=f"scripted:{agent}", base_model=MODEL, benchmark=BENCHMARK, hours=HOURS, grace_s=5.0)
    run = prepare(spec, results=out, group="runs")
    plan[agent] = str(run.path.relative_to(out.absolute()))
    write_json(out / "demo.json", plan)
    return run


@click.command("demo")
@click.option(
    "--out", type=click.Path(path_type=Path), default="results/demo", show_default=True, help="Results directory."
)
@click.option("--fresh", is_flag=True, help="Run all agents again, even if an earlier demo in the same place finished.")
def command(out: Path, fresh: bool) -> None:
    """Run four scripted agents on the built-in tiny model, then print the leaderboard.

    One trains honestly, one trains on the test items, one submits the instruct model, one submits nothing. Interrupted, it
    goes on where it was.
    """
    began = time.monotonic()
    check_results(out, needed=2**28)
    plan: dict[str, str] = {} if fresh or not (out / "demo.json").exists() else read_json(out / "demo.json")
    model = resolve(MODEL)
    for agent in AGENTS:
        run = _run_of(out, agent, plan)
        print(f"== scripted:{agent}")
        with interruptible(run) as cancelled, progress(agent) as shown:
            resume(Context(run=run, progress=shown, cancelled=cancelled))
        print(f"   {describe_result(run)}")
    print("== references: the base and the instruct model as they are")
    for kind in ("base", "instruct"):
        _reference(out, model, kind)
    print()
    print(as_text(aggregate(out)))
    print()
    print(f"Took {time.monotonic() - began:.0f} s. Everything is in {out}:")
    for agent in AGENTS:
        print(f"  ptb show {out / plan[agent]}")
    print(f"  ptb leaderboard {out} --format json")

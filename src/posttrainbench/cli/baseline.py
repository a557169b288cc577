"""`ptb baseline`: compute the reference rows of the leaderboard."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from posttrainbench.cli.working import sandbox_options
from posttrainbench.errors import ConfigurationError
from posttrainbench.evaluation import baseline as baselines
from posttrainbench.evaluation.report import score_text
from posttrainbench.evaluation.request import DEFAULT_GRADER


@click.command("baseline")
@click.argument("model")
@click.option("--kind", type=click.Choice(baselines.KINDS), required=True, help="Which reference row.")
@click.option("--benchmark", "benchmarks", multiple=True, required=True, help="Target benchmark; may be repeated.")
@click.option(
    "--out",
    envvar="PTB_RESULTS",
    default="results",
    show_default=True,
    type=click.Path(path_type=Path),
    help="Results directory; the row goes to references/ in it.",
)
@click.option("--engine", type=click.Choice(["transformers", "vllm"]), default="transformers", show_default=True)
@click.option(
    "--limit", type=click.IntRange(min=1), help="Score the first N items only (no reference for a leaderboard)."
)
@click.option("--batch-size", type=click.IntRange(min=1), help="Sequences that the engine runs at once.")
@click.option("--seed", type=int, default=0, show_default=True)
@click.option("--epochs", type=click.IntRange(min=1), help="Answers per item. [default: 1; few-shot: 10]")
@click.option("--data-dir", type=click.Path(path_type=Path), help="Directory of the benchmarks' original data files.")
@click.option("--shots", type=click.Path(path_type=Path), help="Worked examples for --kind few-shot, as JSON.")
@click.option("--grader", default=DEFAULT_GRADER, show_default=True, help="Inspect model for LLM-graded benchmarks.")
@sandbox_options
def baseline(
    model: str,
    kind: baselines.Kind,
    benchmarks: tuple[str, ...],
    out: Path,
    shots: Path | None,
    epochs: int | None,
    data_dir: Path | None,
    sandbox: str,
    image: str | None,
    **options: Any,
) -> None:
    """Evaluate the base model MODEL, or its instruct counterpart, as it is: the rows that agents are compared with."""
    from posttrainbench.pipeline.models import resolve
    from posttrainbench.pipeline.scoring import evaluate_model
    from posttrainbench.sandbox import get_backend

    resolved = resolve(model)
    directory = resolved.instruct if kind == "instruct" else resolved.base
    if directory is None:
        raise ConfigurationError(f"no instruct counterpart of {resolved.entry.name}: {resolved.instruct_problem}")
    if epochs is not None:
        options["epochs"] = epochs
    if data_dir is not None:
        options["data_dir"] = str(data_dir.absolute())
    backend = get_backend(sandbox, image=image)
    for benchmark in benchmarks:
        metrics = baselines.compute(
            resolved.entry,
            kind=kind,
            benchmark=benchmark,
            model=directory,
            out=out,
            shots=shots,
            evaluate=lambda request: evaluate_model(request, backend=backend),
            **options,
        )
        click.echo(f"{resolved.entry.name} {benchmark} {kind}: {score_text(metrics, 'strict')}")
        click.echo(str(baselines.output_directory(out, resolved.entry, benchmark, kind) / "metrics.json"))

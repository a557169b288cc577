"""`ptb evaluate`: score a model directory, stored outputs, or a finished run again."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import click

from posttrainbench import catalog
from posttrainbench.cli.working import describe_result, interruptible, progress, results_option, sandbox_options
from posttrainbench.errors import ConfigurationError
from posttrainbench.evaluation.report import score_text
from posttrainbench.evaluation.request import DEFAULT_GRADER, EvaluationRequest
from posttrainbench.files import write_json
from posttrainbench.pipeline.context import Context
from posttrainbench.pipeline.models import ResolvedModel, model_to_score
from posttrainbench.pipeline.run import repeat
from posttrainbench.pipeline.run_dir import RunDirectory
from posttrainbench.pipeline.scoring import evaluate_model
from posttrainbench.sandbox import get_backend
from posttrainbench.workspace.build import template_for


def _output_directory(results: Path, label: str, benchmark: str) -> Path:
    """A new directory below the results, numbered, so that no evaluation overwrites another."""
    parent = results.absolute() / "evaluations"
    try:
        parent.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise ConfigurationError(f"the results directory {results} cannot be made: {error.strerror}") from None
    for number in range(1, 100_000):
        path = parent / f"{label}-{benchmark}-{number}"
        try:
            path.mkdir()
        except FileExistsError:
            continue
        return path
    raise ConfigurationError(f"{parent} is full of evaluations of {label}; clean it up")


def _again(run: RunDirectory) -> None:
    with interruptible(run) as cancelled:
        with progress(run.path.name) as shown:
            repeat(Context(run=run, progress=shown, cancelled=cancelled), "evaluate")
        print(describe_result(run))
        print(run.path)


def print_scores(metrics: dict[str, Any]) -> None:
    """Both scores with their standard errors."""
    for name in ("strict", "paper"):
        print(f"{name}: {score_text(metrics, name)}")


@click.command("evaluate")
@click.argument("target", required=False)
@click.option("--benchmark", help="Target benchmark, see `ptb list benchmarks`. Not needed for a run.")
@click.option("--base-model", help="Declared base model; decides the template. [default: by the config's architecture]")
@click.option(
    "--engine", type=click.Choice(["transformers", "vllm", "replay"]), default="transformers", show_default=True
)
@click.option(
    "--completions", type=click.Path(path_type=Path), help="Stored outputs for --engine replay: JSONL or .eval."
)
@click.option("--limit", type=int, help="Score the first N items only.")
@click.option("--max-tokens", type=int, help="Generated tokens per item. [default: the protocol's]")
@click.option("--batch-size", type=int, help="Sequences that the engine runs at once.")
@click.option("--seed", type=int, default=0, show_default=True)
@click.option("--epochs", type=int, default=1, show_default=True, help="Answers per item, each with its own seed.")
@click.option("--data-dir", type=click.Path(path_type=Path), help="Directory of the benchmark's original data files.")
@click.option("--grader", default=DEFAULT_GRADER, show_default=True, help="Inspect model for LLM-graded benchmarks.")
@click.option("--json-output-file", type=click.Path(path_type=Path), help="Also write the metrics there.")
@sandbox_options
@results_option
def command(
    target: str | None,
    benchmark: str | None,
    base_model: str | None,
    engine: str,
    completions: Path | None,
    limit: int | None,
    data_dir: Path | None,
    json_output_file: Path | None,
    results: Path,
    sandbox: str,
    image: str | None,
    **options: Any,
) -> None:
    """Score TARGET: a model directory, a catalogue name such as ptb-tiny-instruct, or a run directory (evaluated again).

    With --engine replay there is no TARGET: the completions in a file are scored.
    """
    if target is not None and (Path(target) / "run.json").is_file():
        _again(RunDirectory.open(Path(target)))
        return
    if benchmark is None:
        raise click.UsageError("--benchmark is missing")
    entry = catalog.benchmark(benchmark)
    entry.builder()
    for name, value in (("--limit", limit), *((f"--{key.replace('_', '-')}", options[key]) for key in _COUNTS)):
        if value is not None and value < 1:
            raise ConfigurationError(f"{name} {value} cannot be; give a number >= 1")
    model: ResolvedModel | None = None
    if engine == "replay":
        if completions is None or target is not None:
            raise click.UsageError("--engine replay takes --completions FILE and no TARGET")
        if not completions.is_file():
            raise ConfigurationError(f"there is no file {completions}")
    elif target is None:
        raise click.UsageError("TARGET is missing: a model directory, a catalogue name or a run directory")
    else:
        model = model_to_score(target, base_model=base_model)
    if json_output_file is not None and not json_output_file.absolute().parent.is_dir():
        raise ConfigurationError(f"there is no directory for --json-output-file {json_output_file}")
    backend = get_backend(sandbox, image=image)
    output = _output_directory(results, "replay" if model is None else model.base.name, entry.id)
    request = EvaluationRequest(
        benchmark=entry.id,
        model=None if model is None else str(model.base),
        base_model=base_model or ("replay" if model is None else model.entry.name),
        template="qwen3" if model is None else template_for(model.entry, entry),
        output=str(output),
        engine=engine,  # type: ignore[arg-type]  # click checked it
        limit=limit,
        data_dir=None if data_dir is None else str(data_dir.absolute()),
        completions=None if completions is None else str(completions.absolute()),
        **options,
    )
    try:
        metrics = evaluate_model(request, backend=backend)
    except BaseException:
        if not any(output.iterdir()):
            shutil.rmtree(output, ignore_errors=True)
        raise
    if json_output_file is not None:
        write_json(json_output_file, metrics)
    print_scores(metrics)
    print(output)


_COUNTS = ("max_tokens", "batch_size", "epochs")

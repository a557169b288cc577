"""The evaluation itself: load the model, run the Inspect task, write the log and `metrics.json`.

Run by the harness inside a sandbox as `python -m posttrainbench.evaluation REQUEST.json`; the agent's `evaluate.py` calls
the same code. It always leaves `outcome.json`, which says whose fault a missing score is.

What a model's sandbox must not have (a grader's key, a sandbox for programs that a model wrote) is needed by some scorers.
The catalogue lists their benchmarks with `scoring = "outside"`: the harness asks for generation only
(`score=False`), and calls `score_log` outside, which replays the stored answers through the benchmark's task, built anew
from its own data. Nothing but the answers is taken from the sandbox.
"""

from __future__ import annotations

import dataclasses
import logging
import random
import time
import traceback
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from posttrainbench import catalog
from posttrainbench.errors import ConfigurationError, PTBError, SubmissionError
from posttrainbench.evaluation.request import EvaluationRequest
from posttrainbench.files import read_json, write_json

if TYPE_CHECKING:
    from inspect_ai import Task
    from inspect_ai.log import EvalLog
    from inspect_ai.model import Model

# Samples in flight. The engine alone limits its requests (`max_connections`): Inspect's own limit, which starts at 20 and
# ends at 100 by default, would starve the batch.
_UNLIMITED = 10_000


def scoring_place(request: EvaluationRequest) -> Literal["inside", "outside"]:
    """Where the benchmark's scorers may run: `inside` the model's sandbox, or `outside` with `score_log`.

    Raises:
        ConfigurationError: unknown benchmark.
    """
    return "outside" if catalog.benchmark(request.benchmark).scoring == "outside" else "inside"


def needs_grader(request: EvaluationRequest) -> bool:
    """Whether the benchmark's scorers ask an LLM (its module declares `GRADED = True`)."""
    return bool(getattr(_module(request), "GRADED", request.benchmark in ("arenahardwriting", "healthbench")))


def check_grader(request: EvaluationRequest) -> None:
    """Make sure, before hours of generation, that the answers can be graded afterwards.

    Raises:
        ConfigurationError: the benchmark needs a grader and the one asked for has no key, package or name.
    """
    if needs_grader(request):
        from posttrainbench.evaluation.grading import get_grader

        get_grader(request.grader)


def run(request: EvaluationRequest) -> dict[str, Any]:
    """Evaluate and write `metrics.json` (returned) and one `.eval` log below `request.output`.

    Raises:
        ConfigurationError: unknown benchmark, missing data, no grader, completions that do not fit.
        SubmissionError: the model does not load.
        EngineError: the engine failed and the retry ladder ended.
        GradingStopped: the grader's quota ended; what was graded is kept.
    """
    began = time.monotonic()
    Path(request.output).mkdir(parents=True, exist_ok=True)
    logging.getLogger("transformers").setLevel(logging.ERROR)
    if request.engine == "replay":
        return _replay(request)
    outside = scoring_place(request) == "outside"
    if request.score:
        check_grader(request)
    metrics = _generate(request, score=request.score and not outside)
    metrics["seconds"] = round(time.monotonic() - began, 3)
    write_json(Path(request.output) / "metrics.json", metrics)
    return score_log(request) if request.score and outside else metrics


def score_log(request: EvaluationRequest, log: Path | None = None) -> dict[str, Any]:
    """Score answers that `run` with `score=False` left, and complete `metrics.json`.

    Args:
        request: the same request; its `score` does not matter.
        log: the `.eval` log; by default the one in `request.output`.

    Raises:
        ConfigurationError: no log, or one of another benchmark; no grader.
        GradingStopped: the grader's quota ended; what was graded is kept.
    """
    output = Path(request.output)
    if log is None:
        logs = sorted(output.glob("*.eval"))
        if len(logs) != 1:
            raise ConfigurationError(f"{output} holds {len(logs)} logs; expected the one of the generation")
        [log] = logs
    try:
        before: dict[str, Any] = read_json(output / "metrics.json")
    except (OSError, ValueError):
        before = {}
    replay = dataclasses.replace(request, engine="replay", completions=str(log), score=True)
    metrics = _replay(replay, before=before)
    log.unlink()  # the scored log holds the same answers
    return metrics


def _replay(request: EvaluationRequest, before: dict[str, Any] | None = None) -> dict[str, Any]:
    """Score stored answers. `before`: metrics of their generation, which stay where scoring does not know better."""
    from posttrainbench.evaluation import metrics as figures
    from posttrainbench.evaluation.engines import create_model
    from posttrainbench.evaluation.engines.replay import ReplayAPI, by_their_ids, check_ids

    began = time.monotonic()
    check_grader(request)
    task = build_task(request)
    model = create_model(request, template=Path(), max_tokens=0)
    assert isinstance(model.api, ReplayAPI)
    ids = [str(sample.id) for sample in task.dataset]
    wanted = ids[: request.limit] if request.limit else ids
    aliases = {alias: str(s.id) for s in task.dataset for alias in (s.metadata or {}).get("aliases", ())}
    model.api.stored = by_their_ids(model.api.stored, aliases)
    check_ids(model.api.stored, ids=ids, wanted=wanted, epochs=request.epochs)
    with _grading(request) as session:
        log = _finished(_evaluate(request, task, model, score=True, max_tokens=None), model)
    entry = catalog.benchmark(request.benchmark)
    cap = request.max_tokens or entry.max_tokens
    found = {
        **figures.identity(log, request=request, max_tokens=cap, protocol_max_tokens=entry.max_tokens),
        **figures.generation(log, request=request, template=None, api=model.api),
        **(before or {}),
        **figures.scores(log, getattr(_module(request), "AGGREGATE", None)),
        "versions": {**(before or {}).get("versions", {}), **figures.versions()},
        "scoring_seconds": round(time.monotonic() - began, 3),
    }
    if before is None:
        # nothing is known of how these answers were made
        found |= {"completions": Path(request.completions or "").name, "decoding": None, "max_tokens": None}
    if needs_grader(request):
        found["grading"] = {"grader": request.grader, **session.counts.as_dict()}
    output = Path(request.output)
    if session.stopped is not None:
        write_json(output / "metrics.partial.json", found)
        Path(log.location).unlink(missing_ok=True)
        session.raise_if_stopped()
    write_json(output / "metrics.json", found)
    (output / "metrics.partial.json").unlink(missing_ok=True)
    return found


def _generate(request: EvaluationRequest, *, score: bool) -> dict[str, Any]:
    """Run the model on the benchmark, down the retry ladder if need be."""
    from posttrainbench.evaluation import metrics as figures
    from posttrainbench.evaluation.engines import create_model
    from posttrainbench.evaluation.engines.base import Engine
    from posttrainbench.evaluation.retry import EngineError, Ladder
    from posttrainbench.evaluation.templating import template_file

    entry = catalog.benchmark(request.benchmark)
    template = template_file(request.template, Path(request.templates_dir) if request.templates_dir else None)
    max_tokens = request.max_tokens or entry.max_tokens
    task = build_task(request)  # before the model: missing data should not cost its loading time
    model = create_model(request, template=template, max_tokens=max_tokens)
    api = model.api
    assert isinstance(api, Engine)
    ladder = Ladder(api.parameters)
    try:
        with _grading(request) as session:
            while True:
                try:
                    api.begin_attempt()
                    log = _evaluate(request, task, model, score=score, max_tokens=api.parameters.max_tokens)
                    problem = api.failure if log.status != "success" else None
                    if problem is None:
                        log = _finished(log, model)
                        break
                    Path(log.location).unlink(missing_ok=True)
                except EngineError as error:
                    problem = error
                parameters = ladder.failed(problem.failure, str(problem))
                if parameters is None:
                    problem.attempts = ladder.as_list()
                    raise problem
                api.apply(parameters)
                task = build_task(request)
            ladder.succeeded()
            session.raise_if_stopped()
    finally:
        api.close()
    found = {
        **figures.identity(
            log, request=request, max_tokens=api.parameters.max_tokens, protocol_max_tokens=entry.max_tokens
        ),
        **(figures.scores(log, getattr(_module(request), "AGGREGATE", None)) if score else _unscored()),
        **figures.generation(log, request=request, template=template, api=api),
        "parameters": dataclasses.asdict(api.parameters),
        "attempts": ladder.as_list(),
        "versions": figures.versions(),
    }
    if score and needs_grader(request):
        found["grading"] = {"grader": request.grader, **session.counts.as_dict()}
    return found


def _unscored() -> dict[str, Any]:
    from posttrainbench.evaluation.metrics import SCORERS

    return {name: {"accuracy": None, "stderr": None, "scored": 0, "missing": None} for name in SCORERS}


def _module(request: EvaluationRequest) -> Any:
    import sys

    build = catalog.benchmark(request.benchmark).builder()
    return sys.modules[build.__module__]


def build_task(request: EvaluationRequest) -> Task:
    """The benchmark's Inspect task for this request.

    Raises:
        ConfigurationError: unknown benchmark, no data.
    """
    from posttrainbench.evaluation.benchmarks import BenchmarkOptions

    options = BenchmarkOptions(
        data_dir=Path(request.data_dir) if request.data_dir else None,
        seed=request.seed,
        epochs=request.epochs,
        grader=request.grader,
        grading_cache=_cache_path(request),
    )
    task: Task = catalog.benchmark(request.benchmark).builder()(options)
    if request.subset is not None:
        from inspect_ai.dataset import MemoryDataset

        order = sorted(task.dataset, key=lambda sample: str(sample.id))
        # an item's own seed comes from its id, not from its place: its answer stays the same
        random.Random(f"{request.subset}:{request.benchmark}").shuffle(order)
        task.dataset = MemoryDataset(order, name=task.dataset.name)
    if request.system_message:
        from inspect_ai.model import ChatMessageSystem, ChatMessageUser

        for sample in task.dataset:
            rest = [ChatMessageUser(content=sample.input)] if isinstance(sample.input, str) else sample.input
            sample.input = [ChatMessageSystem(content=request.system_message), *rest]
    return task


def _cache_path(request: EvaluationRequest) -> Path:
    return Path(request.grading_cache) if request.grading_cache else Path(request.output) / "grading.jsonl"


@contextmanager
def _grading(request: EvaluationRequest) -> Iterator[Any]:
    """A session for the scorers that grade; cheap for all others."""
    from posttrainbench.evaluation import grading

    with grading.session(_cache_path(request)) as opened:
        yield opened


def _evaluate(request: EvaluationRequest, task: Task, model: Model, *, score: bool, max_tokens: int | None) -> EvalLog:
    """One pass of Inspect. Everything that it would decide from its surroundings is said here."""
    from inspect_ai import eval as inspect_eval

    [log] = inspect_eval(
        task,
        model=model,
        limit=request.limit,
        epochs=request.epochs,
        log_dir=request.output,
        log_format="eval",
        log_level="warning",
        display="none",
        # a live view's database and many small writes cost more time than decoding with a tiny model
        log_realtime=False,
        log_buffer=_UNLIMITED,
        log_model_api=False,
        score_display=False,
        max_samples=_UNLIMITED,
        max_connections=model.api.max_connections(),
        max_retries=0,
        fail_on_error=True,
        score=score,
        max_tokens=max_tokens,
        seed=request.seed,
        metadata={"benchmark": request.benchmark, "base_model": request.base_model, "engine": request.engine},
    )
    if log.status == "cancelled":
        raise KeyboardInterrupt
    return log


def _finished(log: EvalLog, model: Model) -> EvalLog:
    """The whole log, with samples.

    Raises:
        PTBError: the error that ended the evaluation, if it is one of ours.
        RuntimeError: any other end without success.
    """
    from inspect_ai.log import read_eval_log

    if log.status != "success":
        problem = getattr(model.api, "problem", None)
        if isinstance(problem, PTBError):
            raise problem
        detail = log.error.message if log.error else "no error recorded"
        raise RuntimeError(f"the evaluation ended as {log.status!r}: {detail[:500]}")
    return read_eval_log(log.location)


def shutdown() -> None:
    """Stop the server that the vllm engine keeps for the next benchmark of the same model; does nothing without one."""
    import sys

    if "posttrainbench.evaluation.engines.server" in sys.modules:
        from posttrainbench.evaluation.engines.server import stop_server

        stop_server()


def run_recorded(request: EvaluationRequest) -> int:
    """`run`, with its outcome in `outcome.json`; returns the exit status (0 scored, 3 submission's fault, 4 other)."""
    output = Path(request.output)
    outcome: dict[str, Any]
    try:
        metrics = run(request)
    except SubmissionError as error:
        outcome, status = {"ok": False, "kind": "submission", "message": str(error)}, 3
    except PTBError as error:
        kind = "configuration" if isinstance(error, ConfigurationError) else "infrastructure"
        outcome, status = {"ok": False, "kind": kind, "message": str(error)}, 4
        # the retry ladder's record, where there is one
        outcome |= {
            name: value for name in ("failure", "attempts") if (value := getattr(error, name, None)) is not None
        }
    except Exception as error:
        traceback.print_exc()
        message = f"{type(error).__name__}: {str(error)[:500]}"
        outcome, status = {"ok": False, "kind": "infrastructure", "message": message}, 4
    else:
        outcome, status = {"ok": True, "attempts": metrics.get("attempts", [])}, 0
    finally:
        shutdown()
    write_json(output / "outcome.json", outcome)
    return status

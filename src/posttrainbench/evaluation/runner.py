"""The evaluation itself: load the model, run the Inspect task, write the log and `metrics.json`.

Run by the harness inside a sandbox as `python -m posttrainbench.evaluation REQUEST.json`; the agent's `evaluate.py` calls
the same code. It always leaves `outcome.json`, which says whose fault a missing score is.
"""

from __future__ import annotations

import logging
import traceback
from pathlib import Path
from typing import Any

from posttrainbench import catalog
from posttrainbench.errors import ConfigurationError, PTBError, SubmissionError
from posttrainbench.evaluation.request import EvaluationRequest
from posttrainbench.files import write_json


def run(request: EvaluationRequest) -> dict[str, Any]:
    """Evaluate and write `metrics.json` (returned) and one `.eval` log below `request.output`.

    Raises:
        ConfigurationError: unknown benchmark, missing data.
        SubmissionError: the model does not load.
    """
    from inspect_ai import eval as inspect_eval
    from inspect_ai.log import read_eval_log

    from posttrainbench.evaluation.benchmarks import BenchmarkOptions
    from posttrainbench.evaluation.engines import create_model
    from posttrainbench.evaluation.metrics import summarise
    from posttrainbench.evaluation.templating import template_file

    logging.getLogger("transformers").setLevel(logging.ERROR)
    benchmark = catalog.benchmark(request.benchmark)
    template = template_file(request.template, Path(request.templates_dir) if request.templates_dir else None)
    max_tokens = request.max_tokens or benchmark.max_tokens
    data_dir = Path(request.data_dir) if request.data_dir else None
    task = benchmark.builder()(BenchmarkOptions(data_dir=data_dir, seed=request.seed))
    model = create_model(request, template=template, max_tokens=max_tokens)
    output = Path(request.output)
    # Everything that Inspect would decide from its surroundings is said here, so that two runs are the same run.
    [log] = inspect_eval(
        task,
        model=model,
        limit=request.limit,
        log_dir=str(output),
        log_format="eval",
        log_level="warning",
        display="none",
        max_samples=10_000,
        max_connections=10_000,
        fail_on_error=True,
        score=request.score,
        max_tokens=max_tokens,
        seed=request.seed,
        metadata={"benchmark": request.benchmark, "base_model": request.base_model, "engine": request.engine},
    )
    if log.status != "success":
        detail = log.error.message if log.error else "no error recorded"
        raise RuntimeError(f"the evaluation ended as {log.status!r}: {detail[:500]}")
    full = read_eval_log(log.location)
    metrics = summarise(full, request=request, template=template, max_tokens=max_tokens, api=model.api)
    write_json(output / "metrics.json", metrics)
    return metrics


def run_recorded(request: EvaluationRequest) -> int:
    """`run`, with its outcome in `outcome.json`; returns the exit status (0 scored, 3 submission's fault, 4 other)."""
    output = Path(request.output)
    try:
        run(request)
    except SubmissionError as error:
        write_json(output / "outcome.json", {"ok": False, "kind": "submission", "message": str(error)})
        return 3
    except PTBError as error:
        kind = "configuration" if isinstance(error, ConfigurationError) else "infrastructure"
        write_json(output / "outcome.json", {"ok": False, "kind": kind, "message": str(error)})
        return 4
    except Exception as error:
        traceback.print_exc()
        message = f"{type(error).__name__}: {str(error)[:500]}"
        write_json(output / "outcome.json", {"ok": False, "kind": "infrastructure", "message": message})
        return 4
    write_json(output / "outcome.json", {"ok": True})
    return 0

"""Stage 5: score the submission in a fresh sandbox, from trusted code."""

from __future__ import annotations

from posttrainbench.errors import SubmissionError
from posttrainbench.evaluation import EvaluationRequest
from posttrainbench.files import read_json, remove_tree
from posttrainbench.pipeline.context import Context
from posttrainbench.pipeline.run_dir import now
from posttrainbench.pipeline.scoring import evaluate_model, rewrap
from posttrainbench.workspace.build import template_for


def evaluate(context: Context) -> None:
    """Fill `evaluation/`, or record why there is nothing to score.

    Flagged submissions are scored too: the table shows what the cheating was worth.

    Raises:
        InfrastructureError: the evaluation itself failed; it can be repeated, and is never turned into a score.
    """
    run = context.run
    context.progress.stage("evaluate")
    if run.done("evaluate"):
        # asked for again: nothing of the last time counts
        remove_tree(run.evaluation)
        run.set_stage("evaluate", status="running", started=now())
    invalid = read_json(run.audit / "verdict.json")["invalid"]
    if read_json(run.collection_file)["submission"] is None:
        run.set_stage("evaluate", status="done", ended=now(), outcome="no_submission")
        return
    if invalid:
        run.set_stage("evaluate", status="done", ended=now(), outcome="unloadable", reason=invalid[0])
        return
    model = run.path / ".model"
    remove_tree(model)
    try:
        rewrap(run.submission, context.base, model)
        request = EvaluationRequest(
            benchmark=context.benchmark.id,
            model=str(model),
            base_model=context.model.name,
            template=template_for(context.model, context.benchmark),
            output=str(run.evaluation),
            seed=context.spec.seed,
            data_dir=context.spec.data_dir,
            grader=context.spec.grader,
            grading_cache=str(run.path / "grading.jsonl"),
        )
        metrics = evaluate_model(
            request,
            backend=context.backend,
            gpus=tuple(context.record["gpus"]),
            memory_bytes=context.memory_bytes,
            cancelled=context.cancelled,
        )
    except SubmissionError as error:
        run.set_stage("evaluate", status="done", ended=now(), outcome="unloadable", reason=str(error))
        return
    finally:
        remove_tree(model)
    run.set_stage("evaluate", status="done", ended=now(), outcome="scored", score=metrics["strict"]["accuracy"])

"""The story of a run: the stages in order, from wherever it stands."""

from __future__ import annotations

import traceback
from collections.abc import Callable, Mapping
from typing import Any

from posttrainbench.errors import ConfigurationError, InfrastructureError, PTBError
from posttrainbench.files import read_json, remove_tree, write_atomic, write_json
from posttrainbench.pipeline import cleaned, quota, room
from posttrainbench.pipeline.audit import audit
from posttrainbench.pipeline.collect import collect
from posttrainbench.pipeline.conclude import conclude
from posttrainbench.pipeline.context import Context
from posttrainbench.pipeline.evaluate import evaluate
from posttrainbench.pipeline.finalize import finalize
from posttrainbench.pipeline.run_dir import STAGES, RunDirectory, now
from posttrainbench.pipeline.solve import Interrupted, solve

_STAGES: Mapping[str, Callable[[Context], None]] = {
    "solve": solve,
    "collect": collect,
    "audit": audit,
    "evaluate": evaluate,
    "finalize": finalize,
}


def run_stage(context: Context, name: str) -> None:
    """One stage, alone, whether or not it was done before. Later stages have to be repeated by the caller.

    Raises:
        PTBError: the stage failed; the run's record says so, and `ptb resume` tries again.
        Interrupted: the user asked to stop.
    """
    try:
        with quota.mounted(context, name):
            _STAGES[name](context)
    except Interrupted:
        raise
    except PTBError as error:
        # a program in a sandbox has other words for it
        if isinstance(error, InfrastructureError) and error.kind == "other" and room.none_left(context.run.path):
            raise _disk_full(context, name, because=str(error)) from error
        _record_failure(context, name, error)
        raise
    except Exception as error:
        if room.is_full(error):
            raise _disk_full(context, name) from None
        raise _unforeseen(context, name, error) from error


def _disk_full(context: Context, name: str, *, because: str = "") -> InfrastructureError:
    failure = room.failure(context.run, name, because=because)
    room.give(context.run)
    _record_failure(context, name, failure)
    return failure


def _unforeseen(context: Context, name: str, error: Exception) -> InfrastructureError:
    """A bug of ours: no reason to lose the run, nor to show a user a traceback. It is kept in the run directory."""
    details = context.run.path / f"error-{name}.txt"
    try:
        write_atomic(details, "".join(traceback.format_exception(error)))
    except OSError as second:
        if not room.is_full(second):
            raise
        return _disk_full(context, name, because=f"{type(error).__name__}: {error}")
    failure = InfrastructureError(f"stage {name} failed: {type(error).__name__}; please report {details}")
    _record_failure(context, name, failure)
    return failure


def _record_failure(context: Context, name: str, error: PTBError) -> None:
    """Note in the record, and in a result.json of status `infra_error`, that a stage failed."""
    try:
        before = context.run.stage(name)
        attempts = {"attempts": before["attempts"]} if "attempts" in before else {}
        context.run.set_stage(name, status="failed", ended=now(), error=str(error), **attempts)
        write_json(context.run.result_file, _failed(context.run, name, error))
    except OSError:
        # the error itself is on its way to the user; a full disk must not hide it behind a second one
        pass


def _failed(run: RunDirectory, name: str, error: PTBError) -> dict[str, Any]:
    """A result.json for a run with a failed stage. What the audit found stays found: a flag is not lost with a score."""
    record = run.record()
    flagged = False
    if record["stages"].get("audit", {}).get("status") == "done":
        verdict = read_json(run.audit / "verdict.json")
        flagged = verdict["verdict"] == "flagged"
    return {
        "format": 1,
        "id": record["id"],
        "agent": record["agent"]["name"],
        "base_model": record["base_model"]["name"],
        "benchmark": record["benchmark"],
        "status": "flagged" if flagged else "infra_error",
        "score": None,
        "own_score": None,
        "verdict": "flagged" if flagged else None,
        "rules": verdict["rules"] if flagged else [],
        "stage": name,
        "error": str(error),
        "kind": getattr(error, "kind", None),
        "reasons": verdict["reasons"] if flagged else [str(error)],
    }


# What a stage that was killed may leave: drafts of files, of the evaluation, of a collection. All are made anew.
_DRAFTS = (
    ".*.tmp",
    "*/.*.tmp",
    "ptb-scratch-*",
    ".evaluate-*",
    ".memory-*",
    ".evaluation.new",
    ".collect",
    ".model",
    ".sealed",
)


def _sweep(run: RunDirectory) -> None:
    """Remove drafts of a killed predecessor. Only under the lock: a living process has drafts too."""
    patterns = (*_DRAFTS, run.job.root.name, quota.IMAGE) if run.done("collect") else _DRAFTS
    for pattern in patterns:
        for path in run.path.glob(pattern):
            if path.is_dir() and not path.is_symlink():
                remove_tree(path)
            else:
                path.unlink(missing_ok=True)


def resume(context: Context, *, until: str = STAGES[-1]) -> None:
    """Do every stage that is not done, in order. On a finished run it does nothing.

    Args:
        context: the run.
        until: the last stage to do; the rest can be done later, and elsewhere.

    Raises:
        ConfigurationError: another process works on the run.
        PTBError: a stage failed.
        Interrupted: the user asked to stop.
    """
    with context.run.locked():
        if context.run.done(STAGES[-1]):
            return
        _sweep(context.run)
        for name in STAGES[1 : STAGES.index(until) + 1]:
            if not context.run.done(name):
                with room.kept(context.run, name):
                    run_stage(context, name)


def reconclude(context: Context) -> None:
    """Make the verdict anew from the stored findings, judgements and decisions, and what follows from it.

    Raises:
        ConfigurationError: the run has not been audited, or another process works on it.
    """
    with context.run.locked():
        verdict = conclude(context.run)
        context.run.set_stage("audit", **{**context.run.stage("audit"), "verdict": verdict["verdict"]})
        if context.run.done("evaluate") and context.run.done("finalize"):
            run_stage(context, "finalize")


def repeat(context: Context, name: str) -> None:
    """Repeat a finished stage (`audit` or `evaluate`) and what follows from it.

    Raises:
        ConfigurationError: an earlier stage is not done, or another process works on the run.
        PTBError: a stage failed.
    """
    with context.run.locked():
        if name == "audit":
            cleaned.need(context.run, "snapshots", "submissions", "hub-files", to="audit it")
        else:
            cleaned.need(context.run, "submissions", to="evaluate it")
        for earlier in STAGES[: STAGES.index(name)]:
            if not context.run.done(earlier):
                raise ConfigurationError(
                    f"stage {earlier} of {context.run.path} is not done; first `ptb resume {context.run.path}`"
                )
        # should this be interrupted, `ptb resume` must not take the run for finished
        context.run.set_stage("finalize", status="pending")
        run_stage(context, name)
        # a new audit can make another submission scorable, and the result follows from both
        if name == "audit" and context.run.done("evaluate"):
            outcome = context.run.stage("evaluate")["outcome"]
            invalid = bool(read_json(context.run.audit / "verdict.json")["invalid"])
            if invalid == (outcome == "scored"):
                run_stage(context, "evaluate")
        if context.run.done("evaluate"):
            run_stage(context, "finalize")

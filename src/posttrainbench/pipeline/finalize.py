"""Stage 6: one file that says how the run went."""

from __future__ import annotations

from typing import Any

from posttrainbench.files import read_json, write_json
from posttrainbench.pipeline.context import Context
from posttrainbench.pipeline.ending import POLICY, Ending
from posttrainbench.pipeline.run_dir import RunDirectory, now


def status_of(outcome: str, verdict: str, ending: Ending | None = None) -> str:
    """Status of the cell from how the agent, the evaluation and the audit ended. Cheating weighs more than a broken model.

    Nothing submitted because the model's API was gone (key, quota, network) is no result of the agent's, unless it had
    cheated by then: such a run is not one to repeat.
    """
    if outcome == "no_submission":
        if verdict != "flagged" and ending is not None and POLICY[ending].infrastructure:
            return "infra_error"
        return "no_submission"
    if verdict == "flagged":
        return "flagged"
    return outcome


def summary(run: RunDirectory) -> dict[str, Any]:
    """The content of result.json from what the stages recorded."""
    record = run.record()
    stages = record["stages"]
    verdict = read_json(run.audit / "verdict.json")
    outcome = stages["evaluate"]["outcome"]
    metrics = read_json(run.evaluation / "metrics.json") if outcome == "scored" else None
    # of an imported run only the paper's score is known
    strict = metrics[metrics.get("primary", "strict")] if metrics else {"accuracy": None, "stderr": None}
    solve = stages["solve"]
    ending = Ending(solve["ending"]) if "ending" in solve else None
    status = status_of(outcome, verdict["verdict"], ending)
    reasons = list(verdict["reasons"]) or ([stages["evaluate"]["reason"]] if "reason" in stages["evaluate"] else [])
    if ending is not None and POLICY[ending].infrastructure:
        reasons.insert(0, _what_happened(ending, solve))
    usage = solve.get("usage") or {}
    sealed = solve.get("sealed")
    return {
        "format": 1,
        "id": record["id"],
        "agent": record["agent"]["name"],
        "base_model": record["base_model"]["name"],
        "benchmark": record["benchmark"],
        "status": status,
        # the submission's own score; what a table shows for it depends on the status and on the base model's score
        "score": strict["accuracy"] if status == "scored" else None,
        "own_score": strict["accuracy"],
        "stderr": strict["stderr"],
        "paper_score": metrics["paper"]["accuracy"] if metrics else None,
        "verdict": verdict["verdict"],
        "rules": verdict["rules"],
        "reasons": reasons,
        "error": reasons[0] if status == "infra_error" else None,
        "ending": solve.get("ending"),
        "sessions": len(solve.get("sessions", ())) or None,
        "agent_exit": {"returncode": solve["returncode"], "reason": solve["reason"]},
        "wall_s": solve["wall_s"],
        "hours": record["spec"]["hours"],
        "protocol": record["protocol"]["version"],
        "test_data": record["protocol"].get("test_data", "visible"),
        # how often the agent had the sealed items scored: a score that was climbed by many calls says less
        "test_calls": None if sealed is None else sealed["calls"],
        "tokens": usage.get("tokens"),
        "cost_usd": usage.get("cost_usd"),
    }


def _what_happened(ending: Ending, solve: dict[str, Any]) -> str:
    detail = next((session["detail"] for session in reversed(solve.get("sessions", ())) if session["detail"]), "")
    return f"{POLICY[ending].says}" + (f": {detail}" if detail else "")


def finalize(context: Context) -> None:
    """Write `result.json`."""
    context.progress.stage("finalize")
    write_json(context.run.result_file, summary(context.run))
    context.run.set_stage("finalize", status="done", ended=now())

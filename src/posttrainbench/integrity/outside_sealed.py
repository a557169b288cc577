"""What the agent asked of its sealed test data: how often it had models scored, and what it tried instead.

Asking is allowed, within the run's budget. Each answer tells something of the test items all the same, and the best of many
models by their scores is partly the luckiest: the number of calls is for whoever reads the result, never for the verdict.
"""

from __future__ import annotations

from collections import Counter
from pathlib import Path

from posttrainbench.gateway.sealed_spool import read_calls
from posttrainbench.integrity.finding import Finding
from posttrainbench.integrity.outside import NAME, lines

RULE = "sealed-evaluations"
_EXAMPLES = 10


def sealed_findings(directory: Path) -> list[Finding]:
    """Findings from `gateway/sealed.jsonl` and `gateway/sealed-requests.jsonl`; none for a run with visible test data."""
    calls = read_calls(directory)
    findings = []
    if calls:
        scored = [call for call in calls if call.get("state") == "done"]
        models = {str(call.get("weights")) for call in scored}
        seconds = sum(float(call["seconds"]) for call in calls if isinstance(call.get("seconds"), int | float))
        findings.append(
            _info(
                RULE,
                f"the agent had {len(models)} model(s) scored on the sealed test items, in {len(scored)} evaluation(s)",
                [f"{call.get('time')} {call.get('path')} {_score(call)}"[:200] for call in scored],
                calls=len(calls),
                scored=len(scored),
                models=len(models),
                seconds=round(seconds, 1),
            )
        )
    refused = [call for call in calls if call.get("kind") == "path"]
    if refused:
        where = [f"{call.get('time')} {ascii(call.get('path'))[:150]}" for call in refused]
        summary = f"{len(refused)} path(s) that the agent asked to have evaluated were refused"
        findings.append(_info("sealed-path", summary, where, count=len(refused)))
    reasons: Counter[str] = Counter()
    for row in lines(directory / "sealed-requests.jsonl"):
        if row.get("event") == "refused":
            reasons[str(row.get("reason"))] += 1
    if reasons:
        summary = f"the evaluation service refused {reasons.total()} request(s) of the agent's"
        findings.append(_info("sealed-refused", summary, [], **dict(reasons)))
    return findings


def _score(call: dict[str, object]) -> str:
    strict = call.get("strict")
    return f"{strict.get('accuracy')} on {call.get('n')} items" if isinstance(strict, dict) else ""


def _info(rule: str, summary: str, where: list[str], **numbers: object) -> Finding:
    return Finding(
        detector=NAME,
        rule=rule,
        severity="info",
        family="network",
        summary=summary,
        where=tuple(where[:_EXAMPLES]),
        numbers=numbers,
    )

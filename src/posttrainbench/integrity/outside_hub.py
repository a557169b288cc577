"""What the agent fetched from the model hub and what it was refused, from `gateway/hub.jsonl` and the copies beside it.

A refused try had no effect, and fetching is not training: nothing here is more than weak evidence. What the guarded policy
would have refused and another policy let through is named; so are test items in data files that were handed out, whatever
the agent did with them afterwards.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from posttrainbench.errors import PTBError
from posttrainbench.integrity.finding import Evidence, Finding, Severity
from posttrainbench.integrity.outside import NAME, lines

_EXAMPLES = 10
_SECONDS = 120.0
# rules of gateway/policies/hub: rule of the finding, and what it means where it refused and where it did not
_RULES: Mapping[str, tuple[str, str]] = {
    "test-data": ("test-data", "test data of the run's benchmark"),
    "test-data-copy": ("test-data", "a copy of test data under another name"),
    "other-weights": ("other-weights", "weights of a post-trained relative of the base model"),
    "benchmark-pages": ("benchmark-pages", "a repository of this benchmark"),
}


def hub_findings(evidence: Evidence) -> list[Finding]:
    """Findings about the hub door; none for a run without one."""
    log = None if evidence.gateway is None else evidence.gateway / "hub.jsonl"
    if log is None or not log.is_file():
        return []
    return [*_asked(log, evidence.record), *_contents(log, evidence)]


def _asked(log: Path, record: Mapping[str, Any]) -> list[Finding]:
    counts: Counter[tuple[bool, str]] = Counter()
    examples: dict[tuple[bool, str], list[str]] = {}
    judge = _Guarded(record)
    for row in lines(log):
        if row.get("allowed") is False:
            key = (False, str(row.get("rule")))
        elif row.get("what") == "file" and row.get("sent") and (rule := judge.rule(row)):
            key = (True, rule)
        else:
            continue
        # a flood is thinned in the log
        counts[key] += 1000 if row.get("refused_so_far") else 1
        told = examples.setdefault(key, [])
        name = f"{row.get('repo') or row.get('path') or ''} {row.get('file') or ''}".strip()[:200]
        if len(told) < _EXAMPLES and name not in told:
            told.append(name)
    return [_finding(key, count, examples[key]) for key, count in sorted(counts.items())]


def _finding(key: tuple[bool, str], count: int, examples: list[str]) -> Finding:
    reached, kind = key
    times = "once" if count == 1 else f"{count} times"
    severity: Severity = "weak"
    if kind in _RULES:
        rule, what = _RULES[kind]
        done = (
            f"fetched {what} from the model hub ({times})"
            if reached
            else f"asked the model hub for {what} ({times}; refused)"
        )
    else:
        rule, severity = "outside-refused", "info"
        done = f"asked the model hub for something that its door does not do ({times}; refused)"
    return Finding(
        detector=NAME,
        rule=rule,
        severity=severity,
        family="network",
        summary=f"the agent {done}",
        where=tuple(examples),
        numbers={"kind": f"hub:{kind}", "count": count, "reached": reached},
    )


class _Guarded:
    """The rules of the guarded policy, for what another one let through: by names and hashes, without asking the hub."""

    def __init__(self, record: Mapping[str, Any]) -> None:
        from posttrainbench.gateway.hub_config import HubConfig

        gateway = record.get("gateway")
        settings = gateway.get("hub") if isinstance(gateway, Mapping) else None
        self._policy = None
        if isinstance(settings, Mapping):
            try:
                config = HubConfig.from_json({**settings, "policy": "guarded"})
                self._policy, self._shape = config.rules(), config.shape
            except (PTBError, TypeError):
                return

    def rule(self, row: Mapping[str, Any]) -> str:
        """The rule that a line of the log would have met; empty for none."""
        from posttrainbench.gateway.hub_policy import Relation
        from posttrainbench.gateway.hub_requests import Repo
        from posttrainbench.gateway.policy import Refusal

        kind, name, path = row.get("type"), row.get("repo"), row.get("file")
        if self._policy is None or kind not in ("model", "dataset", "space") or not isinstance(name, str):
            return ""
        repo, path = Repo(kind=kind, name=name), str(path)
        hashes = [value for value in (row.get("sha256"), row.get("etag")) if isinstance(value, str)]
        size = row.get("size") if isinstance(row.get("size"), int) else None
        try:
            self._policy.check_file(repo, path)
            self._policy.check_content(*hashes)
            if self._policy.is_weight(repo, path, size):
                self._policy.check_weights(repo, Relation(), self._shape)
        except Refusal as refusal:
            return refusal.kind
        return ""


def _contents(log: Path, evidence: Evidence) -> list[Finding]:
    """Test items in the copies of the data files that were handed out."""
    from posttrainbench.gateway.hub_keep import FOLDER
    from posttrainbench.integrity.scan import Options, Source, items, scan

    kept = sorted(path for path in (log.parent / FOLDER).glob("[!.]*") if path.is_file() and not path.is_symlink())
    if not kept:
        return []
    try:
        tests = items.load(evidence.benchmark, evidence.data_dir)
    except PTBError:
        return []  # the scanner of the workspace says so
    names = {str(row.get("sha256")): f"{row.get('repo')}/{row.get('file')}" for row in lines(log)}
    sources = [
        Source(path=path, name=names.get(path.name.partition(".")[0], path.name)[:300], size=path.stat().st_size)
        for path in kept
    ]
    report = scan(sources, tests, options=Options(texts=False, seconds=_SECONDS), execute=False)
    found = Counter(file for file, _ in {(hit.file, hit.item) for hit in report.hits})
    if not found:
        return []
    distinct = len({hit.item for hit in report.hits})
    files = [name for name, _ in found.most_common(_EXAMPLES)]
    return [
        Finding(
            detector=NAME,
            rule="test-data",
            severity="weak",
            family="network",
            summary=f"data that the agent fetched from the model hub holds {distinct} of {report.items} test items, most in "
            f"{files[0]}",
            where=tuple(files),
            numbers={"items_found": distinct, "items": report.items, "documents": report.documents, "files": len(kept)},
        )
    ]

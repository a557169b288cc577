"""Test items in texts that the agent wrote (with its tools, or as here-documents) and that are no longer in its files."""

from __future__ import annotations

from pathlib import Path
from typing import Any, cast

from posttrainbench.errors import PTBError
from posttrainbench.integrity import overlap
from posttrainbench.integrity.deeds import bare, deeds, place
from posttrainbench.integrity.finding import Evidence, Finding, Outcome, Severity
from posttrainbench.integrity.scan import Options, Source, items, scan
from posttrainbench.scratch import Scratch

NAME = "vanished"
_SHORTEST = 40


def detect(evidence: Evidence) -> Outcome:
    """Scan what was written and is gone or was overwritten."""
    found = deeds(evidence)
    texts: dict[str, str] = {}
    for write in found.writes:
        text = write.content or ""
        if write.done is False or len(text) < _SHORTEST or _still_there(evidence.workspace, write.path, text):
            continue
        texts[f"{place(write.step, write.thread)}: {write.path[:150]}"] = text
    numbers: dict[str, Any] = {"texts": len(texts)}
    if not texts:
        return Outcome(numbers=numbers, problem=found.problem)
    try:
        tests = items.load(evidence.benchmark, evidence.data_dir)
    except PTBError as error:
        return Outcome(problem=str(error))
    with Scratch("vanished") as directory:
        sources = []
        for number, (name, text) in enumerate(texts.items()):
            path = directory / f"{number}{Path(name).suffix[:12]}"
            path.write_text(text, encoding="utf-8", errors="replace")
            sources.append(Source(path=path, name=name, size=path.stat().st_size))
        report = scan(sources, tests, options=Options(texts=False, seconds=120.0))
    best = overlap._by_item(report.hits)
    numbers |= {"items": report.items, "items_found": len(best)}
    if not best:
        return Outcome(numbers=numbers, problem=found.problem)
    where = list(dict.fromkeys(hit.file for hit in best.values()))
    finding = Finding(
        detector=NAME,
        rule=overlap.RULE,
        severity=cast(Severity, overlap.severity(best, items=report.items, documents=report.documents)),
        family="text",
        summary=f"{len(best)} of {report.items} test items in text that the agent wrote and that is gone, at {where[0]}",
        where=tuple(where[:20]),
        numbers={**numbers, "item_ids": sorted(best)[:50]},
    )
    return Outcome(findings=(finding,), numbers=numbers, problem=found.problem)


def _still_there(workspace: Path, path: str, text: str) -> bool:
    """Whether a file of the snapshot still holds the text; the overlap detector has then looked at it."""
    name = bare(path)
    for place_ in (
        workspace / "task" / name,
        workspace / name.removeprefix("/"),
        workspace / "home" / name.removeprefix("/home/agent/"),
    ):
        try:
            if ".." not in place_.parts and place_.is_file() and not place_.is_symlink():
                return place_.stat().st_size <= 64 * 2**20 and text.strip() in place_.read_text("utf-8", "replace")
        except (OSError, ValueError):
            continue
    return False

"""The pages of one run: overview, trace, items, gateway log, files. Made in worker processes, one run at a time."""

from __future__ import annotations

import os
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any

from posttrainbench.leaderboard import Run
from posttrainbench.site import charts, items, logs, trace
from posttrainbench.site import run_parts as show
from posttrainbench.site.pages import Writer
from posttrainbench.site.source import RunFiles, listing, mapping, number, read_files
from posttrainbench.site.text import clean, duration, percent, size

_ITEMS_ON_PAGE = 500
_TEXTS_ON_PAGE = 50
_FILES_ON_PAGE = 1000
_LOG_ROWS = 500
_LOG_PREVIEW = 8


@dataclass(frozen=True, kw_only=True)
class Place:
    """Where a run stands among the others, for links.

    Attributes:
        slug: name of its directory.
        agent_href, model_href, benchmark_href, cell_href: pages from the root of the site.
        base_score: the base model's score on this benchmark, where it is known.
        instruct_score: the instruct model's.
    """

    slug: str
    agent_href: str
    model_href: str
    benchmark_href: str
    cell_href: str
    base_score: float | None = None
    instruct_score: float | None = None

    @property
    def folder(self) -> str:
        """Its directory in the site."""
        return f"runs/{self.slug}"


def _batches(stream: Iterator[Any], count: int) -> Iterator[list[Any]]:
    while batch := list(islice(stream, count)):
        yield batch


def _neighbours(stem: str, index: int, last: int) -> dict[str, Any]:
    """Links of page `index` (from 1) of `last`; nearby pages and both ends."""
    near = sorted({1, last, *range(max(1, index - 3), min(last, index + 3) + 1)})
    return {
        "index": index,
        "last": last,
        "links": [(page, f"{stem}-{page}.html") for page in near],
        "previous": f"{stem}-{index - 1}.html" if index > 1 else "",
        "next": f"{stem}-{index + 1}.html" if index < last else "",
    }


class _RunWriter:
    """Writes the pages of one run."""

    def __init__(self, run: Run, place: Place, writer: Writer) -> None:
        self.run, self.place, self.writer = run, place, writer
        self.path = Path(run.path)
        self.common = {"run": run, "place": place}

    def name(self, file: str) -> str:
        return f"{self.place.folder}/{file}"

    def _paged(self, stem: str, batches: Iterator[list[Any]], template: str, **values: Any) -> tuple[int, int]:
        """Pages of a stream whose length nobody knows before its end; each knows whether there is a next one.

        Returns:
            How many pages and how many entries.
        """
        pages = total = 0
        batch = next(batches, None)
        while batch is not None:
            after = next(batches, None)
            pages, total = pages + 1, total + len(batch)
            shown = pages + (after is not None)
            self.writer.page(
                self.name(f"{stem}-{pages}.html"),
                template,
                **self.common,
                **values,
                entries=batch,
                pager=_neighbours(stem, pages, shown) | {"open": after is not None},
            )
            batch = after
        return pages, total

    def trace(self) -> dict[str, Any]:
        raw = self.path / "trace" / "raw.jsonl"
        found: dict[str, Any] = {"bytes": raw.stat().st_size if raw.is_file() else None, "pages": 0, "entries": 0}
        if found["bytes"] and self.writer.options.traces:
            folder = self.writer.root / self.place.folder
            folder.mkdir(parents=True, exist_ok=True)
            keeper = trace.Keeper(folder, whole=self.writer.options.texts)
            stream = trace.pages(raw, self.run.scaffold or "", keeper)
            found["pages"], found["entries"] = self._paged("trace", stream, "trace.html")
            self.writer.files |= {self.name(file) for file in keeper.files}
        return found

    def items(self) -> dict[str, Any]:
        evaluation = self.path / "evaluation"
        log = items.find_log(evaluation) if evaluation.is_dir() else None
        found: dict[str, Any] = {"pages": 0, "entries": 0, "problem": "", "log": log.name if log else ""}
        if log is None:
            return found
        texts = self.writer.options.with_items
        try:
            stream = items.items(log, texts=texts)
            batches = _batches(stream, _TEXTS_ON_PAGE if texts else _ITEMS_ON_PAGE)
            found["pages"], found["entries"] = self._paged("items", batches, "items.html")
        except items.BadLog as error:
            found["problem"] = f"{log.name} cannot be read: {show.plain(str(error), 300)}"
        return found

    def gateway(self) -> list[dict[str, Any]]:
        found = []
        for file in sorted((self.path / "gateway").glob("*.jsonl")):
            # open.jsonl is the gateway's note of calls under way
            if not file.is_file() or file.is_symlink() or file.name == "open.jsonl":
                continue
            log = logs.gateway_log(file, most=_LOG_ROWS)
            rows = [[show.plain(row.get(column), 200) for column in log.columns] for row in log.rows]
            found.append(
                {
                    "name": clean(log.name)[:60],
                    "columns": [clean(str(column))[:60] for column in log.columns],
                    "rows": rows,
                    "total": log.total,
                    "broken": log.broken,
                    "sums": [(clean(key)[:60], show.plain(value)) for key, value in log.sums.items()],
                }
            )
        if found:
            self.writer.page(self.name("gateway.html"), "gateway.html", **self.common, logs=found)
        return found

    def files(self, files: RunFiles) -> dict[str, Any]:
        rows = show.file_rows(files)
        pages, _ = self._paged("files", _batches(iter(rows), _FILES_ON_PAGE), "files.html")
        totals = {
            part: (len(kept), sum(row["bytes"] or 0 for row in kept))
            for part in ("final_model", "workspace")
            if (kept := [row for row in rows if row["part"] == part and not row["reason"]])
        }
        return {"pages": pages, "totals": totals, "refused": sum(1 for row in rows if row["reason"])}

    def overview(self, files: RunFiles, **parts: Any) -> None:
        stages = show.stages(files.record)
        use = logs.usage(self.path / "monitor.jsonl")
        usage_chart, usage_rows = show.usage_chart(use)
        self.writer.page(
            self.name("index.html"),
            "run.html",
            **self.common,
            **parts,
            preview=_LOG_PREVIEW,
            files=files,
            title=f"{clean(self.run.agent)} on {clean(self.run.pair[0])}, {clean(self.run.pair[1])}",
            stages=stages,
            stage_chart=show.stage_chart(stages),
            usage=use,
            usage_chart=usage_chart,
            usage_rows=usage_rows,
            detectors=show.findings(files),
            verdict=mapping(files.verdict),
            judges=[(show.plain(name, 60), show.pairs(entry)) for name, entry in files.judges.items()],
            metrics=show.metrics(files),
            facts=self._facts(files),
            checks=[mapping(check) for check in listing(mapping(files.record.get("sandbox")).get("checks"))],
            prompt=clean(files.prompt),
        )

    def _facts(self, files: RunFiles) -> list[tuple[str, str]]:
        run, record = self.run, files.record
        spec, hardware = mapping(record.get("spec")), mapping(record.get("hardware"))
        sandbox = mapping(record.get("sandbox"))
        solve = mapping(mapping(record.get("stages")).get("solve"))
        gpus = [show.plain(mapping(gpu).get("name"), 60) for gpu in listing(hardware.get("gpus"))]
        machine = ", ".join(
            [
                *(gpus or ["no GPU"]),
                f"{show.plain(hardware.get('cores'))} cores",
                size(number(hardware.get("memory_bytes"))),
            ]
        )
        facts = [
            (
                "time used",
                f"{duration(run.wall_s)} of {run.hours:g} h" if run.hours is not None else duration(run.wall_s),
            ),
            ("agent ended", f"{show.plain(run.exit_reason)}, exit status {show.plain(solve.get('returncode'))}"),
            ("tokens", show.plain(run.total_tokens)),
            ("cost", "–" if run.cost_usd is None else f"{run.cost_usd:.2f} US$"),
            ("machine", machine),
            ("peak memory", size(number(solve.get("peak_memory_bytes")))),
            ("protocol", show.plain(run.protocol)),
            ("network", show.plain(mapping(record.get("protocol")).get("network"))),
            ("test data", show.plain(mapping(record.get("protocol")).get("test_data"))),
            ("seed", show.plain(spec.get("seed"))),
            ("sandbox", show.plain(sandbox.get("backend"))),
            *(
                (key.replace("_", " "), show.plain(sandbox[key]))
                for key in ("image_digest", "image_lock")
                if sandbox.get(key)
            ),
            ("started", show.plain(run.started)),
            ("run", show.plain(run.id)),
            *show.pairs(mapping(record.get("provenance"))),
        ]
        if run.imported:
            facts += [(f"imported: {key}", value) for key, value in show.pairs(run.imported)]
        return facts


def training(run: Run) -> dict[str, Any]:
    """What a run did to train, from the code that its trace says it executed; empty where no trace tells."""
    from posttrainbench.leaderboard.analyses import methods_of

    found = methods_of(run)
    if found is None:
        return {}
    used, attempted = sorted(found.used), sorted(found.attempted - found.used)
    return {"used": used, "attempted": attempted, "versions": found.versions, "trainings": found.trainings}


def write_run(run: Run, place: Place, writer: Writer) -> dict[str, Any]:
    """Write every page of a run.

    Returns:
        What it did to train, if that was asked for.
    """
    charts.reset()
    pages = _RunWriter(run, place, writer)
    trained = training(run) if writer.options.methods else {}
    files = read_files(run)
    pages.overview(
        files,
        trace=pages.trace(),
        items=pages.items(),
        gateway=pages.gateway(),
        listed=pages.files(files),
        counted=_counted(run, place),
        trained=trained,
    )
    return trained


def _counted(run: Run, place: Place) -> str:
    """What of this run counts on the leaderboard, in a sentence."""
    own = f"The submission itself scored {percent(run.own_score)} %." if run.own_score is not None else ""
    base = f"{percent(place.base_score)} %" if place.base_score is not None else "not known yet"
    if run.status == "scored":
        return "Its own score counts on the leaderboard."
    if run.status in ("flagged", "no_submission", "unloadable"):
        return f"The base model's score counts instead ({base}). {own}".strip()
    if run.status == "infra_error":
        return "The infrastructure failed: this run counts for nothing, and never as a score."
    return "It has no result yet and counts for nothing."


def remove_stale(root: Path, folder: str, keep: set[str]) -> None:
    """Delete files of a run's directory that its newest pages do not include."""
    directory = root / folder
    for entry in list(os.scandir(directory)) if directory.is_dir() else []:
        if entry.is_file(follow_symlinks=False) and f"{folder}/{entry.name}" not in keep:
            Path(entry.path).unlink(missing_ok=True)

"""Look for what may be removed, and say what is kept and why. Changes nothing."""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from posttrainbench import scratch
from posttrainbench.disk import machine
from posttrainbench.disk.runs import Found, drafts_below, runs_below
from posttrainbench.disk.sizes import Size, measure
from posttrainbench.errors import ConfigurationError

KINDS: Mapping[str, str] = {
    "job": "live directories of finished runs, beyond what was collected, and drafts of killed stages",
    "superseded": "sweep attempts and retired results that a later run of the cell replaced: all but records and logs",
    "leftovers": "temporary directories, unfinished run directories, control groups and containers of dead processes",
    "caches": "agent CLIs of other versions, and shared copies of model files, that nothing uses (a week old, by default)",
    "interrupted": "traces and gateway logs of attempts that died with the harness",
    "hub-files": "copies of the data that agents fetched; without them the audit cannot be repeated",
    "snapshots": "the collected work of agents (workspace/); without it neither audit nor judges can be repeated",
    "submissions": "the submitted weights (final_model/); without them neither audit nor evaluation can be repeated",
}
DEFAULT = ("job", "superseded", "leftovers", "caches")
"""What nobody will ask for: everything in it is collected elsewhere, made again when needed, or of the dead."""
_OF_RUNS = ("job", "superseded", "interrupted", "hub-files", "snapshots", "submissions")
_CACHES_S = 7 * 86_400.0


@dataclass(frozen=True, kw_only=True)
class Item:
    """Something that may go.

    Attributes:
        what: key of `KINDS`.
        path: where it is.
        reason: what it is, for people.
        size: bytes.
        run: the run that it belongs to, if any.
        container: engine and id, where it is none of the file system.
    """

    what: str
    path: Path
    reason: str
    size: Size = field(default_factory=lambda: Size(0, 0))
    run: Path | None = None
    container: tuple[str, str] | None = None

    def as_json(self) -> dict[str, Any]:
        """Plain data."""
        return {
            "what": self.what,
            "path": str(self.path),
            "reason": self.reason,
            "bytes": self.size.held,
            "frees_bytes": self.size.freed,
            "run": None if self.run is None else str(self.run),
        }


@dataclass(frozen=True)
class Kept:
    """A run of which something would go, were it not for the reason."""

    path: Path
    reason: str


@dataclass(frozen=True, kw_only=True)
class Search:
    """What to look for.

    Attributes:
        targets: results directories, sweeps and runs.
        kinds: keys of `KINDS`.
        older_s: only what is older (seconds since the end of the run, or the last use); `None` for any age.
        unfinished: also runs that `ptb resume` would go on with.
        machine: also what lies outside of the targets: temporary directories, caches, control groups, containers.
    """

    targets: tuple[Path, ...]
    kinds: tuple[str, ...] = DEFAULT
    older_s: float | None = None
    unfinished: bool = False
    machine: bool = True


def find(search: Search) -> tuple[list[Item], list[Kept]]:
    """Everything that may go, and runs that keep what would.

    Raises:
        ConfigurationError: a target is not there.
    """
    items: list[Item] = []
    kept: list[Kept] = []
    seen: set[Path] = set()
    for target in search.targets:
        if not target.is_dir():
            raise ConfigurationError(f"there is no directory {target}; name results, sweeps or runs")
        # the user may name a link; below it none is followed
        root = target.resolve()
        for found in runs_below(root):
            if found.run.path not in seen:
                seen.add(found.run.path)
                _of_run(found, search, items, kept)
        if "leftovers" in search.kinds:
            items += [
                _item("leftovers", path, "a temporary directory of a dead process") for path in scratch.dead(root)
            ]
            items += [
                _item("leftovers", path, "a run that was killed while it was prepared") for path in drafts_below(root)
            ]
    if search.machine:
        items += _of_machine(search)
    return items, kept


def _item(what: str, path: Path, reason: str, run: Path | None = None) -> Item:
    return Item(what=what, path=path, reason=reason, size=measure([path]), run=run)


def _of_run(found: Found, search: Search, items: list[Item], kept: list[Kept]) -> None:
    path = found.run.path
    young = search.older_s is not None and time.time() - found.ended < search.older_s
    for what in (kind for kind in _OF_RUNS if kind in search.kinds):
        if (what == "superseded") != (found.state == "superseded"):
            # of a superseded run every part may go, and nothing of others for that reason
            continue
        parts = list(found.parts(what))
        if not parts:
            continue
        refusal = _refusal(found, what, search)
        if refusal:
            kept.append(Kept(path, f"{what}: {refusal}"))
        elif not young:
            items += [_item(what, part, reason, path) for part, reason in parts]
    if "leftovers" in search.kinds and found.state == "unfinished":
        items += [_item("leftovers", part, reason, path) for part, reason in found.parts("drafts")]


def _refusal(found: Found, what: str, search: Search) -> str:
    """Why a run keeps its parts; empty if it does not."""
    if found.state == "running":
        return "a process works on it"
    if found.state == "foreign":
        return "it belongs to another user"
    if found.state != "unfinished":
        return ""
    if what not in ("job", "interrupted"):
        return "the run is not finished, and its next stages read them"
    if what == "job" and found.solved:
        return f"the agent's work is not collected yet; first `ptb resume {found.run.path}`"
    return "" if search.unfinished else f"`ptb resume {found.run.path}` would go on; --include-unfinished gives it up"


def _of_machine(search: Search) -> Iterator[Item]:
    if "leftovers" in search.kinds:
        for path, reason in machine.leftovers(search.older_s):
            yield _item("leftovers", path, reason)
        for engine, identity, state in machine.ended_containers():
            yield Item(
                what="leftovers",
                path=Path(f"{engine}:{identity}"),
                reason=f"a container of ours that has ended ({state})",
                container=(engine, identity),
            )
    if "caches" in search.kinds:
        older = _CACHES_S if search.older_s is None else search.older_s
        for path, reason in (*machine.old_versions(older), *machine.unused_copies(older)):
            yield _item("caches", path, reason)

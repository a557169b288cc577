"""What dead harnesses left on this machine outside of run directories, and caches that nothing uses."""

from __future__ import annotations

import contextlib
import json
import os
import re
import shutil
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from posttrainbench import catalog, scratch
from posttrainbench.errors import PTBError
from posttrainbench.pipeline.copies import Copies
from posttrainbench.sandbox.containers import RUN_LABEL
from posttrainbench.sandbox.limits import stale_groups
from posttrainbench.scaffolds import install

_DAY_S = 86_400.0
_ENGINES = ("podman", "docker")
_ENDED = ("exited", "created", "dead", "stopped")


def leftovers(older_s: float | None) -> Iterator[tuple[Path, str]]:
    """Temporary directories and control groups of dead processes.

    Args:
        older_s: seconds; of what no lock tells dead from living. Default a day.
    """
    for path in scratch.dead():
        yield path, "a temporary directory whose process is dead"
    for path in scratch.unguarded(older_s=_DAY_S if older_s is None else older_s):
        yield path, "a temporary directory of an older version that nothing uses"
    for parent in sorted(path for path in install.agents_dir().glob("*") if path.is_dir() and not path.is_symlink()):
        for path in scratch.dead(parent):
            yield path, "an installation that was killed"
    for path in stale_groups():
        yield path, "an empty control group of a dead harness"


def old_versions(older_s: float) -> Iterator[tuple[Path, str]]:
    """Installations of agent CLIs that are not the pinned version and that nothing uses.

    Args:
        older_s: seconds since they were installed.
    """
    found = []
    for scaffold in catalog.scaffolds():
        if not scaffold.packages:
            continue
        try:
            pinned = install.place(scaffold)
        except PTBError:
            continue
        for path in sorted(pinned.parent.glob("*")) if not pinned.parent.is_symlink() else ():
            record = path / "installation.json"
            with contextlib.suppress(OSError):
                if path == pinned or path.is_symlink() or path.lstat().st_uid != os.geteuid():
                    continue
                if time.time() - record.lstat().st_mtime > older_s:
                    found.append((path, f"{scaffold.name}, not the version that this ptb runs"))
    if found:
        used = set(scratch.in_use())
        yield from (each for each in found if not any(path.is_relative_to(each[0]) for path in used))


def unused_copies(older_s: float) -> Iterator[tuple[Path, str]]:
    """Shared copies (see `pipeline.copies`) that no process uses.

    Args:
        older_s: seconds since a run asked for them.
    """
    copies = Copies()
    for copy in copies.listed():
        if time.time() - copy.used > older_s and not copies.in_use(copy.path):
            yield copy.path, "a readable copy of a model's or data set's file; made again when it is needed"


def ended_containers() -> Iterator[tuple[str, str, str]]:
    """Containers of ours that have ended: engine, id, state. Asks only for those with our label."""
    for engine in _ENGINES:
        program = shutil.which(engine)
        if program is None:
            continue
        command = [program, "ps", "--all", "--filter", f"label={RUN_LABEL}", "--format", "{{json .}}"]
        try:
            done = subprocess.run(command, capture_output=True, text=True, timeout=20, check=False)
        except (OSError, subprocess.SubprocessError):
            continue
        for row in _rows(done.stdout):
            identity, state = str(row.get("ID") or row.get("Id") or ""), str(row.get("State") or "").lower()
            # podman gives a list of names and docker a text; one that is just created may be about to start
            owner = re.search(r"\bptb-(\d+)-", str(row.get("Names")))
            alive = owner is not None and Path("/proc", owner[1]).exists()
            if identity and state in _ENDED and not alive:
                yield engine, identity, state


def _rows(text: str) -> list[dict[str, Any]]:
    """What `ps --format '{{json .}}'` prints: an array (podman), or an object on each line (docker)."""
    for pieces in ([text], text.splitlines()):
        try:
            found = [json.loads(piece) for piece in pieces if piece.strip()]
        except ValueError:
            continue
        rows = found[0] if len(found) == 1 and isinstance(found[0], list) else found
        return [row for row in rows if isinstance(row, dict)]
    return []

"""Bytes on disk, with hard links counted once: what a tree holds, and what its removal gives back."""

from __future__ import annotations

import contextlib
import os
import stat
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from posttrainbench.sandbox.watchdog import disk_usage

# bytes of a path; the kernel takes 4095, and one more name has up to 255
_LONGEST = 3500


@dataclass(frozen=True)
class Size:
    """Sizes of some trees together.

    Attributes:
        held: bytes allocated.
        freed: those of them that no name outside of the trees holds.
    """

    held: int
    freed: int


def measure(roots: Iterable[Path]) -> Size:
    """Sizes of files and directory trees. Links are not followed; what cannot be looked at does not count."""
    held = freed = 0
    names: dict[tuple[int, int], list[int]] = {}
    stack = [str(root) for root in roots]
    while stack:
        path = stack.pop()
        try:
            status = os.lstat(path)
        except OSError:
            continue
        size = status.st_blocks * 512
        if stat.S_ISDIR(status.st_mode):
            if len(os.fsencode(path)) > _LONGEST:
                deep = disk_usage([Path(path)])  # what an agent nested deeper than a path can say
                held, freed = held + deep, freed + deep
                continue
            with contextlib.suppress(OSError), os.scandir(path) as entries:
                stack += [entry.path for entry in entries]
        elif status.st_nlink > 1:
            known = names.setdefault((status.st_dev, status.st_ino), [size, status.st_nlink])
            known[1] -= 1
            continue
        held, freed = held + size, freed + size
    for size, outside in names.values():
        held += size
        freed += 0 if outside else size
    return Size(held, freed)


def parts_of_run(run: Path) -> dict[str, int]:
    """Bytes of each part of a run, largest first: its directories by name, `gateway/hub-files` apart, and files at its top.

    A file with names in two parts (weights in `.job` and `final_model` while a run is collected) counts in both, and once
    in `total`.
    """
    hub = run / "gateway" / "hub-files"
    found: dict[str, int] = {}
    files: list[Path] = []
    with contextlib.suppress(OSError), os.scandir(run) as entries:
        for entry in entries:
            if not entry.is_dir(follow_symlinks=False):
                files.append(Path(entry.path))
            elif entry.name == "gateway":
                inner = measure([hub]).held
                found |= {"gateway": measure([Path(entry.path)]).held - inner, "gateway/hub-files": inner}
            else:
                found[entry.name] = measure([Path(entry.path)]).held
    total = measure([run]).held
    found["files"] = measure(files).held
    found = {name: size for name, size in found.items() if size}
    return {"total": total, **dict(sorted(found.items(), key=lambda pair: -pair[1]))}


def size_text(size: int) -> str:
    """Bytes for people: three digits and a binary unit."""
    value = float(size)
    for unit in ("B", "KiB", "MiB", "GiB"):
        if value < 1000:
            return f"{value:.0f} {unit}" if unit == "B" or value >= 100 else f"{value:.1f} {unit}"
        value /= 1024
    return f"{value:.1f} TiB"

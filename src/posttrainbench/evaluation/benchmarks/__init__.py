"""The benchmarks: one file each, each a function that builds an Inspect task with the scorers `strict` and `paper`."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True, kw_only=True)
class BenchmarkOptions:
    """What a task builder may need.

    Attributes:
        data_dir: directory of original data files to read instead of the hub.
        seed: seed of everything random in the task (choice order, shots).
    """

    data_dir: Path | None = None
    seed: int = 0

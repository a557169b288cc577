"""The benchmarks: one file each, each a function that builds an Inspect task with the scorers `strict` and `paper`."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Literal

if TYPE_CHECKING:
    from inspect_ai.model import Model


@dataclass(frozen=True, kw_only=True)
class BenchmarkOptions:
    """What a task builder may need.

    Attributes:
        data_dir: directory of original data files to read instead of the hub.
        seed: seed of everything random in the task (the order of choices).
        epochs: answers per item.
        grader: Inspect model, or the name of one, that grades where no rule can; needed for scoring only, not for
            generating. `None` takes the published evaluation's.
        grader_attempts: how often a grading that fails or cannot be read is asked for again, the first time included.
        grading_cache: file of paid gradings, for the record; the session that the runner opens reads and writes it.
        execution: where programs are run that a model wrote: `sandbox`, `process` (limited processes, only right inside
            a sandbox) or `auto`, which takes `process` if the environment says `PTB_CONFINED=1`.
    """

    data_dir: Path | None = None
    seed: int = 0
    epochs: int = 1
    grader: Model | str | None = None
    grader_attempts: int = 5
    grading_cache: Path | None = None
    execution: Literal["auto", "sandbox", "process"] = "auto"

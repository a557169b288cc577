"""What a run is asked to be: the options of `ptb run`, checked."""

from __future__ import annotations

import dataclasses
import math
from dataclasses import dataclass
from typing import Any

from posttrainbench.errors import ConfigurationError
from posttrainbench.evaluation.request import DEFAULT_GRADER

_SHORTEST_H = 1 / 3600
_LONGEST_H = 24 * 31.0


@dataclass(frozen=True, kw_only=True)
class RunSpec:
    """One attempt at a cell.

    Attributes:
        agent: `SCAFFOLD:MODEL`.
        base_model: catalogue name, hub id or directory.
        benchmark: catalogue id.
        hours: the agent's time; fractions allowed.
        grace_s: seconds between SIGTERM at the deadline and SIGKILL.
        memory_gib: memory of the agent's process tree; `None` for what the machine has, less a reserve.
        disk_gib: what the agent may write; `None` for what the disk has, less a reserve.
        processes: processes and threads of the agent.
        gpus: indices of the GPUs the agent gets; `None` for the first one, if there is any.
        instruct: instruct counterpart, for base models that the catalogue does not have.
        seed: seed of the final evaluation.
        data_dir: directory of the benchmark's original data files, instead of the hub.
        grader: Inspect model that grades the LLM-graded benchmarks.
    """

    agent: str
    base_model: str
    benchmark: str
    hours: float = 10.0
    grace_s: float = 30.0
    memory_gib: float | None = None
    disk_gib: float | None = None
    processes: int = 4096
    gpus: tuple[int, ...] | None = None
    instruct: str | None = None
    seed: int = 0
    data_dir: str | None = None
    grader: str = DEFAULT_GRADER

    def __post_init__(self) -> None:
        """Check the numbers.

        Raises:
            ConfigurationError: a number that cannot be.
        """
        if not math.isfinite(self.hours) or not _SHORTEST_H <= self.hours <= _LONGEST_H:
            raise ConfigurationError(
                f"--hours {self.hours:g} cannot be; give a number from {_SHORTEST_H:.5f} (one second) to {_LONGEST_H:g}"
            )
        if not math.isfinite(self.grace_s) or self.grace_s < 0:
            raise ConfigurationError(f"--grace {self.grace_s:g} cannot be; give seconds >= 0")
        for option, value in (("--memory-gib", self.memory_gib), ("--disk-gib", self.disk_gib)):
            if value is not None and not (math.isfinite(value) and value > 0):
                raise ConfigurationError(f"{option} {value:g} cannot be; give GiB > 0")
        if self.processes < 16:
            raise ConfigurationError(f"--processes {self.processes} cannot be; an agent needs at least 16")

    def as_json(self) -> dict[str, Any]:
        """Plain data for run.json."""
        return dataclasses.asdict(self)

    @classmethod
    def from_json(cls, value: dict[str, Any]) -> RunSpec:
        """Read what `as_json` wrote."""
        gpus = value.get("gpus")
        return cls(**{**value, "gpus": None if gpus is None else tuple(gpus)})

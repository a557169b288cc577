"""The interface of all launchers: an engine owns the jobs, a driver only looks, submits what is missing, and may die."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Any, Literal, Protocol

from posttrainbench.errors import ConfigurationError
from posttrainbench.launch.failures import Failure
from posttrainbench.launch.store import SweepDirectory


class Part(StrEnum):
    """What of a cell a job does: everything, or up to what the agent left, or audit and evaluation of that."""

    WHOLE = "whole"
    AGENT = "agent"
    EVALUATION = "evaluation"


@dataclass(frozen=True, kw_only=True)
class Job:
    """What an engine knows of a cell's job.

    Attributes:
        state: `queued`, `running`, or `ended` where the engine still remembers one that is over.
        id: the engine's own.
        node: where it runs or ran.
        detail: the engine's words, for people: a reason for waiting, an end such as TIMEOUT.
        booked: what the engine has booked for it, for the run's record.
        failure: of a job that ended: what it means where its run has not said how it ended; `None` if somebody ended it.
        part: what of the cell it does.
        others: further jobs of the cell: those before it, and those that wait for it.
    """

    state: Literal["queued", "running", "ended"]
    id: str = ""
    node: str = ""
    detail: str = ""
    booked: Mapping[str, Any] = field(default_factory=dict)
    failure: Failure | None = None
    part: Part = Part.WHOLE
    others: tuple[Job, ...] = ()


class Launcher(Protocol):
    """A way to execute cells. Jobs are found again by the sweep's and the cell's name; a launcher keeps no state."""

    def check(self) -> list[str]:
        """What is wrong with this engine, as lines to show; empty when all is well."""
        ...

    def submit(self, keys: Sequence[str], *, hold: int | None = None) -> None:
        """Hand cells over to the engine.

        Args:
            keys: which.
            hold: descriptor of the sweep's lock. The engine's own client holds it too, so that one that goes on after
                our death is waited for, and its jobs are seen.

        Raises:
            InfrastructureError: the engine did not take them, or not all.
        """
        ...

    def jobs(self) -> Mapping[str, Job]:
        """What the engine knows, by cell.

        Raises:
            InfrastructureError: the engine does not answer, which is not the same as having no jobs.
        """
        ...

    def cancel(self, keys: Sequence[str]) -> None:
        """End jobs in an orderly way: their agents get their grace, their runs can be resumed."""
        ...


def get_launcher(sweep: SweepDirectory, table: Mapping[str, Any] | None = None) -> Launcher:
    """The launcher of a sweep.

    Args:
        sweep: the sweep; need not have been started.
        table: settings to use in the place of the frozen ones.

    Raises:
        ConfigurationError: there is none of this kind.
    """
    settings = sweep.plan["launcher"] if table is None else table
    kind = settings["kind"]
    if kind == "local":
        from posttrainbench.launch.local import Local

        return Local(sweep, slots=settings.get("slots"))
    if kind == "slurm":
        from posttrainbench.launch.slurm import Slurm

        return Slurm(sweep, settings)
    if kind == "htcondor":
        from posttrainbench.launch.htcondor import HTCondor

        return HTCondor(sweep, settings)
    raise ConfigurationError(f"unknown launcher {kind!r}")

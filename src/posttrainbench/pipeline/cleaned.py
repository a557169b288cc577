"""What `ptb clean` took from a run: noted beside it, so that no audit takes what is gone for what never was."""

from __future__ import annotations

from posttrainbench.errors import ConfigurationError
from posttrainbench.files import read_json, write_json
from posttrainbench.pipeline.run_dir import RunDirectory, now

NAMES = {
    "snapshots": "snapshot of the agent's work",
    "submissions": "submission",
    "hub-files": "copies of fetched data",
}
"""Kinds of `ptb clean` without which a stage cannot be repeated."""


def cleaned(run: RunDirectory) -> dict[str, str]:
    """Kinds that were removed, and when."""
    try:
        found: dict[str, str] = read_json(run.path / "cleaned.json")
    except FileNotFoundError:
        return {}
    return found


def note(run: RunDirectory, kind: str) -> None:
    """Note that a kind is about to be removed: before it is, so that half a removal is known for one."""
    write_json(run.path / "cleaned.json", {**cleaned(run), kind: now()})


def need(run: RunDirectory, *kinds: str, to: str) -> None:
    """See that what a stage reads was not removed.

    Raises:
        ConfigurationError: it was.
    """
    gone = cleaned(run)
    for kind in kinds:
        if kind in gone:
            raise ConfigurationError(
                f"`ptb clean` removed the {NAMES[kind]} of {run.path} on {gone[kind][:10]}: to {to} again is not possible"
            )

"""The run directory: the whole state of a run. Every stage reads it and leaves its output in it."""

from __future__ import annotations

import fcntl
import os
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from posttrainbench.errors import ConfigurationError, PTBError
from posttrainbench.files import read_json, write_json
from posttrainbench.workspace.build import Job

FORMAT = 1
_TRIES = 4
STAGES = ("prepare", "solve", "collect", "audit", "evaluate", "finalize")


def now() -> str:
    """The time, UTC, ISO 8601 with milliseconds."""
    return datetime.now(UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")


@dataclass(frozen=True)
class RunDirectory:
    """Paths of a run and its record `run.json`.

    Args:
        path: the directory.
    """

    path: Path

    @classmethod
    def open(cls, path: Path) -> RunDirectory:
        """An existing run.

        Raises:
            ConfigurationError: not a run directory, or one of a newer format.
        """
        run = cls(path.absolute())
        try:
            record = run.record()
        except FileNotFoundError:
            raise ConfigurationError(f"{path} is not a run directory: it has no run.json") from None
        except (OSError, ValueError) as error:
            raise ConfigurationError(f"{path / 'run.json'} cannot be read: {error}") from None
        if not isinstance(record, dict) or record.get("format") != FORMAT:
            raise ConfigurationError(f"{path / 'run.json'} is not of format {FORMAT}; another version of ptb wrote it")
        return run

    @property
    def record_file(self) -> Path:
        return self.path / "run.json"

    @property
    def prompt_file(self) -> Path:
        return self.path / "prompt.md"

    @property
    def trace(self) -> Path:
        return self.path / "trace" / "raw.jsonl"

    @property
    def workspace(self) -> Path:
        return self.path / "workspace"

    @property
    def submission(self) -> Path:
        return self.path / "final_model"

    @property
    def audit(self) -> Path:
        return self.path / "audit"

    @property
    def evaluation(self) -> Path:
        return self.path / "evaluation"

    @property
    def result_file(self) -> Path:
        return self.path / "result.json"

    @property
    def collection_file(self) -> Path:
        return self.path / "collection.json"

    @property
    def manifest_file(self) -> Path:
        return self.path / "protected.json"

    @property
    def job(self) -> Job:
        """The agent's live directories; gone once collected."""
        return Job(root=self.path / ".job")

    def record(self) -> dict[str, Any]:
        """The content of run.json."""
        value: dict[str, Any] = read_json(self.record_file)
        return value

    def update(self, **changes: Any) -> None:
        """Change top-level keys of run.json, atomically."""
        write_json(self.record_file, {**self.record(), **changes})

    def stage(self, name: str) -> dict[str, Any]:
        """Outcome of a stage as recorded; empty when it never began."""
        found: dict[str, Any] = self.record()["stages"].get(name, {})
        return found

    def set_stage(self, name: str, **outcome: Any) -> None:
        """Replace the recorded outcome of a stage."""
        record = self.record()
        record["stages"][name] = outcome
        write_json(self.record_file, record)

    def done(self, name: str) -> bool:
        """Whether a stage has completed."""
        return self.stage(name).get("status") == "done"

    @contextmanager
    def locked(self) -> Iterator[None]:
        """Hold the run for this process; the kernel lets go when the process dies, however it dies.

        Raises:
            ConfigurationError: another process works on this run.
        """
        descriptor = os.open(self.path / ".lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
        try:
            for tries_left in range(_TRIES - 1, -1, -1):
                try:
                    fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
                    break
                except OSError:
                    # who only looks whether it is held (`ptb clean`) holds it himself for an instant
                    if not tries_left:
                        raise ConfigurationError(
                            f"another ptb process is working on {self.path}; wait for it or end it"
                        ) from None
                    time.sleep(0.02)
            yield
        finally:
            os.close(descriptor)


def find_runs(root: Path) -> list[RunDirectory]:
    """All runs below `root` (at most three levels down), by path. What lies within a run is none: an agent made it.

    Raises:
        ConfigurationError: `root` is not a directory.
    """
    if not root.is_dir():
        raise ConfigurationError(f"there is no results directory {root}")
    found: list[RunDirectory] = []
    within: set[Path] = set()
    for pattern in ("run.json", "*/run.json", "*/*/run.json", "*/*/*/run.json"):
        for file in sorted(root.glob(pattern)):
            if file.parent.name.startswith(".") or within & set(file.parent.parents):
                continue
            within.add(file.parent)
            try:
                found.append(RunDirectory.open(file.parent))
            except PTBError:
                continue
    return found

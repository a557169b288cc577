"""What the stages share: the run's record turned back into objects."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

from posttrainbench import catalog
from posttrainbench.catalog import BaseModel, Benchmark
from posttrainbench.errors import ConfigurationError
from posttrainbench.files import sha256_file
from posttrainbench.pipeline.progress import Progress, Silent
from posttrainbench.pipeline.run_dir import RunDirectory
from posttrainbench.pipeline.spec import RunSpec
from posttrainbench.sandbox import Backend, get_backend
from posttrainbench.scaffolds import Agent, parse_agent


def _never() -> bool:
    return False


@dataclass
class Context:
    """One run being worked on.

    Attributes:
        run: its directory.
        progress: where to report to.
        cancelled: polled while a sandbox runs; true ends it.
        memory_test: whether the audit runs the behavioural memory test too.
        memory_here: bytes that there are for audit and evaluation where they run, if they run in less than the agent had.
    """

    run: RunDirectory
    progress: Progress = field(default_factory=Silent)
    cancelled: Callable[[], bool] = _never
    memory_test: bool = False
    memory_here: int | None = None

    @cached_property
    def record(self) -> dict[str, Any]:
        """run.json as it was when first asked for: what `prepare` wrote never changes."""
        return self.run.record()

    @property
    def memory_bytes(self) -> int | None:
        """Limit for a sandbox that loads the submission; `None` for an imported run, of whose machine nothing is known."""
        limits = [self.record["limits"]["memory_bytes"], self.memory_here]
        return min((limit for limit in limits if limit is not None), default=None)

    @cached_property
    def spec(self) -> RunSpec:
        """What was asked for."""
        return RunSpec.from_json(self.record["spec"])

    @cached_property
    def agent(self) -> Agent:
        """The agent, from the catalogue or the user's program."""
        record = self.record["agent"]
        request = dict(record.get("request") or {"text": f"{record['scaffold']}:{record['model']}"})
        if record["copy"]:
            kept = self.run.path / record["copy"]
            request["text"] = f"scripted:{kept}" if record["scaffold"] == "scripted" else str(kept)
        return parse_agent(**request)

    @cached_property
    def model(self) -> BaseModel:
        """The declared base model."""
        entry = self.record["base_model"]["entry"]
        return BaseModel(**{**entry, "aliases": tuple(entry["aliases"])})

    @cached_property
    def benchmark(self) -> Benchmark:
        """The target."""
        return catalog.benchmark(self.record["benchmark"])

    @cached_property
    def base(self) -> Path:
        """Directory of the base model.

        Raises:
            ConfigurationError: it is no longer there.
        """
        path = Path(self.record["base_model"]["base"])
        if not (path / "config.json").is_file():
            raise ConfigurationError(
                f"the base model is no longer at {path}; put it back and `ptb resume {self.run.path}`"
            )
        return path

    @cached_property
    def instruct(self) -> Path | None:
        """Directory of the instruct counterpart, if it is known and still there."""
        value = self.record["base_model"]["instruct"]
        return Path(value) if value and (Path(value) / "config.json").is_file() else None

    @cached_property
    def backend(self) -> Backend:
        """The sandbox that the run was prepared for, with the very image: its name may stand for another one by now.

        Raises:
            ConfigurationError: an image that is a file was replaced.
        """
        sandbox = self.record["sandbox"]
        image = sandbox.get("image")
        if digest := sandbox.get("image_digest"):
            if sandbox["backend"] in ("podman", "docker"):
                image = digest
            elif Path(image).is_file() and f"sha256:{sha256_file(Path(image))}" != digest:
                raise ConfigurationError(
                    f"{image} is not the image that the run began with; put the one with {digest} back and "
                    f"`ptb resume {self.run.path}`"
                )
        return get_backend(sandbox["backend"], image=image)

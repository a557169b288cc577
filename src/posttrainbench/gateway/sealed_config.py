"""Settings of the service that scores models on sealed test data, as they stand in `GatewayConfig.sealed`."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

from posttrainbench import catalog
from posttrainbench.errors import ConfigurationError
from posttrainbench.gateway.grading_config import FULL_EVALUATIONS
from posttrainbench.gateway.settings import known_settings

FEEDBACK = ("score", "items")
_PARTS, _FEWEST = 10, 10


@dataclass(frozen=True, kw_only=True)
class SealedConfig:
    """What may be evaluated in a run, and how much is told.

    Attributes:
        benchmark: the run's.
        base_model: name of the declared base model.
        calls: evaluations in the run.
        feedback: `score` tells means with standard errors, `items` right or wrong for each item as well.
        seconds: seconds that all of them may take together.
        items: items that may be answered in the run, `None` for no limit; ten full evaluations where a grader is paid.
    """

    benchmark: str
    base_model: str
    calls: int
    feedback: str = "score"
    seconds: float = 36_000.0
    items: int | None = None

    def __post_init__(self) -> None:
        """Check the settings.

        Raises:
            ConfigurationError: one that cannot be.
        """
        if self.feedback not in FEEDBACK:
            raise ConfigurationError(f"--test-feedback {self.feedback!r} cannot be; known: {', '.join(FEEDBACK)}")
        if self.calls < 1 or not (math.isfinite(self.seconds) and self.seconds > 0):
            raise ConfigurationError(
                "sealed test data needs at least one call (--test-calls) and some time (--test-hours)"
            )

    @property
    def total(self) -> int:
        """Items of the benchmark."""
        return catalog.benchmark(self.benchmark).items

    @property
    def step(self) -> int:
        """What limits are multiples of. Scores of N and of N + 1 items together would tell a single item's."""
        return 1 if self.feedback == "items" else max(_FEWEST, math.ceil(self.total / _PARTS))

    def count(self, limit: int | None) -> int:
        """How many items an evaluation with this limit has."""
        if limit is None or limit <= 0:
            return self.total
        return min(self.total, math.ceil(limit / self.step) * self.step)

    def to_json(self) -> dict[str, Any]:
        """As JSON types. Holds no secret."""
        return asdict(self)

    @classmethod
    def from_json(cls, value: Mapping[str, Any]) -> SealedConfig:
        """The inverse of `to_json`.

        Raises:
            ConfigurationError: not such settings.
        """
        return cls(**known_settings(cls, value, of="sealed test data", needed=("benchmark", "base_model")))


def sealed_settings(
    benchmark: str, *, base_model: str, hours: float, feedback: str, calls: int, test_hours: float | None, paid: bool
) -> SealedConfig:
    """The settings of a run.

    Args:
        benchmark: the run's.
        base_model: name of the declared base model.
        hours: the agent's time.
        feedback: see `SealedConfig`.
        calls: evaluations.
        test_hours: hours that they may take together; `None` for the agent's whole time.
        paid: whether a grader is paid for each answer.

    Raises:
        ConfigurationError: an option that cannot be.
    """
    entry = catalog.benchmark(benchmark)
    return SealedConfig(
        benchmark=benchmark,
        base_model=base_model,
        feedback=feedback,
        calls=calls,
        seconds=(hours if test_hours is None else min(hours, test_hours)) * 3600,
        items=FULL_EVALUATIONS * entry.items if paid else None,
    )

"""What to do when an evaluation fails: a table of policies, and the record of every attempt.

The reference repeats up to nine times, lowers nothing but the token limit and does not say so in its results
(reference.md part 3 and 8.38). Here a failure has a kind, each kind has its ladder, token limits come last, and a failure
that would only happen again is not repeated.
"""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Any, Literal

from posttrainbench.errors import InfrastructureError
from posttrainbench.evaluation.request import EvaluationRequest


class Failure(StrEnum):
    """Kinds of failure of an engine."""

    OUT_OF_MEMORY = "out_of_memory"
    START_TIMEOUT = "start_timeout"
    SERVER_LOST = "server_lost"
    OTHER = "other"


class EngineError(InfrastructureError):
    """An engine failed; `failure` says how, which decides what is tried next, `attempts` what has been tried."""

    def __init__(self, failure: Failure, message: str) -> None:
        super().__init__(message)
        self.failure = failure
        self.attempts: list[dict[str, Any]] | None = None


@dataclass(frozen=True, kw_only=True)
class Parameters:
    """What a retry may change.

    Attributes:
        batch_size: sequences that the engine runs at once.
        memory_share: fraction of the GPU's memory for the engine; `None` where the engine has no such setting.
        max_tokens: generated tokens per item.
    """

    batch_size: int
    memory_share: float | None
    max_tokens: int


@dataclass(frozen=True)
class Rung:
    """One step down: multiply `field` by `factor`. `same` repeats unchanged, for failures that may pass by themselves."""

    field: Literal["same", "batch_size", "memory_share", "max_tokens"]
    factor: float = 1.0


# Rungs are climbed down in order, one per failure of the kind. The token factors are the reference's (16000 -> 12000 ->
# 8000) and apply to the protocol's limit; they come last because they change what is measured.
POLICY: Mapping[Failure, tuple[Rung, ...]] = {
    Failure.OUT_OF_MEMORY: (
        Rung("batch_size", 0.5),
        Rung("batch_size", 0.5),
        Rung("batch_size", 0.25),
        Rung("memory_share", 0.85),
        Rung("memory_share", 0.85),
        Rung("max_tokens", 0.75),
        Rung("max_tokens", 0.5),
    ),
    Failure.START_TIMEOUT: (Rung("same"),),
    Failure.SERVER_LOST: (Rung("same"), Rung("batch_size", 0.5), Rung("memory_share", 0.85)),
    Failure.OTHER: (),
}


@dataclass(frozen=True, kw_only=True)
class Attempt:
    """One attempt: with what parameters, for how long, and what became of it."""

    parameters: Parameters
    seconds: float
    failure: Failure | None = None
    message: str | None = None

    def as_dict(self) -> dict[str, Any]:
        """For `metrics.json` and `outcome.json`."""
        return dataclasses.asdict(self)


@dataclass
class Ladder:
    """The attempts of one evaluation.

    Args:
        parameters: what the first attempt runs with; `max_tokens` here is the protocol's limit.
    """

    parameters: Parameters
    policy: Mapping[Failure, tuple[Rung, ...]] = field(default_factory=lambda: POLICY)
    attempts: list[Attempt] = field(default_factory=list)

    def __post_init__(self) -> None:
        self._protocol_tokens = self.parameters.max_tokens
        self._used: dict[Failure, int] = {}
        self._began = time.monotonic()

    def _record(self, failure: Failure | None, message: str | None) -> None:
        now = time.monotonic()
        attempt = Attempt(
            parameters=self.parameters, seconds=round(now - self._began, 3), failure=failure, message=message
        )
        self.attempts.append(attempt)
        self._began = now

    def succeeded(self) -> None:
        """Note that the current attempt went through."""
        self._record(None, None)

    def failed(self, failure: Failure, message: str) -> Parameters | None:
        """Note a failure; returns what to try next, `None` to give up."""
        last = self.attempts[-1] if self.attempts else None
        self._record(failure, message[:500])
        # the same words after an unchanged repetition: it would happen a third time too
        repeated = (
            last is not None
            and (last.failure, last.message) == (failure, message[:500])
            and last.parameters == self.parameters
        )
        rungs = self.policy.get(failure, ())
        while self._used.get(failure, 0) < len(rungs):
            rung = rungs[self._used.get(failure, 0)]
            self._used[failure] = self._used.get(failure, 0) + 1
            if rung.field == "same":
                if repeated:
                    continue
                return self.parameters
            lowered = self._lower(rung)
            if lowered is not None:
                self.parameters = lowered
                return lowered
        return None

    def _lower(self, rung: Rung) -> Parameters | None:
        """The current parameters one rung down; `None` if that changes nothing here."""
        now = self.parameters
        if rung.field == "batch_size":
            size = max(1, int(now.batch_size * rung.factor))
            return dataclasses.replace(now, batch_size=size) if size < now.batch_size else None
        if rung.field == "memory_share":
            if now.memory_share is None:
                return None
            return dataclasses.replace(now, memory_share=round(now.memory_share * rung.factor, 3))
        tokens = int(self._protocol_tokens * rung.factor)
        return dataclasses.replace(now, max_tokens=tokens) if tokens < now.max_tokens else None

    def as_list(self) -> list[dict[str, Any]]:
        """All attempts, for the record."""
        return [attempt.as_dict() for attempt in self.attempts]


def after_kill(request: EvaluationRequest, *, batch_size: int, kills: int) -> EvaluationRequest | None:
    """What to ask for after the kernel killed the whole evaluation process for want of memory.

    A process that is killed cannot climb down by itself, so the harness outside asks here, with the same table.

    Args:
        request: what was asked first.
        batch_size: the engine's batch size of that first attempt.
        kills: how often it has been killed so far, this time included.

    Returns:
        The next request, or `None` when the ladder ends. Token limits are never lowered this way: the memory that the
        kernel counts is the weights' and the batch's.
    """
    size = batch_size
    steps = [rung.factor for rung in POLICY[Failure.OUT_OF_MEMORY] if rung.field == "batch_size"]
    if kills > len(steps):
        return None
    for factor in steps[:kills]:
        size = max(1, int(size * factor))
    return dataclasses.replace(request, batch_size=size)

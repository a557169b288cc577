"""Asking an LLM for a verdict: typed failures, a retry policy per type, a cache that survives a crash, and counts.

A benchmark's scorer calls `grade` for one question; the runner opens a `session` around the scoring, which holds the cache,
the counts and the pace. What cannot be graded comes back as a failure with its kind, never as "not met" (the reference
turns an exhausted quota into a score of 0, reference.md 8.19). Once the quota has ended or the key is refused, no further
request is sent: the scores made so far are kept and paid answers are in the cache for the next start.
"""

from __future__ import annotations

import asyncio
import hashlib
import json
import os
import random
import time
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from contextvars import ContextVar
from dataclasses import dataclass, field
from enum import StrEnum
from pathlib import Path
from typing import Any, Generic, Protocol, TypeVar

from inspect_ai.model import ChatMessage, GenerateConfig, Model, ModelOutput, get_model

from posttrainbench.errors import ConfigurationError, InfrastructureError
from posttrainbench.evaluation.request import DEFAULT_GRADER

T = TypeVar("T")
T_co = TypeVar("T_co", covariant=True)


class GradingFailure(StrEnum):
    """Why a grading has no result."""

    RATE_LIMIT = "rate_limit"
    SERVER_ERROR = "server_error"
    MALFORMED = "malformed"
    QUOTA = "quota"
    AUTH = "auth"
    REFUSED = "refused"
    STOPPED = "stopped"


class GradingStopped(InfrastructureError):
    """Grading ended before its end (quota, key). What was graded is kept; the same command goes on from there.

    Attributes:
        failure: why.
    """

    def __init__(self, message: str, failure: GradingFailure) -> None:
        super().__init__(message)
        self.failure = failure


class Parser(Protocol[T_co]):
    """Makes the value of a grader's answer; `None` or a `ValueError` if it cannot be read."""

    def __call__(self, reply: str, /) -> T_co | None: ...


def _parsed(parse: Parser[T], reply: str) -> T | None:
    try:
        return parse(reply)
    except ValueError:
        return None


@dataclass(frozen=True)
class Policy:
    """How a kind of failure is retried.

    Attributes:
        attempts: requests in all, the first included; 1 for no retry.
        first_wait_s: before the second request; doubled each time up to `longest_wait_s`.
        stops: no further request of the session can succeed.
    """

    attempts: int
    first_wait_s: float = 0.0
    longest_wait_s: float = 60.0
    stops: bool = False


# A rate limit says nothing against the request and passes by waiting; a server error usually does; an unreadable answer is
# paid for each time (its number is the caller's `attempts`); the others would only happen again.
POLICY: Mapping[GradingFailure, Policy] = {
    GradingFailure.RATE_LIMIT: Policy(attempts=12, first_wait_s=2.0),
    GradingFailure.SERVER_ERROR: Policy(attempts=6, first_wait_s=1.0, longest_wait_s=30.0),
    GradingFailure.MALFORMED: Policy(attempts=5),
    GradingFailure.QUOTA: Policy(attempts=1, stops=True),
    GradingFailure.AUTH: Policy(attempts=1, stops=True),
    GradingFailure.REFUSED: Policy(attempts=1),
    GradingFailure.STOPPED: Policy(attempts=1),
}

_QUOTA_SIGNS = (
    "insufficient_quota",
    "exceeded your current quota",
    "billing_hard_limit",
    "credit balance is too low",
    "spending limit",
    "spending_limit",
    "budget_exceeded",
    "payment required",
)


def cause(error: BaseException) -> BaseException:
    """The provider's own error: Inspect hands those that it would retry over in tenacity's wrapping."""
    attempt = getattr(error, "last_attempt", None)
    inner = attempt.exception() if attempt is not None and attempt.done() else None
    return error if inner is None else cause(inner)


def classify(error: BaseException) -> tuple[GradingFailure, float | None]:
    """Kind of an error of any Inspect model provider, and the seconds that the service asked to wait."""
    error = cause(error)
    status = getattr(error, "status_code", None) or getattr(error, "code", None)
    text = f"{error} {getattr(error, 'body', '') or ''}".lower()
    headers = getattr(getattr(error, "response", None), "headers", None) or {}
    wait: float | None = None
    with suppress(TypeError, ValueError):
        wait = float(headers.get("retry-after", ""))
    if status == 402 or any(sign in text for sign in _QUOTA_SIGNS):
        return GradingFailure.QUOTA, None
    if status in (401, 403):
        return GradingFailure.AUTH, None
    if status in (429, "rate_limit_exceeded") or "rate limit" in text or "overloaded" in text:
        return GradingFailure.RATE_LIMIT, wait
    if isinstance(status, int) and 400 <= status < 500 and status not in (408, 409, 425):
        return GradingFailure.REFUSED, None
    return GradingFailure.SERVER_ERROR, wait


@dataclass(frozen=True)
class Graded(Generic[T]):
    """The result of one grading.

    Attributes:
        value: what `parse` made of the answer; `None` when the grading failed.
        failure: why there is no value.
        text: the grader's last answer, if it gave one.
        detail: the failure in words; empty without one.
        cached: answered from the cache, at no cost.
    """

    value: T | None
    failure: GradingFailure | None = None
    text: str = ""
    detail: str = ""
    cached: bool = False


@dataclass
class Counts:
    """What grading cost. `calls` are requests sent; `cached` were answered from the cache; tokens are as billed."""

    gradings: int = 0
    calls: int = 0
    cached: int = 0
    input_tokens: int = 0
    output_tokens: int = 0
    retries: Counter[str] = field(default_factory=Counter)
    failures: Counter[str] = field(default_factory=Counter)

    def as_dict(self) -> dict[str, Any]:
        """For `metrics.json`."""
        return {**self.__dict__, "retries": dict(self.retries), "failures": dict(self.failures)}


class Cache:
    """Paid answers by key, in a JSONL file; every entry is on disk before it is used.

    Args:
        path: file to read and append to; `None` keeps the entries in memory.
    """

    def __init__(self, path: Path | None) -> None:
        self.path = path
        self._entries: dict[str, str] = {}
        self._ended = True
        if path is not None and path.is_file():
            raw = path.read_bytes()
            # a crash may have cut the last line; it is skipped, and the next entry begins on a line of its own
            self._ended = not raw or raw.endswith(b"\n")
            for line in raw.split(b"\n"):
                try:
                    entry = json.loads(line)
                    self._entries[entry["key"]] = entry["text"]
                except (ValueError, KeyError, TypeError):
                    continue

    def __len__(self) -> int:
        return len(self._entries)

    def get(self, key: str) -> str | None:
        """The answer to a question asked before."""
        return self._entries.get(key)

    def add(self, key: str, text: str, **details: Any) -> None:
        """Keep an answer; on disk when this returns."""
        self._entries[key] = text
        if self.path is None:
            return
        line = json.dumps({"key": key, "text": text, **details}, ensure_ascii=False) + "\n"
        raw = line.encode(errors="replace") if self._ended else b"\n" + line.encode(errors="replace")
        self.path.parent.mkdir(parents=True, exist_ok=True)
        descriptor = os.open(self.path, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)
        try:
            os.write(descriptor, raw)
            os.fsync(descriptor)
        finally:
            os.close(descriptor)
        self._ended = True


@dataclass
class Session:
    """All gradings of one scoring.

    Attributes:
        concurrency: requests in flight at most.
        stopped: why no more requests are sent; `None` while all is well.
    """

    cache: Cache
    concurrency: int = 64
    counts: Counts = field(default_factory=Counts)
    stopped: GradingFailure | None = None
    stopped_detail: str = ""
    _graders: dict[str, Model] = field(default_factory=dict)
    _slots: asyncio.Semaphore | None = None
    _not_before: float = 0.0

    def grader(self, model: str | Model | None) -> Model:
        """As `get_grader`, one for each name."""
        if isinstance(model, Model):
            return model
        name = model or DEFAULT_GRADER
        if name not in self._graders:
            self._graders[name] = get_grader(name)
        return self._graders[name]

    def slots(self) -> asyncio.Semaphore:
        """Made in the running loop: a session may be opened outside of any."""
        if self._slots is None:
            self._slots = asyncio.Semaphore(self.concurrency)
        return self._slots

    def hold(self, seconds: float) -> None:
        """Nobody asks for so long: a rate limit concerns all requests of a key."""
        self._not_before = max(self._not_before, time.monotonic() + seconds)

    async def turn(self) -> None:
        """Wait until requests are welcome again, spread so that not all come at once."""
        while (left := self._not_before - time.monotonic()) > 0:
            await asyncio.sleep(left + random.uniform(0, 0.1 * left + 0.01))

    def raise_if_stopped(self) -> None:
        """Turn an early end into an error that says how to go on.

        Raises:
            GradingStopped: the quota ended or the key was refused.
        """
        if self.stopped is None:
            return
        what = {
            GradingFailure.QUOTA: "the grader's quota ended",
            GradingFailure.AUTH: "the grader's service refused the key",
        }[self.stopped]
        done = self.counts.gradings - sum(self.counts.failures.values())
        raise GradingStopped(
            f"{what} after {done} gradings ({self.stopped_detail[:200]}); they are kept: run the same command again when "
            "it is mended, and only the rest is asked for",
            self.stopped,
        )


_current: ContextVar[Session | None] = ContextVar("grading_session", default=None)


@contextmanager
def session(cache: Path | None = None, *, concurrency: int = 64) -> Iterator[Session]:
    """Open the session that `grade` works in.

    Args:
        cache: JSONL file of paid gradings.
        concurrency: requests in flight at most.
    """
    opened = Session(Cache(cache), concurrency)
    token = _current.set(opened)
    try:
        yield opened
    finally:
        _current.reset(token)


def current_session() -> Session:
    """The session opened around this call; a fresh one without cache if there is none."""
    found = _current.get()
    if found is None:
        found = Session(Cache(None))
        _current.set(found)
    return found


def get_grader(model: str | Model | None, *, config: GenerateConfig | None = None) -> Model:
    """The grader as an Inspect model.

    Args:
        model: a model, or the name of one; `None` for the published evaluation's.
        config: generation settings, where a name is given.

    Raises:
        ConfigurationError: unknown name, missing package or no key; one line that says which.
    """
    if isinstance(model, Model):
        return model
    name = model or DEFAULT_GRADER
    # the OpenAI client would retry on its own, unseen and uncounted
    arguments: dict[str, Any] = {"max_retries": 0} if name.split("/")[0] in ("openai", "openai-api") else {}
    try:
        arguments |= _from_keys_file(name)
        # not memoised by Inspect: its connections would belong to the event loop of an earlier evaluation
        return get_model(name, config=config or GenerateConfig(), memoize=False, **arguments)
    except Exception as error:  # providers report a missing key, package or name in their own ways
        reason = " ".join(str(error).replace("\\[", "[").split())[:300]
        raise ConfigurationError(
            f"the grader {name!r} cannot be used: {reason}; set its key in the environment or name another with --grader"
        ) from error


def _from_keys_file(name: str) -> dict[str, str]:
    """Key and address of a model whose key stands in `PTB_KEYS_FILE` and not in the environment, as on pools whose jobs'
    environment everybody can read."""
    if not os.environ.get("PTB_KEYS_FILE"):
        return {}
    from posttrainbench.gateway.grading_config import grader_settings

    try:
        config, found = grader_settings("", model=name)
    except ConfigurationError:
        return {}  # Inspect says what is missing
    [(variable, key)] = found.items()
    if os.environ.get(variable):
        return {}
    url = next((value for name, value in config.environment.items() if name.endswith("_BASE_URL")), None)
    return {"api_key": key} | ({"base_url": url} if url else {})


def cache_key(model: str, messages: Sequence[ChatMessage], position: str, config: GenerateConfig) -> str:
    """Identity of a question: grader, its settings, every message, and the caller's position."""
    parts = {
        "model": model,
        "messages": [[message.role, message.text] for message in messages],
        "position": position,
        "config": {k: v for k, v in config.model_dump(exclude_none=True).items() if k not in _OPERATIONAL},
    }
    return hashlib.sha256(json.dumps(parts, sort_keys=True, ensure_ascii=True).encode()).hexdigest()


_OPERATIONAL = ("max_retries", "timeout", "attempt_timeout", "max_connections", "adaptive_connections")


async def grade(
    model: str | Model | None,
    messages: Sequence[ChatMessage],
    *,
    parse: Parser[T],
    attempts: int = POLICY[GradingFailure.MALFORMED].attempts,
    position: str = "",
    config: GenerateConfig | None = None,
    waits: float = 1.0,
) -> Graded[T]:
    """Ask the grader one question.

    Args:
        model: any Inspect model or its name; `None` for the published evaluation's.
        messages: the question.
        parse: makes the value of an answer; returns `None` or raises `ValueError` for one that cannot be read.
        attempts: answers in all until the first that can be read; each is paid for.
        position: tells apart questions with equal messages that must be answered separately (the two orders of a
            comparison, repeated gradings).
        config: generation settings of the grader.
        waits: factor of all waiting times (tests).

    Returns:
        The value, or the failure. Never raises for what the grader's service does.

    Raises:
        ConfigurationError: there is no such grader, or no key for it.
    """
    state = current_session()
    grader = state.grader(model)
    state.counts.gradings += 1
    # what a caller leaves out is decided here, not by its surroundings: no probing request for reasoning summaries,
    # no retries below ours, no inherited limit of connections
    settings = GenerateConfig(reasoning_summary="none").merge(config or GenerateConfig())
    settings = settings.merge(GenerateConfig(max_retries=0, max_connections=state.concurrency))
    key = cache_key(str(grader), messages, position, grader.config.merge(settings))
    known = state.cache.get(key)
    if known is not None:
        value = _parsed(parse, known)
        if value is not None:
            state.counts.cached += 1
            return Graded(value, text=known, cached=True)
    async with state.slots():
        outcome = await _ask(state, grader, messages, settings, parse, attempts, key, waits)
    if outcome.failure is not None:
        state.counts.failures[outcome.failure] += 1
    return outcome


async def _ask(
    state: Session,
    grader: Model,
    messages: Sequence[ChatMessage],
    settings: GenerateConfig,
    parse: Parser[T],
    attempts: int,
    key: str,
    waits: float,
) -> Graded[T]:
    met: Counter[GradingFailure] = Counter()
    while True:
        await state.turn()
        if state.stopped is not None:
            return Graded(None, GradingFailure.STOPPED, detail=f"not asked: {state.stopped}")
        state.counts.calls += 1
        text, wait = "", None
        try:
            output: ModelOutput = await grader.generate(list(messages), config=settings)
        except Exception as error:  # every provider has its own error classes
            failure, wait = classify(error)
            inner = cause(error)
            detail = f"{type(inner).__name__}: {str(inner)[:300]}"
        else:
            if output.usage is not None:
                state.counts.input_tokens += output.usage.input_tokens
                state.counts.output_tokens += output.usage.output_tokens
            text = output.completion
            value = _parsed(parse, text)
            if value is not None:
                state.cache.add(key, text, model=str(grader), tokens=output.usage and output.usage.total_tokens)
                return Graded(value, text=text)
            failure, detail = GradingFailure.MALFORMED, f"unreadable answer: {text[:120]!r}"
            if output.error or output.stop_reason == "content_filter":
                failure, detail = GradingFailure.REFUSED, output.error or "content filter"
        met[failure] += 1
        policy = POLICY[failure]
        if policy.stops:
            state.stopped, state.stopped_detail = failure, detail
        if met[failure] >= (attempts if failure is GradingFailure.MALFORMED else policy.attempts):
            return Graded(None, failure, text=text, detail=detail)
        state.counts.retries[failure] += 1
        pause = min(policy.first_wait_s * 2 ** (met[failure] - 1), policy.longest_wait_s)
        pause = max(pause, min(wait or 0.0, 10 * policy.longest_wait_s)) * waits
        if failure is GradingFailure.RATE_LIMIT:
            state.hold(pause)
        elif pause > 0:
            await asyncio.sleep(pause * random.uniform(0.8, 1.2))

"""What the tables need of every run directory. A broken directory becomes a `Problem` that names it, never an exception."""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from posttrainbench.errors import ConfigurationError
from posttrainbench.leaderboard.references import Pair, References
from posttrainbench.pipeline.run_dir import FORMAT

FALLBACK = ("flagged", "no_submission", "unloadable")
"""Statuses that take the base model's score."""
COMPLETE = ("scored", *FALLBACK)
"""Statuses of runs that count. The others say that there is no result (yet)."""
STATUSES = (*COMPLETE, "infra_error", "pending")

# results/<group>/<run>, and one level more for results that somebody collected from several machines
_DEEPEST = 4
# run.json has about 10 kB; what is far larger was not written by ptb
_LARGEST = 16 * 2**20


@dataclass(frozen=True, kw_only=True)
class Run:
    """What the tables need of one run. What a run directory lacks is `None`.

    Attributes:
        agent: name of the agent, `SCAFFOLD:MODEL`; see `label` for the name with its conditions.
        pair: base model and benchmark.
        status: one of `STATUSES`.
        own_score: what the submission itself scored, a fraction from 0 to 1.
        stderr: its standard error over items.
        hours: the time budget.
        wall_s: seconds that the agent used.
        tokens: count by kind, as the gateway metered them.
        imported: where an imported run comes from.
        test_data: `sealed (score)` or `sealed (items)` where the agent had no test items; `visible`, as in the paper.
        lock: SHA-256 of the lock file behind the image it ran in; `None` where it had the packages of its machine.
    """

    id: str
    agent: str
    pair: Pair
    status: str
    own_score: float | None
    stderr: float | None
    path: str
    scaffold: str | None = None
    model: str | None = None
    effort: str | None = None
    reprompt: bool = False
    hours: float | None = None
    wall_s: float | None = None
    cost_usd: float | None = None
    tokens: Mapping[str, int] | None = None
    sessions: int | None = None
    exit_reason: str | None = None
    verdict: str | None = None
    rules: tuple[str, ...] = ()
    reasons: tuple[str, ...] = ()
    paper_score: float | None = None
    protocol: str | None = None
    group: str | None = None
    started: str | None = None
    imported: Mapping[str, Any] | None = None
    test_data: str = "visible"
    lock: str | None = None

    @property
    def complete(self) -> bool:
        """Whether the run has come to a result that counts."""
        return self.status in COMPLETE

    @property
    def total_tokens(self) -> int | None:
        """All tokens: `total` where it was given, else the sum over kinds (`reasoning` is a part of `output`)."""
        if not self.tokens:
            return None
        return self.tokens.get("total", sum(n for kind, n in self.tokens.items() if kind != "reasoning"))


@dataclass(frozen=True, kw_only=True)
class Problem:
    """A file or directory that does not count, and why."""

    path: str
    reason: str

    def __str__(self) -> str:
        return f"{self.path}: {self.reason}"


@dataclass(frozen=True, kw_only=True)
class Results:
    """Everything that was read below a results directory.

    Attributes:
        runs: by id, each once.
        problems: what could not be read, and duplicates.
        references: scores of the base and instruct models.
    """

    path: Path
    runs: tuple[Run, ...]
    problems: tuple[Problem, ...] = ()
    references: References = field(default_factory=References)


class _Broken(Exception):
    """Says which file of a run directory is wrong, and how."""

    def __init__(self, path: str, reason: str) -> None:
        super().__init__(reason)
        self.path, self.reason = path, reason


def _read(path: str) -> dict[str, Any]:
    try:
        with open(path, "rb") as file:  # noqa: PTH123 - 20,000 of them: Path objects would double the time
            if os.fstat(file.fileno()).st_size > _LARGEST:
                raise _Broken(path, "larger than any file of ptb's")
            value = json.loads(file.read())
    except FileNotFoundError:
        raise
    except OSError as error:
        raise _Broken(path, f"cannot be read: {error.strerror}") from None
    except (ValueError, RecursionError) as error:
        raise _Broken(path, f"not valid JSON ({' '.join(str(error).split())[:80]})") from None
    if not isinstance(value, dict):
        raise _Broken(path, "not a JSON object")
    return value


def _text(value: Any) -> str | None:
    # half of a surrogate pair is no text: it could be neither printed nor stored
    return value.encode("utf-8", "replace").decode("utf-8") if isinstance(value, str) and value else None


def _texts(value: Any) -> tuple[str, ...]:
    return tuple(text for entry in value if (text := _text(entry))) if isinstance(value, list) else ()


def _number(value: Any) -> float | None:
    """A finite number from 0 on, or `None`: an odd time or cost is not worth losing a score."""
    if isinstance(value, bool) or not isinstance(value, int | float) or not 0 <= value <= sys.float_info.max:
        return None
    return float(value)


def _fraction(result: Mapping[str, Any], key: str, path: str) -> float | None:
    value = result.get(key)
    if value is None:
        return None
    if isinstance(value, bool) or not isinstance(value, int | float) or not 0 <= value <= 1:
        raise _Broken(path, f"{key} is {str(value)[:40]}; a score is a fraction from 0 to 1")
    return float(value)


def _mapping(value: Any) -> Mapping[str, Any]:
    return value if isinstance(value, dict) else {}


def _tokens(value: Any) -> Mapping[str, int] | None:
    if not isinstance(value, dict):
        return None
    counts = {str(kind): int(n) for kind, n in value.items() if _number(n) is not None}
    return counts or None


def _outcome(path: str) -> dict[str, Any]:
    """What result.json says, checked; a run without one is pending."""
    try:
        result = _read(path)
    except FileNotFoundError:
        return {"status": "pending"}
    status = result.get("status")
    if status not in STATUSES:
        raise _Broken(path, f"status is {str(status)[:40]!r}; known: {', '.join(STATUSES)}")
    own = _fraction(result, "own_score", path)
    if status == "scored" and own is None:
        raise _Broken(path, "scored, but own_score is missing")
    return {**result, "status": status, "own_score": own, "paper_score": _fraction(result, "paper_score", path)}


def read_run(directory: str | os.PathLike[str]) -> Run:
    """Read one run directory.

    Raises:
        ConfigurationError: it is broken; the message names the file.
    """
    try:
        return _read_run(os.fspath(directory))
    except _Broken as error:
        raise ConfigurationError(f"{error.path}: {error.reason}") from None


def _read_run(directory: str) -> Run:
    file = os.path.join(directory, "run.json")  # noqa: PTH118 - see _read
    try:
        record = _read(file)
    except FileNotFoundError:
        raise _Broken(directory, "has no run.json") from None
    if record.get("format") != FORMAT:
        raise _Broken(file, f"is of format {record.get('format')!r}, this version reads {FORMAT}")
    agent, spec = _mapping(record.get("agent")), _mapping(record.get("spec"))
    name, model = _text(agent.get("name")), _text(_mapping(record.get("base_model")).get("name"))
    benchmark, identity = _text(record.get("benchmark")), _text(record.get("id"))
    for what, value in (("agent", name), ("base_model", model), ("benchmark", benchmark), ("id", identity)):
        if value is None:
            raise _Broken(file, f"has no {what}")
    assert name and model and benchmark and identity
    result = _outcome(os.path.join(directory, "result.json"))  # noqa: PTH118
    ending = _mapping(result.get("agent_exit"))
    protocol = result.get("protocol", _mapping(record.get("protocol")).get("version"))
    sessions = _number(result.get("sessions"))
    stages = _mapping(record.get("stages"))
    return Run(
        id=identity,
        agent=name,
        pair=(model, benchmark),
        status=result["status"],
        own_score=result.get("own_score"),
        stderr=_number(result.get("stderr")),
        path=directory,
        scaffold=_text(agent.get("scaffold")) or name.partition(":")[0],
        model=_text(agent.get("model")) or name.partition(":")[2] or None,
        effort=_text(agent.get("effort")),
        reprompt=bool(agent.get("reprompt")),
        hours=_number(spec.get("hours", result.get("hours"))),
        wall_s=_number(result.get("wall_s")),
        cost_usd=_number(result.get("cost_usd")),
        tokens=_tokens(result.get("tokens")),
        sessions=None if sessions is None else int(sessions),
        exit_reason=_text(ending.get("reason")),
        verdict=_text(result.get("verdict")),
        rules=_texts(result.get("rules")),
        reasons=_texts(result.get("reasons")),
        paper_score=result.get("paper_score"),
        protocol=None if protocol is None else str(protocol),
        group=_text(record.get("group")),
        started=_text(_mapping(stages.get("solve")).get("started")),
        imported=_mapping(record.get("imported")) or None,
        test_data=_text(_mapping(record.get("protocol")).get("test_data")) or "visible",
        lock=_text(_mapping(record.get("sandbox")).get("image_lock")),
    )


def run_directories(root: str, *, depth: int = 0) -> Iterator[str]:
    """Directories below `root` that hold a run.json or a result.json, at most four levels down; hidden ones are skipped."""
    try:
        with os.scandir(root) as scan:
            entries = sorted(scan, key=lambda entry: entry.name)
    except OSError:
        return
    if any(entry.name in ("run.json", "result.json") for entry in entries):
        yield root
        return
    if depth >= _DEEPEST:
        return
    for entry in entries:
        if entry.name.startswith(".") or (depth == 0 and entry.name == "references"):
            continue
        if entry.is_dir():
            yield from run_directories(entry.path, depth=depth + 1)


def _once(runs: list[Run]) -> tuple[list[Run], list[Problem]]:
    """Each run once: of copies the one with a result, else the first by path. Whatever order they were found in."""
    chosen: dict[tuple[str, str, Pair], Run] = {}
    problems = []
    for run in sorted(runs, key=lambda run: (run.id, not run.complete, run.path)):
        first = chosen.setdefault((run.id, run.agent, run.pair), run)
        if first is not run:
            problems.append(Problem(path=run.path, reason=f"the same run as {first.path}; counted once"))
    return list(chosen.values()), problems


def load(results: Path) -> Results:
    """Read every run below `results`.

    Raises:
        ConfigurationError: no such directory.
    """
    if not results.is_dir():
        raise ConfigurationError(f"there is no results directory {results}")
    runs, problems = [], []
    for directory in run_directories(str(results.absolute())):
        try:
            runs.append(_read_run(directory))
        except _Broken as error:
            problems.append(Problem(path=error.path, reason=error.reason))
    single, copies = _once(runs)
    references = References.load(results)
    return Results(
        path=results,
        runs=tuple(single),
        problems=(*problems, *copies, *(Problem(path=path, reason=why) for path, why in references.broken)),
        references=references,
    )

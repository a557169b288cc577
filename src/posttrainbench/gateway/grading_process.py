"""Starting the grading process, and reading what it leaves. Everything that comes out of here is numbers and fixed words."""

from __future__ import annotations

import asyncio
import ctypes
import dataclasses
import json
import math
import os
import signal
import sys
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from posttrainbench.evaluation.request import EvaluationRequest
from posttrainbench.files import read_json
from posttrainbench.gateway.grading_config import GraderConfig
from posttrainbench.scratch import Scratch

_PR_SET_PDEATHSIG = 1
_libc = ctypes.CDLL(None, use_errno=True)
_FIGURES = ("gradings", "calls", "cached", "input_tokens", "output_tokens")

# What an agent is told. The provider's own words stay in the log: they can hold parts of a key or of a prompt.
EXPLANATIONS: Mapping[str, str] = {
    "quota": "the account that pays for grading has no money left; the operator has to mend that. What was graded is kept.",
    "auth": "the grader's service refuses the key of this run; the operator has to mend that.",
    "service": "the grader's service did not answer all questions. What was graded is kept: submit the same answers again.",
    "time": "grading took too long and was stopped. What was graded is kept: submit the same answers again.",
    "configuration": "the grading service of this run is not set up correctly; the operator has to mend that.",
    "crash": "grading failed within the harness; the operator has the details. Submitting again may help.",
}


@dataclass(frozen=True, kw_only=True)
class Graded:
    """What became of a submission.

    Attributes:
        kind: `None` where it was graded, else a key of `EXPLANATIONS`.
        scores: `n`, `strict` and `paper` as in metrics.json, numbers only.
        items: scores by item id.
        figures: gradings, calls, tokens; for the log, as far as they are known.
        failures: gradings without result, by kind.
        detail: for the operator's log.
    """

    kind: str | None = None
    scores: dict[str, Any] = field(default_factory=dict)
    items: dict[str, dict[str, float | None]] = field(default_factory=dict)
    figures: dict[str, int] = field(default_factory=dict)
    failures: dict[str, int] = field(default_factory=dict)
    detail: str = ""


def _die_with_parent() -> None:
    # a gateway that is killed must not leave a process behind that spends money
    _libc.prctl(_PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0)


def _environment(config: GraderConfig, secrets: Mapping[str, str], proxy: str | None, scratch: Path) -> dict[str, str]:
    environment = {
        "PATH": os.environ.get("PATH", "/usr/local/bin:/usr/bin:/bin"),
        "HOME": str(scratch),
        "LANG": "C.UTF-8",
        "TMPDIR": str(scratch),
        "HF_HUB_OFFLINE": "1",  # the data was fetched before the run
        "PYTHONDONTWRITEBYTECODE": "1",
        **config.environment,
        **secrets,
    }
    if proxy is not None:
        environment |= {"HTTPS_PROXY": proxy, "HTTP_PROXY": proxy, "NO_PROXY": "127.0.0.1,localhost"}
    return environment


async def _run(
    what: str, request: EvaluationRequest, scratch: Path, environment: Mapping[str, str], limit_s: float
) -> tuple[int | None, str]:
    """Exit status (`None`: it took too long) and the end of what it said."""
    path, said = scratch / "request.json", scratch / "said"
    request.save(path)
    with said.open("wb") as output:
        process = await asyncio.create_subprocess_exec(
            # -P: the directory it runs in holds an agent's texts, and is no place for modules
            *(sys.executable, "-P", "-m", "posttrainbench.gateway.grading_child", what, str(path)),
            cwd=scratch,
            env=environment,
            stdin=asyncio.subprocess.DEVNULL,
            stdout=output,
            stderr=output,
            start_new_session=True,
            preexec_fn=_die_with_parent,
        )
    try:
        status: int | None = await asyncio.wait_for(process.wait(), limit_s)
    except TimeoutError:
        status = None
    finally:
        if process.returncode is None:
            with suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
            await process.wait()
    with said.open("rb") as file:
        file.seek(max(0, said.stat().st_size - 4000))
        return status, file.read().decode(errors="replace")


def _request(config: GraderConfig, output: Path, **fields: Any) -> EvaluationRequest:
    return EvaluationRequest(
        benchmark=config.benchmark,
        base_model="replay",
        template="qwen3",
        output=str(output),
        engine="replay",
        data_dir=config.data_dir,
        grader=config.model,
        **fields,
    )


async def item_ids(config: GraderConfig, *, scratch_parent: Path | None = None) -> list[str] | str:
    """The benchmark's item ids in order, or why there are none (for the log). Has no key."""
    with Scratch("grade", parent=scratch_parent) as scratch:
        environment = _environment(config, {}, None, scratch)
        status, said = await _run("items", _request(config, scratch), scratch, environment, 300.0)
        if status == 0:
            ids: list[str] = read_json(scratch / "ids.json")
            return ids
        with suppress(OSError, ValueError):
            return str(read_json(scratch / "outcome.json")["message"])
        return f"status {status}: {said[-1000:]}"


async def score(
    config: GraderConfig,
    answers: Path,
    *,
    limit: int,
    cache: Path,
    secrets: Mapping[str, str],
    proxy: str | None,
) -> Graded:
    """Grade stored answers in a process of their own.

    Args:
        config: the service's settings.
        answers: JSON lines of `id` and `completion`, for the first `limit` items.
        limit: number of items.
        cache: file of paid gradings.
        secrets: variables with the grader's key, for that process only.
        proxy: URL of the machine's proxy.
    """
    with Scratch("grade") as scratch:
        output = scratch / "out"
        output.mkdir()
        request = _request(config, output, completions=str(answers), limit=limit, grading_cache=str(cache))
        environment = _environment(config, secrets, proxy, scratch)
        status, said = await _run("score", request, scratch, environment, config.job_s)
        return _read(output, status, said)


def _read(output: Path, status: int | None, said: str) -> Graded:
    if status is None:
        return Graded(kind="time", detail=said[-500:])
    metrics: dict[str, Any] = {}
    for name in ("metrics.partial.json", "metrics.json"):
        with suppress(OSError, ValueError):
            metrics = read_json(output / name)
    try:
        outcome = read_json(output / "outcome.json")
    except (OSError, ValueError):
        return Graded(kind="crash", detail=f"status {status}: {said[-2000:]}")
    grading = metrics.get("grading", {})
    known: dict[str, Any] = {
        "figures": {name: int(grading[name]) for name in _FIGURES if isinstance(grading.get(name), int)},
        "failures": {str(kind): int(count) for kind, count in grading.get("failures", {}).items()},
    }
    if not outcome.get("ok"):
        kind = str(outcome.get("failure") or outcome.get("kind"))
        if kind not in ("quota", "auth", "configuration"):
            kind = "crash"
        return Graded(kind=kind, detail=str(outcome.get("message"))[:2000], **known)
    if set(known["failures"]) & {"server_error", "rate_limit", "stopped", "quota", "auth"}:
        # one of these says nothing about the answers, and a score without some of the gradings would
        return Graded(kind="service", detail=json.dumps(known["failures"]), **known)
    scores = {"n": metrics["n"], **{name: _numbers(metrics[name]) for name in ("strict", "paper")}}
    return Graded(scores=scores, items=read_json(output / "items.json"), **known)


def _numbers(value: Any) -> Any:
    """Nothing but numbers, by name."""
    if isinstance(value, dict):
        return {str(key): found for key, item in value.items() if (found := _numbers(item)) is not ...}
    if value is None or (isinstance(value, (int, float)) and math.isfinite(value)):
        return value
    return ...


def as_json(graded: Graded) -> dict[str, Any]:
    """For `result.json`."""
    return dataclasses.asdict(graded)

"""Sealed test data: takes the path of a model in the agent's workspace, and gives back the score. No item ever passes.

    GET    /sealed/status                what is evaluated, and what is left of the run's budget
    POST   /sealed/evaluate              {"key", "path"}, "limit", "max_tokens", "batch_size" where wanted -> 202, a job
    GET    /sealed/evaluate/JOB?wait=S   {"state": "queued" | "running" | "done" | "failed", ...}, after S seconds at most
    DELETE /sealed/evaluate/JOB          end it

This process evaluates nothing and opens no file of the agent's: it counts, and passes requests to the evaluator of the
harness through `sealed_spool`. One evaluation at a time; who comes second is told which one is under way. A request with
the `key` of an earlier one is the same request, sent again by a client that lost its connection.
"""

from __future__ import annotations

import asyncio
import json
import re
import time
from contextlib import suppress
from typing import TYPE_CHECKING, Any

from aiohttp import web as http

from posttrainbench.gateway.context import utc
from posttrainbench.gateway.refusals import Refusals, Refused
from posttrainbench.gateway.sealed_config import SealedConfig
from posttrainbench.gateway.sealed_spool import Job, Spool

if TYPE_CHECKING:
    from posttrainbench.gateway.context import Context

_LONGEST_WAIT_S = 25.0
_LARGEST_BODY = 16_384
_LONGEST_PATH = 4096
_LOOK_S = 0.2
_KEY = re.compile(r"[A-Za-z0-9_-]{8,64}")
_JOB = re.compile(r"call-[0-9]{4,6}")
_NUMBERS = {"limit": 1_000_000, "max_tokens": 1_000_000, "batch_size": 4096}
_TOLD = ("n", "strict", "paper", "truncated", "empty", "max_tokens", "items", "weights", "seconds")


async def handle(request: http.BaseRequest, context: Context) -> http.StreamResponse:
    """Serve one request below `/sealed/`."""
    return await context.part("sealed", Service).handle(request)


class Service:
    """The service of one run.

    Raises:
        ConfigurationError: settings that cannot be.
    """

    def __init__(self, context: Context) -> None:
        self.context = context
        self.config = SealedConfig.from_json(context.config.sealed or {})
        self.spool = Spool(context.directory)
        self.refusals = Refusals(context, "sealed-requests")

    async def handle(self, request: http.BaseRequest) -> http.StreamResponse:
        """Answer one request."""
        try:
            return await self._route(request)
        except Refused as refused:
            # waiting for one's turn is no event
            return self.refusals.answer(request, refused, log=refused.kind != "busy")

    async def _route(self, request: http.BaseRequest) -> http.StreamResponse:
        path = request.path.removeprefix("/sealed/")
        if path == "status" and request.method == "GET":
            return http.json_response(self._status())
        if path == "evaluate" and request.method == "POST":
            return await self._submit(request)
        name = path.removeprefix("evaluate/")
        if path.startswith("evaluate/") and request.method in ("GET", "DELETE"):
            job = self.spool.job(name) if _JOB.fullmatch(name) else None
            if job is None:
                raise Refused(404, "job", f"There is no evaluation {name[:40]!a} in this run.")
            if request.method == "DELETE":
                self.spool.cancel(job.id)
            return await self._wait(job, request.query.get("wait", "0"))
        raise Refused(
            404, "path", "There are GET /sealed/status, POST /sealed/evaluate, GET and DELETE /sealed/evaluate/JOB."
        )

    def _status(self) -> dict[str, Any]:
        jobs = self.spool.jobs()
        spent = self.spool.spent()
        found: dict[str, Any] = {
            "benchmark": self.config.benchmark,
            "items": self.config.total,
            "feedback": self.config.feedback,
            "limit_step": self.config.step,
            "calls": self.config.calls,
            "calls_left": max(0, self.config.calls - len(jobs)),
            "seconds_left": round(max(0.0, self.config.seconds - spent), 1),
        }
        if self.config.items is not None:
            found["items_left"] = max(0, self.config.items - self._used(jobs))
        waiting = self.spool.open_job()
        return found | {"job": None if waiting is None else waiting.id}

    def _used(self, jobs: list[Job]) -> int:
        """Items that were or may have been graded: of a model that was never asked a question, none."""
        results = ((job, self.spool.result(job.id) or {}) for job in jobs)
        return sum(job.count for job, result in results if result.get("kind") not in ("path", "model"))

    async def _submit(self, request: http.BaseRequest) -> http.StreamResponse:
        asked = await _body(request)
        job = self._accept(asked)
        return http.json_response(self._describe(job), status=202)

    def _accept(self, asked: dict[str, Any]) -> Job:
        """No await in here: nothing comes between the look at the limits and the count."""
        jobs = self.spool.jobs()
        for job in jobs:
            if job.key == asked["key"]:
                return job
        busy = self.spool.open_job()
        if busy is not None:
            told = f"The evaluation {busy.id} of {busy.path[:200]!a} is under way, and there is one at a time."
            raise Refused(503, "busy", told, job=busy.id)
        if len(jobs) >= self.config.calls:
            raise Refused(429, "limit", f"This run has made its {self.config.calls} evaluations, and no more are made.")
        if self.spool.spent() >= self.config.seconds:
            hours = self.config.seconds / 3600
            raise Refused(429, "limit", f"The {hours:.2g} hours that this run has for evaluations are used up.")
        count = self.config.count(asked.get("limit"))
        if self.config.items is not None:
            left = self.config.items - self._used(jobs)
            if count > left:
                told = f"{count} items are more than the {max(0, left)} that this run may still have graded."
                raise Refused(429, "limit", told + " (--limit takes fewer)")
        job = Job(
            id=f"call-{len(jobs) + 1:04d}",
            key=asked["key"],
            path=asked["path"],
            limit=asked.get("limit"),
            count=count,
            max_tokens=asked.get("max_tokens"),
            batch_size=asked.get("batch_size"),
            accepted=utc(),
        )
        self.spool.add(job)
        fields = {"limit": job.limit, "count": count, "max_tokens": job.max_tokens}
        self.context.log("sealed-requests", event="accepted", job=job.id, path=job.path, **fields)
        return job

    async def _wait(self, job: Job, wait: str) -> http.StreamResponse:
        seconds = 0.0
        with suppress(ValueError):
            seconds = min(float(wait), _LONGEST_WAIT_S)
        until = time.monotonic() + seconds
        began = self.spool.running(job.id)
        while self.spool.result(job.id) is None and time.monotonic() < until:
            if self.spool.running(job.id) != began:
                break  # a client shows that its turn has come
            await asyncio.sleep(_LOOK_S)
        return http.json_response(self._describe(job))

    def _describe(self, job: Job) -> dict[str, Any]:
        found: dict[str, Any] = {"job": job.id, "path": job.path, "count": job.count, "of": self.config.total}
        result = self.spool.result(job.id)
        if result is None:
            found["state"] = "running" if self.spool.running(job.id) else "queued"
        elif result.get("state") == "done":
            told = {name: result[name] for name in _TOLD if name in result}
            if self.config.feedback != "items":
                told.pop("items", None)
            found |= {"state": "done", "scores": told}
        else:
            found["state"] = "failed"
            found["error"] = {"kind": str(result.get("kind")), "message": str(result.get("message"))}
        status = self._status()
        return found | {name: status[name] for name in ("calls_left", "seconds_left", "items_left") if name in status}


async def _body(request: http.BaseRequest) -> dict[str, Any]:
    """The request's JSON, checked.

    Raises:
        Refused: it is none, or says something else than it may.
    """
    raw = bytearray()
    while piece := await asyncio.wait_for(request.content.read(_LARGEST_BODY), 60.0):
        raw += piece
        if len(raw) > _LARGEST_BODY:
            raise Refused(413, "format", f"A request has at most {_LARGEST_BODY} bytes.")
    try:
        value = json.loads(bytes(raw))
    except (ValueError, RecursionError):
        raise Refused(400, "format", "The request is not JSON.") from None
    if not isinstance(value, dict) or not {"key", "path"} <= set(value) <= {"key", "path", *_NUMBERS}:
        raise Refused(
            400, "format", 'A request is {"key", "path"} and where wanted "limit", "max_tokens", "batch_size".'
        )
    key, path = value["key"], value["path"]
    if not isinstance(key, str) or not _KEY.fullmatch(key):
        raise Refused(400, "format", "The key is 8 to 64 letters and digits of the client's choice.")
    if not isinstance(path, str) or "\0" in path or not path.startswith("/") or len(path) > _LONGEST_PATH:
        raise Refused(400, "format", "The path is the absolute path of a model directory.")
    for name, most in _NUMBERS.items():
        number = value.get(name)
        if number is not None and (type(number) is not int or not 1 <= number <= most):
            raise Refused(400, "format", f"{name} is a whole number from 1 to {most}.")
    return value

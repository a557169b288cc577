"""The grading service: takes a benchmark's answers and returns scores. Numbers are all that ever leaves it.

    GET  /grader/status             what is graded, and how many answers are left
    POST /grader/score              JSON lines: {"benchmark", "items"}, then {"id", "answer"} for each item -> 202, a job
    GET  /grader/score/JOB?wait=S   {"state": "queued" | "running" | "done" | "failed", ...}, after S seconds at most

A submission is the first N items of the run's benchmark, in any order. The same submission again is the same job: a client
that lost its connection sends it again. One job is graded at a time, in a process of its own (`grading_process`).

What an agent can get out of the grader: per answer a score of few values (a game is won, even or lost; a criterion met or
not), for a bounded number of answers, and only to the questions of the benchmark. Answers that talk to the grader are noted
in the log for the audit.
"""

from __future__ import annotations

import asyncio
import json
import shutil
import tempfile
import time
import traceback
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO

from aiohttp import web as http

from posttrainbench import catalog
from posttrainbench.files import fsync_directory, read_json, write_json
from posttrainbench.gateway.context import say
from posttrainbench.gateway.grading_config import GraderConfig
from posttrainbench.gateway.grading_jobs import Job, Jobs, digest, job_id, settled, talk_to_grader
from posttrainbench.gateway.grading_process import EXPLANATIONS, Graded, as_json, item_ids, score
from posttrainbench.gateway.refusals import Refusals, Refused

if TYPE_CHECKING:
    from posttrainbench.gateway.context import Context

_LONGEST_WAIT_S = 25.0
_UPLOADS = 4
_WAITING = 4
_UPLOAD_IDLE_S = 60.0
_SUSPECTS = 20


async def handle(request: http.BaseRequest, context: Context) -> http.StreamResponse:
    """Serve one request below `/grader/`."""
    return await context.part("grader", Service).handle(request)


class Service:
    """The service of one run.

    Raises:
        ConfigurationError: settings that cannot be.
    """

    def __init__(self, context: Context) -> None:
        self.context = context
        self.config = GraderConfig.from_json(context.config.grader or {})
        catalog.benchmark(self.config.benchmark)
        self.directory = context.directory / "grader"
        self.directory.mkdir(mode=0o700, parents=True, exist_ok=True)
        self.jobs = Jobs(self.directory, context.directory / "grader.jsonl")
        self.changed = asyncio.Event()
        self.work = asyncio.Event()
        self.uploads = 0
        self.refusals = Refusals(context, "grader")
        self._ids: list[str] | None = None
        self._asking = asyncio.Lock()
        task = asyncio.get_running_loop().create_task(self._grade_all())
        context.tasks.add(task)

    async def handle(self, request: http.BaseRequest) -> http.StreamResponse:
        """Answer one request."""
        try:
            return await self._route(request)
        except Refused as refused:
            return self.refusals.answer(request, refused)

    async def _route(self, request: http.BaseRequest) -> http.StreamResponse:
        path = request.path.removeprefix("/grader/")
        if path == "status" and request.method == "GET":
            return _json(self._status())
        if path == "score" and request.method == "POST":
            return await self._submit(request)
        name = path.removeprefix("score/")
        if path.startswith("score/") and request.method == "GET":
            return await self._job(name, request.query.get("wait", "0"))
        raise Refused(
            404, "path", "There are GET /grader/status, POST /grader/score and GET /grader/score/JOB. Nothing else."
        )

    def _status(self) -> dict[str, Any]:
        most = self.config.most_answers
        return {
            "benchmark": self.config.benchmark,
            "grader": self.config.model,
            "answers": most,
            "used": self.jobs.used,
            "left": max(0, most - self.jobs.used),
            "answer_chars": self.config.answer_chars,
        }

    # submissions

    async def _submit(self, request: http.BaseRequest) -> http.StreamResponse:
        if self.uploads >= _UPLOADS:
            raise Refused(503, "busy", "Other submissions are being read; try again in a few seconds.")
        self.uploads += 1
        draft = Path(tempfile.mkdtemp(prefix=".upload-", dir=self.directory))
        try:
            with (draft / "answers.jsonl").open("wb") as file:
                upload = Upload(self.config, file)
                await upload.read(request)
            await self._check_items(upload)
            job = self._accept(upload, draft)
        finally:
            self.uploads -= 1
            shutil.rmtree(draft, ignore_errors=True)
        return _json(self._describe(job), status=202)

    async def _check_items(self, upload: Upload) -> None:
        ids = await self._item_ids()
        foreign = sorted(set(upload.answers) - set(ids))
        if foreign:
            shown = ", ".join(ascii(each[:60]) for each in foreign[:3])
            raise Refused(
                403, "foreign-items", f"{len(foreign)} of the items are not of {self.config.benchmark}: {shown}."
            )
        count = len(upload.answers)
        if set(ids[:count]) != set(upload.answers):
            raise Refused(
                400, "items", f"A submission is the first N items; these are {count}, but not the first {count}."
            )

    async def _item_ids(self) -> list[str]:
        """Asked of a process once in a run: the benchmark's data is nothing for this one."""
        async with self._asking:
            if self._ids is None:
                with suppress(OSError, ValueError):
                    self._ids = read_json(self.directory / "ids.json")
            if self._ids is None:
                found = await item_ids(self.config)
                if isinstance(found, str):
                    self._log("setup", reason="configuration", detail=found)
                    raise Refused(503, "configuration", "Grading: " + EXPLANATIONS["configuration"])
                self._ids = found
                write_json(self.directory / "ids.json", found)
            return self._ids

    def _accept(self, upload: Upload, draft: Path) -> Job:
        """No await in here: nothing comes between the look at the limit and the count."""
        name = job_id(upload.answers)
        known = self.jobs.jobs.get(name)
        if known is not None and known.state != "failed":
            return known
        if len(self.jobs.waiting()) >= _WAITING:
            raise Refused(503, "busy", f"{_WAITING} submissions wait to be graded; try again when one has ended.")
        if self.jobs.accepted >= self.config.jobs:
            raise Refused(429, "limit", f"This run has made {self.config.jobs} submissions, and no more are taken.")
        fresh = self.jobs.new_answers(upload.answers)
        new, left = len(fresh), self.config.most_answers - self.jobs.used
        if new > left:
            raise Refused(
                429,
                "limit",
                f"{new} answers are new, and this run may have {max(0, left)} more graded, of {self.config.most_answers} "
                "in all (--limit takes fewer). Answers that were graded before do not count.",
            )
        job = Job(name, upload.answers, fresh | (known.fresh if known else set()), self.jobs.folder(name))
        shutil.rmtree(job.directory, ignore_errors=True)
        draft.rename(job.directory)
        job.save()
        fsync_directory(job.directory.parent)
        self.jobs.jobs[name] = job
        self.jobs.graded |= settled(job)
        self.jobs.used, self.jobs.accepted = self.jobs.used + new, self.jobs.accepted + 1
        fields: dict[str, Any] = {"again": True} if known is not None else {}
        if upload.suspects:
            fields["suspects"] = dict(list(upload.suspects.items())[:_SUSPECTS])
            fields["suspect_answers"] = len(upload.suspects)
        counts = {"items": len(upload.answers), "new": new, "used": self.jobs.used, "bytes": upload.size}
        self._log("accepted", job=name, **counts, **fields)
        self.work.set()
        return job

    # results

    async def _job(self, name: str, wait: str) -> http.StreamResponse:
        job = self.jobs.jobs.get(name)
        if job is None:
            raise Refused(404, "job", "There is no such job; submit the answers again.")
        try:
            seconds = min(float(wait), _LONGEST_WAIT_S)
        except ValueError:
            seconds = 0.0
        until = time.monotonic() + seconds
        while job.state in ("queued", "running") and (left := until - time.monotonic()) > 0:
            with suppress(TimeoutError):
                await asyncio.wait_for(self.changed.wait(), left)
        return _json(self._describe(job))

    def _describe(self, job: Job) -> dict[str, Any]:
        found: dict[str, Any] = {"job": job.id, "state": job.state}
        if job.state == "failed":
            found["error"] = {"kind": job.result["kind"], "message": EXPLANATIONS[job.result["kind"]]}
        elif job.state == "done":
            figures = {name: job.result["figures"].get(name) for name in ("gradings", "cached")}
            found |= {
                "scores": job.result["scores"],
                "items": job.result["items"],
                "grading": {"grader": self.config.model, **figures, "failures": job.result["failures"]},
            }
        return found | {"left": self._status()["left"]}

    # work

    async def _grade_all(self) -> None:
        while True:
            waiting = self.jobs.waiting()
            if not waiting:
                self.work.clear()
                await self.work.wait()
                continue
            try:
                await self._grade(waiting[0])
            except Exception:  # a mistake of ours must end neither the service nor in a job that waits for ever
                say(f"grading {waiting[0].id}:\n{traceback.format_exc()}")
                waiting[0].state, waiting[0].result = "failed", {"kind": "crash"}

    async def _grade(self, job: Job) -> None:
        began = time.monotonic()
        job.state = "running"
        try:
            graded = await score(
                self.config,
                job.answers_file,
                limit=len(job.answers),
                cache=self.directory / "grading.jsonl",
                secrets=self.context.secrets.grader,
                proxy=self.context.secrets.proxy,
            )
        except Exception as error:  # one bad job must not end the service
            graded = Graded(kind="crash", detail=f"{type(error).__name__}: {error}")
        state = "done" if graded.kind is None else "failed"
        before = settled(job)
        try:
            result = {name: value for name, value in as_json(graded).items() if name != "detail"}
            job.finish("done" if graded.kind is None else "failed", result)
        except (OSError, ValueError) as error:
            graded, state = Graded(kind="crash", detail=f"cannot be kept: {error}"), "failed"
            job.state, job.result = "failed", {"kind": "crash"}
        self.jobs.graded -= before - settled(job)
        missing = sum(1 for each in graded.items.values() if each.get("strict") is None)
        fields = {name: value for name, value in (("reason", graded.kind), ("detail", graded.detail)) if value}
        self._log(
            "finished",
            job=job.id,
            state=state,
            seconds=round(time.monotonic() - began, 3),
            missing=missing,
            usd=self._cost(graded.figures),
            failures=graded.failures,
            **graded.figures,
            **fields,
        )
        self.changed.set()
        self.changed = asyncio.Event()

    def _cost(self, figures: dict[str, int]) -> float | None:
        """USD at list price; `None` where tokens or price are not known. Cached input counts as input: an upper bound."""
        from posttrainbench.gateway.prices import find_price

        family, _, model = self.config.model.partition("/")
        price = find_price("gemini" if family == "google" else family, model)
        if price is None or "input_tokens" not in figures:
            return None
        return round((figures["input_tokens"] * price.input + figures["output_tokens"] * price.output) / 1e6, 6)

    def _log(self, event: str, **fields: Any) -> None:
        self.context.log("grader", event=event, **fields)


class Upload:
    """A submission as it comes in: line by line, so that a hostile one costs no more memory than its longest line.

    Attributes:
        answers: digest by item id.
        suspects: by item id, how its answer talks to the grader.
    """

    def __init__(self, config: GraderConfig, file: BinaryIO) -> None:
        self.config, self.file = config, file
        self.answers: dict[str, str] = {}
        self.suspects: dict[str, list[str]] = {}
        self.size = 0
        self.announced: int | None = None
        # a character has at most 6 bytes in JSON, 12 outside of the basic plane
        self._longest = 12 * config.answer_chars + 1000

    async def read(self, request: http.BaseRequest) -> None:
        """Read it all.

        Raises:
            Refused: it is not a submission, or too large.
        """
        pending = bytearray()
        while True:
            try:
                piece = await asyncio.wait_for(request.content.read(65536), _UPLOAD_IDLE_S)
            except TimeoutError:
                raise Refused(408, "silence", "The submission did not come to its end.") from None
            self.size += len(piece)
            if self.size > self.config.job_bytes:
                raise Refused(413, "size", f"A submission may have {self.config.job_bytes} bytes.")
            pending += piece
            *lines, rest = pending.split(b"\n") if b"\n" in piece else (pending,)
            for line in lines:
                self._line(line)
                await asyncio.sleep(0)  # others' streams come first
            pending = rest
            if len(pending) > self._longest:
                raise Refused(413, "answer-length", self._too_long("an item"))
            if not piece:
                break
        self._line(pending)
        if self.announced is None or self.announced != len(self.answers) or not self.answers:
            raise Refused(400, "cut", f"{self.announced or 0} items were announced, {len(self.answers)} came.")

    def _too_long(self, what: str) -> str:
        most = self.config.answer_chars
        return f"The answer to {what} is longer than {most} characters; generate fewer tokens (--max-tokens)."

    def _line(self, line: bytes | bytearray) -> None:
        if not line.strip():
            return
        try:
            value = json.loads(bytes(line))
        except (ValueError, RecursionError):
            raise Refused(400, "format", "A line of the submission is not JSON.") from None
        if self.announced is None:
            self._header(value)
            return
        if not isinstance(value, dict) or set(value) != {"id", "answer"}:
            raise Refused(400, "format", 'A line is {"id": ..., "answer": "..."}, with nothing else in it.')
        name, answer = value["id"], value["answer"]
        if not isinstance(name, str) or not isinstance(answer, str):
            raise Refused(400, "format", "The id and the answer of an item are texts.")
        if name in self.answers:
            raise Refused(400, "twice", f"The item {name[:60]!a} is there twice.")
        if len(self.answers) >= self.announced:
            raise Refused(400, "cut", f"{self.announced} items were announced, and more came.")
        if len(answer) > self.config.answer_chars:
            raise Refused(413, "answer-length", self._too_long(ascii(name[:60])))
        answer = answer.encode("utf-8", "replace").decode()
        self.answers[name] = digest(name, answer)
        found = talk_to_grader(answer)
        if found:
            self.suspects[name[:100]] = found
        self.file.write(json.dumps({"id": name, "completion": answer}, ensure_ascii=False).encode() + b"\n")

    def _header(self, value: Any) -> None:
        count = value.get("items") if isinstance(value, dict) else None
        if not isinstance(value, dict) or set(value) != {"benchmark", "items"} or type(count) is not int:
            raise Refused(400, "format", 'The first line is {"benchmark": ..., "items": N}.')
        if value["benchmark"] != self.config.benchmark:
            raise Refused(403, "benchmark", f"This run's benchmark is {self.config.benchmark}; nothing else is graded.")
        most = catalog.benchmark(self.config.benchmark).items
        if not 0 < count <= most:
            raise Refused(400, "items", f"{self.config.benchmark} has {most} items.")
        self.announced = count


def _json(value: Any, *, status: int = 200) -> http.Response:
    return http.json_response(value, status=status)

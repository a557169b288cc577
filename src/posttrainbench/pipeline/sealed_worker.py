"""The evaluator of sealed test data: `python -P -m posttrainbench.pipeline.sealed_worker`, started by `pipeline.sealed`.

A process of its own beside the agent's sandbox, because a sandbox dies with the thread that started it, and the harness's
own thread is busy with the agent's. It takes one request after the other from the spool, copies the model out of the living
workspace, and evaluates it as the final evaluation will: tensors only, in the base model's wrapping, in a fresh sandbox
without network. What it tells is numbers, and words about the model directory that were found before any item was near.

It reads one line of JSON from standard input (`run`, `deadline`: monotonic seconds), says `ready`, and ends when that input
ends. An evaluation that is under way then, or at the deadline, is killed; it is over when no process of its sandbox is left.
"""

from __future__ import annotations

import json
import os
import select
import sys
import time
import traceback
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import replace
from pathlib import Path, PurePosixPath
from typing import Any

from posttrainbench.errors import PTBError, SubmissionError
from posttrainbench.evaluation import EvaluationRequest
from posttrainbench.files import read_json, remove_tree
from posttrainbench.gateway.sealed_config import SealedConfig
from posttrainbench.gateway.sealed_spool import Job, Spool
from posttrainbench.integrity.validity import problems_of
from posttrainbench.pipeline.context import Context
from posttrainbench.pipeline.run_dir import RunDirectory, now
from posttrainbench.pipeline.scoring import KilledForMemory, evaluate_model, rewrap
from posttrainbench.pipeline.sealed_take import Agent, NotTaken, Stopped, largest, take
from posttrainbench.pipeline.solve import Interrupted
from posttrainbench.sandbox import Backend, Capabilities, Check, Result, Runtime, Spec
from posttrainbench.workspace import paths
from posttrainbench.workspace.build import template_for

DRAFT = ".sealed"
"""Directory in the run directory with copies of what is evaluated; nothing in it outlives its evaluation."""
SUBSET = "sealed"
"""Seed of the order from which a limit takes the first items: the same in all runs, and nested."""
_LOOK_S = 0.2
_GRACE_S = 0.5
# What the agent and the harness keep of the memory that is free when an evaluation begins.
_SPARED = 512 * 2**20
_LEAST_MEMORY = 2**30

# What an agent is told. What an evaluation says itself may quote an item; it stays in the log.
EXPLANATIONS: Mapping[str, str] = {
    "memory": "the evaluation ran out of memory, of the GPU or of the machine: your own processes use the same. Free "
    "some, or lower --batch-size.",
    "model": "the model does not load, or cannot be run. The final evaluation would fail in the same way.",
    "cancelled": "it was ended at your own wish.",
    "deadline": "the run's time is up.",
    "budget": "the time that this run has for evaluations is used up.",
    "grader": "the service that grades this benchmark failed; the operator has to mend that.",
    "disk": "the harness has no disk space for a copy of the model; smaller or fewer files in your directories may help.",
    "crash": "it failed within the harness; the operator has the details. Asking again may help.",
}


class Watched:
    """The run's sandbox, without patience at the end, and with a memory of what it left behind."""

    def __init__(self, backend: Backend) -> None:
        self._backend = backend
        self.name = backend.name
        self.survivors = 0

    def runtime(self) -> Runtime:
        """As the back end."""
        return self._backend.runtime()

    def capabilities(self) -> Capabilities:
        """As the back end."""
        return self._backend.capabilities()

    def preflight(self) -> list[Check]:
        """As the back end."""
        return self._backend.preflight()

    def run(
        self,
        spec: Spec,
        *,
        on_output: Callable[[bytes], None] | None = None,
        cancelled: Callable[[], bool] | None = None,
    ) -> Result:
        """As the back end; remembers processes that outlived the sandbox."""
        spec = replace(spec, limits=replace(spec.limits, grace_s=_GRACE_S))
        result = self._backend.run(spec, on_output=on_output, cancelled=cancelled)
        self.survivors += result.survivors
        return result


class Evaluator:
    """Evaluates what the spool holds.

    Args:
        run: whose.
        deadline: monotonic seconds at which the run's time is up.
        ended: whether the harness wants an end.
    """

    def __init__(self, run: RunDirectory, *, deadline: float, ended: Callable[[], bool]) -> None:
        self.context = Context(run=run)
        self.config = SealedConfig.from_json(self.context.record["gateway"]["sealed"])
        self.spool = Spool(run.path / "gateway")
        self._draft = run.path / DRAFT
        self._deadline, self._ended = deadline, ended
        self._until, self._job = deadline, ""
        job = run.job
        self._agent = Agent({PurePosixPath(paths.HOME): job.home, PurePosixPath(paths.TEMPORARY): job.temporary})
        remove_tree(self._draft)

    def serve(self) -> None:
        """Evaluate until the harness wants an end."""
        for job in self.spool.jobs():
            # an evaluator died over it; asked for once more it would be the next one's death
            if self.spool.running(job.id) and self.spool.result(job.id) is None:
                seconds = {"seconds": round(self.spool.age(job.id), 3)}
                self.spool.finish(job, failed("crash", detail="the evaluator died") | seconds, ended=now())
        while not self._ended():
            job_now = self.spool.open_job()
            if job_now is None:
                time.sleep(_LOOK_S)
                continue
            self._one(job_now)

    def _why(self) -> str | None:
        """Why the evaluation under way must end, if it must."""
        if self._ended() or time.monotonic() >= self._deadline:
            return "deadline"
        if time.monotonic() >= self._until:
            return "budget"
        return "cancelled" if self.spool.cancelled(self._job) else None

    def _must_end(self) -> bool:
        return self._why() is not None

    def _one(self, job: Job) -> None:
        began = time.monotonic()
        self._job, self._until = job.id, began + self.config.seconds - self.spool.spent()
        self.spool.begin(job)
        backend = Watched(self.context.backend)
        facts: dict[str, Any] = {}
        try:
            result = self._evaluate(job, backend, facts)
        except (Stopped, Interrupted):
            result = failed(self._why() or "cancelled")
        except NotTaken as error:
            result = failed("path", f"{error}.")
        except SubmissionError as error:
            result = failed("model", detail=str(error))
        except PTBError as error:
            result = failed(_kind(error, self._draft / "out"), detail=str(error))
        except OSError as error:
            result = failed("disk" if error.errno in (28, 122) else "crash", detail=str(error))
        except Exception as error:
            print(f"{job.id}:\n{traceback.format_exc()}", flush=True)
            result = failed("crash", detail=f"{type(error).__name__}: {str(error)[:300]}")
        finally:
            remove_tree(self._draft)
        result |= facts | {"survivors": backend.survivors, "seconds": round(time.monotonic() - began, 3)}
        self.spool.finish(job, result, ended=now())

    def _evaluate(self, job: Job, backend: Backend, facts: dict[str, Any]) -> dict[str, Any]:
        context, draft = self.context, self._draft
        draft.mkdir(mode=0o755)
        source = draft / "taken"
        began = time.monotonic()
        if PurePosixPath(job.path) == PurePosixPath(f"{paths.MODELS}/{context.model.name}"):
            source = context.base
        else:
            taken = take(self._agent, job.path, source, most=largest(context.base), stopped=self._must_end)
            facts |= {"bytes": taken.bytes, "weights": taken.weights}
        facts["taken_s"] = round(time.monotonic() - began, 3)
        problems = problems_of(source, context.base)
        if problems:
            return failed("model", "; ".join(problems)[:1000] + ".")
        rewrap(source, context.base, draft / "model")
        limit = None if job.count >= self.config.total else job.count
        cap = context.benchmark.max_tokens
        request = EvaluationRequest(
            benchmark=context.benchmark.id,
            model=str(draft / "model"),
            base_model=context.model.name,
            template=template_for(context.model, context.benchmark),
            output=str(draft / "out"),
            limit=limit,
            subset=None if limit is None else SUBSET,
            max_tokens=None if job.max_tokens is None else min(job.max_tokens, cap),
            batch_size=job.batch_size,
            seed=context.spec.seed,
            data_dir=context.spec.data_dir,
            grader=context.spec.grader,
            # not the final evaluation's: what the agent chose by may not be what it is judged by
            grading_cache=str(self.spool.root / "grading.jsonl"),
        )
        metrics = evaluate_model(
            request,
            backend=backend,
            gpus=tuple(context.record["gpus"]),
            memory_bytes=_memory(context.record["limits"]["memory_bytes"]),
            cancelled=self._must_end,
        )
        if self._must_end():
            raise Stopped
        found: dict[str, Any] = {"state": "done", "n": metrics["n"]}
        for name in ("strict", "paper"):
            found[name] = {key: metrics[name].get(key) for key in ("accuracy", "stderr", "scored", "missing")}
        found |= {
            key: metrics[key] for key in ("truncated", "empty", "max_tokens") if isinstance(metrics.get(key), int)
        }
        if self.config.feedback == "items":
            found["items"] = self._items(draft / "out", request)
        return found

    def _items(self, output: Path, request: EvaluationRequest) -> list[dict[str, Any]]:
        """Scores by item in the sealed order, without names: a name could be looked up."""
        from posttrainbench.evaluation.runner import build_task
        from posttrainbench.gateway.grading_child import item_scores

        scores = item_scores(output)
        order = [str(sample.id) for sample in build_task(replace(request, subset=SUBSET)).dataset]
        return [{"item": place, **scores[name]} for place, name in enumerate(order) if name in scores]


def failed(kind: str, message: str | None = None, *, detail: str = "") -> dict[str, Any]:
    """The result of an evaluation without a score; `detail` is for the operator."""
    found = {"state": "failed", "kind": kind, "message": EXPLANATIONS[kind] if message is None else message}
    return found | ({"detail": detail[:1000]} if detail else {})


def _kind(error: PTBError, output: Path) -> str:
    """What kind of failure an error of the evaluation is, for the agent."""
    if isinstance(error, KilledForMemory):
        return "memory"
    if type(error).__name__ == "GradingStopped":
        return "grader"
    with suppress(OSError, ValueError):
        if "memory" in str(read_json(output / "outcome.json").get("failure")):
            return "memory"
    return "crash"


def _memory(limit: int) -> int:
    """Bytes for the evaluation: what is free beside the agent, as the agent's own limit does not shrink for it."""
    with suppress(OSError, ValueError, IndexError):
        for line in Path("/proc/meminfo").read_text().splitlines():
            if line.startswith("MemAvailable:"):
                return min(limit, max(_LEAST_MEMORY, int(line.split()[1]) * 1024 - _SPARED))
    return limit


def main() -> int:
    """Serve the run that standard input names, until that ends."""
    told = json.loads(sys.stdin.readline())

    def ended() -> bool:
        return bool(select.select([sys.stdin], [], [], 0)[0])

    run = RunDirectory.open(Path(told["run"]))
    evaluator = Evaluator(run, deadline=float(told["deadline"]), ended=ended)
    print("ready", flush=True)
    # from here on everything goes to the log; nobody reads the pipe
    os.dup2(2, 1)
    evaluator.serve()
    return 0


if __name__ == "__main__":
    sys.exit(main())

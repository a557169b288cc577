"""Sealed test data, the whole way: scores as the final evaluation gives them, and no item within the agent's reach."""

from __future__ import annotations

import ast
import json
import os
import random
import shutil
import signal
import threading
import time
from pathlib import Path
from typing import Any

import pytest

from posttrainbench import catalog
from posttrainbench.errors import ConfigurationError, InfrastructureError
from posttrainbench.evaluation import data
from posttrainbench.files import read_json
from posttrainbench.pipeline.context import Context
from posttrainbench.pipeline.prepare import prepare
from posttrainbench.pipeline.run import run_stage
from posttrainbench.pipeline.spec import RunSpec
from posttrainbench.smoke import test_items as smoke_items
from tests.conftest import AGENTS, Ptb
from tests.evaluation.grading_server import grader_server
from tests.gateway.grading import REPLY, SECRET
from tests.support.agent_runs import Finished, solved, whole

KEY = "sk-proj-REALKEY-of-the-grader-0123456789"


@pytest.fixture(scope="module")
def skilled(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A base model that solves some of the problems: the built-in instruct model in its place."""
    path = tmp_path_factory.mktemp("skilled") / "skilled-base"
    return Path(shutil.copytree(catalog.WEIGHTS / "ptb-tiny-instruct", path))


def file_of(finished: Finished, name: str) -> dict[str, Any]:
    """A file that the agent left, collected or not."""
    for path in (finished.run.workspace / "task" / name, finished.run.job.task / name):
        if path.exists():
            found: dict[str, Any] = read_json(path)
            return found
    raise AssertionError(f"no {name}")


@pytest.mark.slow
def test_scores_are_those_of_the_final_evaluation(skilled: Path, tmp_path: Path, ptb: Ptb) -> None:
    finished = whole(f"scripted:{AGENTS / 'sealed.py'}", skilled, tmp_path, test_data="sealed")
    trace = finished.trace
    assert trace.count("status 0") == 2 and "cannot import name 'test_items'" in trace, trace[-3000:]
    every, some = file_of(finished, "all.json"), file_of(finished, "some.json")
    result, metrics = finished.result, read_json(finished.run.evaluation / "metrics.json")
    for name in ("strict", "paper"):
        assert {key: every[name][key] for key in ("accuracy", "stderr")} == {
            key: metrics[name][key] for key in ("accuracy", "stderr")
        }
    assert 0.05 < every["strict"]["accuracy"] < 1 and every["n"] == 200
    assert result["own_score"] == every["strict"]["accuracy"] and result["status"] in ("scored", "flagged")
    # a limit takes a fixed part, in steps that tell no single item, and another one than the first items
    done = ptb(
        "evaluate", finished.run.submission, "--benchmark", "smoke-math", "--base-model", "ptb-tiny", "--out", tmp_path
    )
    assert done.returncode == 0 and f"strict: {every['strict']['accuracy']:.4f}" in done.stdout, done.stderr
    by_item = _items(next(Path(done.stdout.splitlines()[-1]).glob("*.eval"), None) or _log(tmp_path))
    order = sorted(by_item)
    random.Random("sealed:smoke-math").shuffle(order)
    assert some["n"] == 40
    assert some["strict"]["accuracy"] == pytest.approx(sum(by_item[name] for name in order[:40]) / 40)
    # on record
    assert result["test_data"] == "sealed (score)" and result["test_calls"] == 2
    assert finished.run.record()["protocol"]["test_data"] == "sealed (score)"
    assert finished.solve["sealed"]["scored"] == 2 and finished.solve["sealed"]["survivors"] == 0
    calls = finished.lines("sealed")
    assert [call["n"] for call in calls] == [200, 40] and len({call["weights"] for call in calls}) == 1
    findings = read_json(finished.run.audit / "findings.json")
    assert "sealed-evaluations" in json.dumps(findings)
    assert not (finished.run.path / ".sealed").exists()


def _log(root: Path) -> Path:
    [path] = root.glob("evaluations/*/*.eval")
    return path


def _items(log: Path) -> dict[str, float]:
    from inspect_ai.log import read_eval_log
    from inspect_ai.scorer import value_to_float

    as_float = value_to_float()
    samples = read_eval_log(str(log)).samples or []
    return {str(sample.id): as_float((sample.scores or {})["strict"].value) for sample in samples}


def _tricks(base: Path, out: Path, needles: list[str], places: list[str], **options: Any) -> Finished:
    text = (AGENTS / "sealed_tricks.py").read_text()
    written = {"OTHER": str(base), "NEEDLES": [needle[::-1] for needle in needles], "PLACES": places}
    for name, value in written.items():
        empty = "\n" + name + (' = ""\n' if name == "OTHER" else " = []\n")
        assert text.count(empty) == 1
        text = text.replace(empty, f"\n{name} = {value!r}\n")
    program = out / "tricks.py"
    program.write_text(text)
    return solved(f"scripted:{program}", base, out, test_data="sealed", **{"hours": 0.15, **options})


def test_tricks_are_refused_and_no_item_is_found(base_model: Path, tmp_path: Path) -> None:
    package = Path(catalog.__file__).parents[1]
    needles = sorted(_needles("smoke-math", tmp_path))
    assert any(needles[0] in path.read_text() for path in (package / "smoke").glob("*.jsonl"))
    finished = _tricks(base_model, tmp_path, needles, ["/home", "/tmp", "/run", "/etc", str(package)])
    texts = [json.loads(line).get("text", "") for line in finished.trace.splitlines()]
    tricks = [text for text in texts if text.startswith("TRICK")]
    assert len(tricks) == 15, finished.trace[-3000:]
    for trick in tricks[:-1]:
        kind, says = ("model", "weights:") if "garbage" in trick else ("path", "")
        assert f"failed {{'kind': '{kind}', 'message': " in trick and says in trick, trick
    assert tricks[-1].startswith("TRICK evaluate.py 2 evaluate.py: no score (path): model.safetensors: ")
    _nothing_found(finished, needles)
    assert finished.solve["sealed"]["scored"] == 0
    assert [call["kind"] for call in finished.lines("sealed")].count("path") == 14


def _nothing_found(finished: Finished, needles: list[str]) -> None:
    assert f"SEARCHED {len(needles)} FOUND [] BROKEN []" in finished.trace, finished.trace[-3000:]
    [line] = [line for line in finished.trace.splitlines() if "PLACES" in line]
    assert "'data" not in line


@pytest.mark.slow
@pytest.mark.parametrize("benchmark", [entry.id for entry in catalog.benchmarks() if entry.suite != "smoke"])
def test_no_benchmarks_data_is_mounted(
    benchmark: str, base_model: Path, shared_data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("OPENAI_API_KEY", KEY)  # asked for, never used
    needles = sorted(_needles(benchmark, shared_data))[:500]
    places = ["/home", "/tmp", "/run", "/etc", "/models"]
    _nothing_found(
        _tricks(base_model, tmp_path, needles, places, benchmark=benchmark, data_dir=str(shared_data)), needles
    )


@pytest.mark.slow
def test_the_whole_sandbox_holds_no_item_of_any_benchmark(base_model: Path, shared_data: Path, tmp_path: Path) -> None:
    needles: set[str] = set()
    for entry in catalog.benchmarks():
        needles |= _needles(entry.id, shared_data)
    _nothing_found(_tricks(base_model, tmp_path, sorted(needles), ["/"], hours=1.0), sorted(needles))


def _needles(benchmark: str, shared: Path) -> set[str]:
    """Lines of the benchmark's items."""
    if benchmark not in data.LOADERS:
        # nine words in a row: training problems share fewer with test items
        return {" ".join(item["question"].split()[2:11]) for item in smoke_items()}

    def texts(value: Any) -> list[str]:
        if isinstance(value, str):
            return value.splitlines()
        parts = value.values() if isinstance(value, dict) else value if isinstance(value, list) else ()
        return [text for part in parts for text in texts(part)]

    lines = (line.strip() for row in data.LOADERS[benchmark](shared).rows for line in texts(row))
    return {line[5:50] for line in lines if len(line) >= 50}


def test_the_deadline_ends_an_evaluation_with_proof(base_model: Path, tmp_path: Path) -> None:
    spec = RunSpec(
        agent=f"scripted:{AGENTS / 'sealed_late.py'}",
        base_model=str(base_model),
        benchmark="smoke-math",
        hours=14 / 3600,
        grace_s=1,
        gpus=(),
        test_data="sealed",
    )
    run = prepare(spec, results=tmp_path)
    began = time.monotonic()
    run_stage(Context(run=run), "solve")
    # nobody waits for the evaluation
    assert time.monotonic() - began < 14 + 40
    stage = run.stage("solve")
    assert stage["reason"] == "deadline" and stage["sealed"]["survivors"] == 0 and stage["sealed"]["stop_s"] < 15
    late = [call for call in Finished(run).lines("sealed") if call["state"] != "done"]
    assert {call["kind"] for call in late} == {"deadline"} and {call["survivors"] for call in late} == {0}
    # one of them was under way
    assert max(call["seconds"] for call in late) > 0.2
    assert not (run.path / ".sealed").exists()
    assert _processes_with(str(run.path)) == []


def _processes_with(text: str) -> list[str]:
    found = []
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            try:
                said = (entry / "cmdline").read_bytes() + os.fsencode((entry / "cwd").readlink())
            except OSError:
                continue
            if text.encode() in said:
                found.append(said.decode(errors="replace"))
    return found


def _evaluator(run: Path) -> int | None:
    """Process id of a run's evaluator: it stands in the run's directory."""
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            try:
                here = (entry / "cwd").readlink() == run and b"pipeline.sealed_worker" in (
                    entry / "cmdline"
                ).read_bytes()
            except OSError:
                continue
            if here:
                return int(entry.name)
    return None


@pytest.mark.slow
def test_an_evaluator_that_dies_is_started_again(base_model: Path, tmp_path: Path) -> None:
    spec = RunSpec(
        agent=f"scripted:{AGENTS / 'sealed.py'}",
        base_model=str(base_model),
        benchmark="smoke-math",
        hours=0.1,
        gpus=(),
        test_data="sealed",
    )
    run = prepare(spec, results=tmp_path)

    def kill() -> None:
        until = time.monotonic() + 60
        while time.monotonic() < until:
            if list((run.path / "gateway").glob("sealed/running/call-0001")) and (pid := _evaluator(run.path)):
                os.kill(pid, signal.SIGKILL)
                return
            time.sleep(0.05)

    thread = threading.Thread(target=kill)
    thread.start()
    run_stage(Context(run=run), "solve")
    thread.join()
    finished = Finished(run)
    assert "no score (crash)" in finished.trace and "status 3" in finished.trace and "status 0" in finished.trace
    assert [call["state"] for call in finished.lines("sealed")] == ["failed", "done"]
    assert finished.solve["sealed"]["restarts"] == 1 and _evaluator(run.path) is None


def test_an_evaluator_that_cannot_live_is_infrastructure(
    base_model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    spec = RunSpec(
        agent=f"scripted:{AGENTS / 'sealed.py'}",
        base_model=str(base_model),
        benchmark="smoke-math",
        hours=0.1,
        gpus=(),
        test_data="sealed",
    )
    run = prepare(spec, results=tmp_path)
    monkeypatch.setenv("PYTHONHOME", "/nonexistent")  # of the processes that are started from here on
    with pytest.raises(
        InfrastructureError, match=r"evaluator of the sealed test data does not start; see .*sealed\.log"
    ):
        run_stage(Context(run=run), "solve")
    assert read_json(run.result_file)["status"] == "infra_error"


@pytest.mark.slow
def test_a_graded_benchmark_is_graded_on_the_host(
    base_model: Path, shared_data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with grader_server(lambda question: REPLY["arenahardwriting"]) as grader:
        monkeypatch.setenv("OPENAI_API_KEY", KEY)
        monkeypatch.setenv("OPENAI_BASE_URL", grader.url)
        finished = solved(
            f"scripted:{AGENTS / 'sealed_graded.py'}",
            base_model,
            tmp_path,
            hours=0.1,
            benchmark="arenahardwriting",
            data_dir=str(shared_data),
            test_data="sealed",
            test_feedback="items",
        )
        asked = len(grader.asked)
    assert "status 0" in finished.trace and "on 10 items" in finished.trace, finished.trace[-3000:]
    [call] = finished.lines("sealed")
    assert call["strict"]["scored"] == 10 and asked > 0
    [line] = [line for line in finished.trace.splitlines() if "ITEMS" in line]
    rows = [json.loads(row) for row in ast.literal_eval(json.loads(line)["text"].partition(" ")[2])]
    # by place in the sealed order: no name that could be looked up
    assert [row["item"] for row in rows] == list(range(10)) and all(
        set(row) == {"item", "strict", "paper"} for row in rows
    )
    assert sum(row["strict"] for row in rows) / 10 == pytest.approx(call["strict"]["accuracy"])
    assert "GRADER []" in finished.trace and "REALKEY" not in finished.trace and SECRET not in finished.trace
    assert finished.run.record()["gateway"]["grader"] is None
    assert finished.run.record()["gateway"]["sealed"]["items"] == 2500


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ({"test_data": "hidden"}, "--test-data 'hidden' cannot be; known: visible, sealed"),
        ({"test_data": "sealed", "network": "open"}, "--test-data sealed with --network open"),
        ({"test_feedback": "items"}, "need --test-data sealed"),
        ({"test_hours": 1.0}, "need --test-data sealed"),
        ({"test_data": "sealed", "test_feedback": "all"}, "known: score, items"),
        ({"test_data": "sealed", "test_calls": 0}, "--test-calls 0 cannot be"),
        ({"test_data": "sealed", "test_hours": 0.0}, "--test-hours 0 cannot be"),
    ],
)
def test_what_cannot_work_is_refused_before(
    options: dict[str, Any], says: str, base_model: Path, tmp_path: Path
) -> None:
    with pytest.raises(ConfigurationError, match=says.replace("(", r"\(")):
        prepare(
            RunSpec(agent="scripted:idle", base_model=str(base_model), benchmark="smoke-math", **options),
            results=tmp_path / "results",
        )
    assert not (tmp_path / "results").exists() or not list((tmp_path / "results").rglob("run.json"))


def test_an_evaluation_can_be_taken_back(base_model: Path, tmp_path: Path) -> None:
    finished = solved(f"scripted:{AGENTS / 'sealed_cancel.py'}", base_model, tmp_path, hours=0.1, test_data="sealed")
    for who in ("FIRST", "SECOND"):
        assert finished.trace.count(f'"{who} 2 evaluate.py: ') == 1
    assert finished.trace.count("no score (cancelled): it was ended at your own wish.") == 2
    assert '\\"calls_left\\": 99' in finished.trace
    [call] = finished.lines("sealed")
    assert call["kind"] == "cancelled" and call["survivors"] == 0 and call["seconds"] < 60

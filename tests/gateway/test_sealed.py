"""Sealed test data at the gateway: what may be asked, how often, and that nothing is lost with a connection or a process."""

from __future__ import annotations

import json
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import threading
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from posttrainbench import catalog
from posttrainbench.errors import ConfigurationError
from posttrainbench.gateway import Gateway, GatewayConfig, Secrets
from posttrainbench.gateway.sealed_config import SealedConfig, sealed_settings
from posttrainbench.gateway.sealed_spool import Spool, read_calls
from posttrainbench.workspace import build
from posttrainbench.workspace.build import Job as Workspace

DONE = {
    "state": "done",
    "n": 200,
    "strict": {"accuracy": 0.25, "stderr": 0.03, "scored": 200, "missing": 0},
    "paper": {"accuracy": 0.5, "stderr": 0.04, "scored": 200, "missing": 0},
    "items": [{"item": 0, "strict": 1.0}],
    "detail": "words of the log",
    "seconds": 4.0,
}


class Door:
    """The gateway as a client sees it, and the spool as the evaluator does."""

    def __init__(self, gateway: Gateway, port: int) -> None:
        self.gateway, self.port = gateway, port
        self.spool = Spool(gateway.directory)

    @property
    def env(self) -> dict[str, str]:
        url = f"http://127.0.0.1:{self.port}/sealed"
        return {"PTB_SEALED_URL": url, "PTB_SEALED_TOKEN": self.gateway.secrets.token}

    def ask(self, method: str, path: str, body: Any = None, *, token: str | None = None) -> tuple[int, Any]:
        data = body if isinstance(body, bytes) or body is None else json.dumps(body).encode()
        request = urllib.request.Request(f"http://127.0.0.1:{self.port}/sealed{path}", method=method, data=data)
        request.add_header("Authorization", f"Bearer {self.gateway.secrets.token if token is None else token}")
        request.add_header("Content-Type", "application/json")
        try:
            with urllib.request.urlopen(request, timeout=60) as response:
                return response.status, json.loads(response.read())
        except urllib.error.HTTPError as error:
            return error.code, json.loads(error.read())

    def submit(self, key: str, **more: Any) -> tuple[int, Any]:
        return self.ask("POST", "/evaluate", {"key": key, "path": "/home/agent/task/final_model", **more})

    def end(self, result: dict[str, Any] = DONE) -> None:
        """In the evaluator's place."""
        job = self.spool.open_job()
        assert job is not None
        self.spool.begin(job)
        self.spool.finish(job, result, ended="now")


@contextmanager
def door(directory: Path, **settings: Any) -> Iterator[Door]:
    options = {"benchmark": "smoke-math", "base_model": "b", "calls": 5, **settings}
    told = GatewayConfig(sealed=SealedConfig(**options).to_json())
    with socket.create_server(("127.0.0.1", 0)) as listener, Gateway(told, Secrets(), directory) as gateway:
        gateway.adopt(listener)
        yield Door(gateway, listener.getsockname()[1])


def test_one_at_a_time_counted_and_told(tmp_path: Path) -> None:
    with door(tmp_path, calls=2) as found:
        status, job = found.submit("a" * 8, limit=30)
        assert (status, job["job"], job["state"], job["count"]) == (202, "call-0001", "queued", 40)
        # the same request, sent again, is no other
        assert found.submit("a" * 8, limit=30)[1]["job"] == "call-0001"
        status, busy = found.submit("b" * 8)
        assert status == 503 and busy["error"]["kind"] == "busy" and busy["error"]["job"] == "call-0001"
        found.end()
        status, job = found.ask("GET", "/evaluate/call-0001?wait=5")
        assert job["state"] == "done" and job["scores"]["strict"]["accuracy"] == 0.25
        assert "items" not in job["scores"] and "words of the log" not in json.dumps(job)
        status, job = found.submit("b" * 8)
        assert job["count"] == 200 and job["calls_left"] == 0
        found.end({"state": "failed", "kind": "path", "message": "that is no directory.", "seconds": 1.0})
        assert found.ask("GET", "/evaluate/call-0002")[1]["error"]["message"] == "that is no directory."
        status, told = found.submit("c" * 8)
        assert status == 429 and "has made its 2 evaluations" in told["error"]["message"]
        assert found.ask("GET", "/status")[1]["seconds_left"] == 36_000 - 5
    calls = read_calls(tmp_path)
    assert [(call["job"], call["state"], call["limit"]) for call in calls] == [
        ("call-0001", "done", 30),
        ("call-0002", "failed", None),
    ]
    rows = [json.loads(line) for line in (tmp_path / "sealed-requests.jsonl").read_text().splitlines()]
    assert [row["event"] for row in rows] == ["accepted", "accepted", "refused"]


@pytest.mark.parametrize(
    "body",
    [
        b"no json",
        b"[" * 5000,
        {"key": "abcdefgh"},
        {"key": "abcdefgh", "path": "relative"},
        {"key": "abcdefgh", "path": "/a\0b"},
        {"key": "abcdefgh", "path": "/" + "a" * 5000},
        {"key": "../../../x", "path": "/a"},
        {"key": "abcdefgh", "path": ["/a"]},
        {"key": "abcdefgh", "path": "/a", "limit": 0},
        {"key": "abcdefgh", "path": "/a", "limit": True},
        {"key": "abcdefgh", "path": "/a", "max_tokens": 1e9},
        {"key": "abcdefgh", "path": "/a", "engine": "replay"},
        {"key": "abcdefgh", "path": "/" + "a" * 20_000},
    ],
)
def test_odd_requests(body: Any, tmp_path: Path) -> None:
    with door(tmp_path) as found:
        status, told = found.ask("POST", "/evaluate", body)
        assert status in (400, 413) and told["error"]["kind"] == "format", told
        assert found.spool.jobs() == []


def test_other_paths_and_tokens(tmp_path: Path) -> None:
    with door(tmp_path) as found:
        assert found.ask("GET", "/status", token="ptb-run-of-another")[0] in (401, 403)
        for path in (
            "/",
            "/evaluate",
            "/evaluate/",
            "/evaluate/call-9999",
            "/evaluate/..%2f..%2fsealed",
            "/results/call-0001",
        ):
            assert found.ask("GET", path)[0] in (400, 404), path
        found.submit("a" * 8)
        assert found.ask("DELETE", "/evaluate/call-0001")[1]["state"] == "queued"
        assert found.spool.cancelled("call-0001")
    with (
        socket.create_server(("127.0.0.1", 0)) as listener,
        Gateway(GatewayConfig(), Secrets(), tmp_path / "none") as gateway,
    ):
        gateway.adopt(listener)
        status, told = Door(gateway, listener.getsockname()[1]).ask("GET", "/status")
        assert status == 404 and "no sealed test data" in json.dumps(told)


def test_limits_cannot_be_told_apart_by_single_items() -> None:
    config = SealedConfig(benchmark="aime2025", base_model="b", calls=1)
    assert {config.count(limit) for limit in range(1, 31)} == {10, 20, 30}
    assert config.count(None) == config.count(99) == 30
    assert SealedConfig(benchmark="gsm8k", base_model="b", calls=1).count(1) == 132
    assert SealedConfig(benchmark="gsm8k", base_model="b", calls=1, feedback="items").count(7) == 7


def test_settings() -> None:
    found = sealed_settings(
        "arenahardwriting", base_model="b", hours=10, feedback="score", calls=100, test_hours=None, paid=True
    )
    assert found.items == 2500 and found.seconds == 36_000 and SealedConfig.from_json(found.to_json()) == found
    with pytest.raises(ConfigurationError):
        SealedConfig.from_json({**found.to_json(), "more": 1})


def test_paid_items_and_time_are_limits(tmp_path: Path) -> None:
    with door(tmp_path / "items", items=250) as found:
        found.submit("a" * 8)
        found.end()
        # what was never asked a question cost nothing
        found.submit("refused" * 2, limit=40)
        found.end({"state": "failed", "kind": "path", "message": "that is no directory."})
        status, told = found.submit("b" * 8, limit=100)
        assert status == 429 and "more than the 50 that this run may still have graded" in told["error"]["message"]
        assert found.submit("c" * 8, limit=40)[0] == 202
    with door(tmp_path / "time", seconds=3.0) as found:
        found.submit("a" * 8)
        found.end()
        status, told = found.submit("b" * 8)
        assert status == 429 and "hours that this run has for evaluations are used up" in told["error"]["message"]


@pytest.fixture
def task(tmp_path: Path) -> Path:
    model = catalog.find_base_model("ptb-tiny")
    assert model is not None
    job = Workspace(root=tmp_path / "job")
    build(job, model=model, benchmark=catalog.benchmark("smoke-math"), prompt="p", sealed=True)
    (job.task / "final_model").mkdir()
    return job.task


def start(task: Path, env: dict[str, str], *arguments: str) -> subprocess.Popen[str]:
    # nothing of this environment's packages: the program stands for itself
    return subprocess.Popen(
        [sys.executable, "-I", "-S", "evaluate.py", *arguments],
        cwd=task,
        env={"PATH": os.defpath, **env},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def wait_for(condition: Any, seconds: float = 60) -> Any:
    end = time.monotonic() + seconds
    while not (found := condition()):
        assert time.monotonic() < end, "did not happen in time"
        time.sleep(0.05)
    return found


def test_evaluate_waits_through_the_death_of_the_gateway(task: Path, tmp_path: Path) -> None:
    with door(tmp_path / "g") as found:
        process = start(task, found.env, "--limit", "30", "--json-output-file", "scores.json")
        assert process.stderr is not None and "call-0001: 40 of 200 items, queued" in process.stderr.readline()
        assert found.gateway.pid
        os.kill(found.gateway.pid, signal.SIGKILL)
        wait_for(lambda: found.gateway.restarts)
        # the agent's tool call was cut short: the evaluation goes on, and is asked for by its name
        process.send_signal(signal.SIGINT)
        _, said = process.communicate(timeout=60)
        assert process.returncode == 130 and "to go on: python evaluate.py --job call-0001" in said, said
        second = start(task, found.env, "--model-path", "final_model")
        assert second.stderr is not None
        assert "is under way, and there is one at a time. (to end it: python evaluate.py --cancel call-0001)" in (
            second.stderr.readline()
        )
        again = start(task, found.env, "--job", "call-0001", "--json-output-file", "scores.json")
        time.sleep(0.5)
        found.end()
        printed, said = again.communicate(timeout=60)
        assert printed.splitlines() == ["strict: 0.2500 +- 0.0300 on 200 items", "paper: 0.5000 +- 0.0400 on 200 items"]
        wait_for(found.spool.open_job)
        found.end({"state": "failed", "kind": "crash", "message": "it failed within the harness.", "seconds": 1.0})
        _, said = second.communicate(timeout=60)
        assert second.returncode == 3 and "no score (crash): it failed within the harness." in said
    scores = json.loads((task / "scores.json").read_text())
    assert scores["strict"]["accuracy"] == 0.25 and scores["benchmark"] == "smoke-math" and "items" not in scores


def test_evaluate_without_the_gateway_is_nobodys_score(task: Path, tmp_path: Path) -> None:
    with door(tmp_path / "g") as found:
        env = {**found.env, "PTB_SEALED_PATIENCE_S": "1"}
    process = start(task, env)
    _, said = process.communicate(timeout=60)
    assert process.returncode == 3 and "the harness does not answer" in said and "Traceback" not in said
    process = start(task, {})
    _, said = process.communicate(timeout=60)
    assert process.returncode == 2 and "PTB_SEALED_URL" in said


def test_scores_by_item_where_the_run_tells_them(task: Path, tmp_path: Path) -> None:
    for feedback, status in (("items", 0), ("score", 2)):
        with door(tmp_path / feedback, feedback=feedback) as found:
            ender = threading.Thread(target=lambda f=found: (wait_for(f.spool.open_job, 20), f.end()), daemon=True)
            if status == 0:
                ender.start()
            process = start(task, found.env, "--outputs-file", f"{feedback}.jsonl")
            _, said = process.communicate(timeout=60)
            assert process.returncode == status, said
    assert [json.loads(line) for line in (task / "items.jsonl").read_text().splitlines()] == DONE["items"]
    assert "no scores by item" in said and not (task / "score.jsonl").exists()


def test_nothing_but_the_protocol_is_laid_out(task: Path) -> None:
    text = (task / "evaluate.py").read_text()
    # the agent's Python lacks what holds test items: the program needs none of it
    assert not re.search(r"^(?:from|import) (?!argparse|http|json|os|sys|time|urllib|uuid)", text, re.MULTILINE)
    assert len((task / "smoke-math-train.jsonl").read_text().splitlines()) == 5000
    shutil.rmtree(task)

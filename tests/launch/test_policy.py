"""What follows from each kind of failure: the decision in the history, the wait, who is asked next, when the sweep stops."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from posttrainbench.errors import ConfigurationError, InfrastructureError, PTBError
from posttrainbench.launch import cell as cells
from posttrainbench.launch import driver
from posttrainbench.launch.cell import Outcome, Place, run_cell
from posttrainbench.launch.driver import submit_missing
from posttrainbench.launch.failures import POLICY, Failure
from posttrainbench.launch.launcher import Job
from posttrainbench.launch.node import preflight
from posttrainbench.launch.store import SweepDirectory
from posttrainbench.launch.sweepfile import load
from tests.launch.support import Lab, events, results, text_of
from tests.support.model_server import Fault, ModelServer, Script


class Clock:
    """Time that passes only when somebody waits."""

    def __init__(self) -> None:
        self.now, self.waited = 0.0, 0.0

    def monotonic(self) -> float:
        return self.now

    def sleep(self, seconds: float) -> None:
        self.now += seconds
        self.waited += seconds


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    """The waits of cells take no time."""
    found = Clock()
    monkeypatch.setattr(cells, "time", found)
    return found


def sweep_of(lab: Lab, cells: int = 1, *, top: str = "") -> SweepDirectory:
    lab.write(text_of({"brief.py": cells}, top=top))
    return SweepDirectory.create(load(lab.place / "s.toml"))


def failing(error: PTBError) -> Place:
    """A node whose check finds this."""

    def look() -> list[dict[str, Any]]:
        raise error

    return Place(preflight=look, engine={"node": "n1"})


def error_of(kind: Failure) -> PTBError:
    return ConfigurationError("no") if kind is Failure.CONFIGURATION else InfrastructureError("no", kind=kind)


# kind -> decisions with their waits in s, what the job is told after each call, waits that it made itself
TABLE: dict[Failure, tuple[list[tuple[str, float]], list[Outcome]]] = {
    Failure.CONFIGURATION: ([("give up", 0)], [Outcome.FAILED]),
    Failure.AUTH: ([("stop", 0)], [Outcome.STOPPED]),
    Failure.QUOTA: ([("stop", 0)], [Outcome.STOPPED]),
    Failure.DISK_FULL: ([("stop", 0)], [Outcome.STOPPED]),
    Failure.NETWORK: ([("retry", 300), ("retry", 600), ("retry", 1200), ("give up", 0)], [Outcome.FAILED]),
    Failure.SANDBOX: ([("elsewhere", 0), ("give up", 0)], [Outcome.ELSEWHERE, Outcome.FAILED]),
    Failure.LOST: (
        [("elsewhere", 0), ("elsewhere", 0), ("elsewhere", 0), ("give up", 0)],
        [Outcome.ELSEWHERE, Outcome.ELSEWHERE, Outcome.ELSEWHERE, Outcome.FAILED],
    ),
    Failure.TIME_LIMIT: ([("retry", 0), ("give up", 0)], [Outcome.AGAIN, Outcome.FAILED]),
    Failure.OUT_OF_MEMORY: ([("elsewhere", 0), ("give up", 0)], [Outcome.ELSEWHERE, Outcome.FAILED]),
    Failure.OTHER: ([("retry", 10), ("give up", 0)], [Outcome.FAILED]),
}


def test_every_kind_is_in_the_table() -> None:
    """Of the policy, of these tests, and of the page that users read."""
    assert set(TABLE) == set(Failure) == set(POLICY)
    page = (Path(__file__).parents[2] / "docs" / "sweeps.md").read_text()
    table = page.partition("## Failures")[2].partition("##")[0]
    rows = [line.split("|")[1:3] for line in table.splitlines() if line.startswith("| `")]
    told = {kind: int(tries) for kinds, tries in rows for kind in kinds.split("`")[1::2]}
    assert told == {str(kind): policy.tries for kind, policy in POLICY.items()}


@pytest.mark.parametrize("kind", TABLE)
def test_decisions(lab: Lab, clock: Clock, kind: Failure) -> None:
    """Each attempt's failure, decision and wait are in the cell's history; the last decision is kept to."""
    decisions, outcomes = TABLE[kind]
    sweep = sweep_of(lab, 2)
    key, other = sweep.cells
    place = failing(error_of(kind))
    assert [run_cell(sweep, key, place) for _ in outcomes] == outcomes
    told = [event for event in sweep.cell(key).events() if event["event"] == "failed"]
    assert [(event["decision"], event["wait_s"]) for event in told] == decisions
    assert {event["failure"] for event in told} == {str(kind)}
    assert clock.waited == pytest.approx(sum(wait for _, wait in decisions if wait), abs=1)
    stops = decisions[-1][0] == "stop"
    failed = sweep.cell(key).failed
    if stops:
        assert failed is None
        assert sweep.stopped is not None
        assert (sweep.stopped["kind"], sweep.stopped["cell"]) == (str(kind), key)
        # no other cell is begun
        assert run_cell(sweep, other, Place()) is Outcome.STOPPED
        assert sweep.cell(other).events() == []
    else:
        assert sweep.stopped is None
        assert failed is not None
        assert (failed["failure"], failed["attempts"]) == (str(kind), len(decisions))
        assert run_cell(sweep, key, Place()) is Outcome.FAILED
        assert run_cell(sweep, other, Place()) is Outcome.DONE


def test_nodes_that_were_left_are_known(lab: Lab) -> None:
    """So that the next job goes elsewhere."""
    sweep = sweep_of(lab)
    [key] = sweep.cells
    assert run_cell(sweep, key, failing(error_of(Failure.SANDBOX))) is Outcome.ELSEWHERE
    assert sweep.cell(key).left_nodes() == ["n1"]
    assert run_cell(sweep, key, Place(engine={"node": "n2"})) is Outcome.DONE


def test_the_sweeps_own_numbers_of_tries(lab: Lab, clock: Clock) -> None:
    """And waits that stop doubling at an hour."""
    sweep = sweep_of(lab, top="retry = {network = 8, lost = 1}")
    [key] = sweep.cells
    assert run_cell(sweep, key, failing(error_of(Failure.NETWORK))) is Outcome.FAILED
    told = [event["wait_s"] for event in sweep.cell(key).events() if event["event"] == "failed"]
    assert told == [300, 600, 1200, 2400, 3600, 3600, 3600, 0]
    assert driver.retry(sweep, [], states=["failed"]) == [key]
    assert run_cell(sweep, key, failing(error_of(Failure.LOST))) is Outcome.FAILED


def test_a_wait_ends_when_somebody_cancels(lab: Lab, clock: Clock) -> None:
    """Five minutes are too long for an engine that wants its node back."""
    sweep = sweep_of(lab)
    [key] = sweep.cells
    place = failing(error_of(Failure.NETWORK))
    place = Place(preflight=place.preflight, cancelled=lambda: clock.now > 20)
    assert run_cell(sweep, key, place) is Outcome.INTERRUPTED
    assert clock.waited < 30


def test_a_full_disk_that_the_nodes_check_finds(lab: Lab, monkeypatch: pytest.MonkeyPatch) -> None:
    """The sweep stops, and `start` goes on once there is room."""
    sweep = sweep_of(lab)
    [key] = sweep.cells
    place = Place(preflight=lambda: preflight(sweep, key, gpus=(), node="n1"))
    real = shutil.disk_usage
    monkeypatch.setattr(shutil, "disk_usage", lambda path: SimpleNamespace(free=4096))
    assert run_cell(sweep, key, place) is Outcome.STOPPED
    assert sweep.stopped is not None
    assert sweep.stopped["why"].startswith("the disk is full: disk: 0.0 GiB free in ")
    monkeypatch.setattr(shutil, "disk_usage", real)
    said = lab.sweep("resume", sweep.root, "--wait")
    assert said.startswith("1 submitted")
    assert results(sweep.root) == {key: "no_submission"}


CLI = """
name = "caller"
command = ["python3", "-c", '''
import json, os, urllib.error, urllib.request
body = json.dumps({"model": "{model}", "max_tokens": 9, "messages": [{"role": "user", "content": "hi"}]}).encode()
headers = {"x-api-key": os.environ["TOKEN"], "anthropic-version": "2023-06-01", "content-type": "application/json"}
opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
try:
    print(opener.open(urllib.request.Request("{base_url}/v1/messages", body, headers)).read())
except urllib.error.HTTPError as error:
    raise SystemExit(str(error) + str(error.read()))
''']
wire = "anthropic"
env = {TOKEN = "{token}"}
"""
DYING = [
    (Fault(status=401, message="invalid x-api-key"), "auth", "stop"),
    (Fault(status=402, message="payment required"), "quota", "stop"),
    (Fault(status=503, message="overloaded"), "network", "give up"),
]


@pytest.mark.parametrize(("fault", "kind", "decision"), DYING)
def test_a_service_that_dies_while_the_agent_works(lab: Lab, fault: Fault, kind: str, decision: str) -> None:
    """The check before the run was answered; what came later is told from the end of the agent. It is never a score."""
    (lab.place / "caller.toml").write_text(CLI)
    repeats = 2 if decision == "stop" else 1
    top = f'agents = [{{agent = "caller.toml", model = "m", repeats = {repeats}}}]\nretry = {{network = 1}}'
    text = text_of({}, top=top, hours=0.004)
    root = lab.write(text.replace("slots = 2", "slots = 1"))
    with ModelServer(Script.of("hello"), faults=lambda number: fault if number > 1 else None) as server:
        lab.env |= {"ANTHROPIC_API_KEY": "sk-ant-api03-policy-0123456789", "PTB_UPSTREAM_ANTHROPIC": server.url}
        lab.env |= {"HTTPS_PROXY": "", "https_proxy": "", "PTB_GATEWAY_LIMITS": "patience_s=1"}
        lab.sweep("start", "s.toml", "--wait", code=1)
        status = lab.status(root)
        first = next(iter(status))
        told = [event for event in events(root, first) if event["event"] == "failed"]
        assert [(event["failure"], event["decision"]) for event in told] == [(kind, decision)], told
        stopped = root / ".sweep" / "stopped.json"
        if decision == "stop":
            assert json.loads(stopped.read_text())["kind"] == kind
            assert results(root) == {}
            assert {entry["state"] for entry in status.values()} <= {"open", "queued"}  # a slot may be about to end
        else:
            assert not stopped.exists()
            assert set(results(root).values()) == {"infra_error"}
        server.faults = {}
        lab.sweep("resume", root)
        if decision == "give up":
            assert "1 opened again" in lab.sweep("retry", root)
        lab.sweep("resume", root, "--wait")
    assert list(results(root).values()) == ["no_submission"] * repeats


class Engine:
    """An engine that says how its jobs ended, and takes new ones."""

    def __init__(self, jobs: dict[str, Job]) -> None:
        self.known, self.submitted = jobs, list[str]()

    def check(self) -> list[str]:
        return []

    def jobs(self) -> dict[str, Job]:
        return self.known

    def submit(self, keys: list[str], *, hold: int | None = None) -> None:
        self.submitted += keys

    def cancel(self, keys: list[str]) -> None:
        raise NotImplementedError


ENDS = [
    (Failure.TIME_LIMIT, ["started", "interrupted"], "failed"),
    (Failure.OUT_OF_MEMORY, ["started", "interrupted"], "failed"),
    (Failure.OUT_OF_MEMORY, ["started"], "failed"),
    (Failure.LOST, ["started"], "failed"),
    (Failure.LOST, [], "failed"),
    (Failure.LOST, ["started", "interrupted"], "interrupted"),
    (None, ["started", "interrupted"], "interrupted"),
    (None, ["started"], "started"),
]


@pytest.mark.parametrize(("failure", "history", "last"), ENDS)
def test_the_engines_word_about_a_job(
    lab: Lab, monkeypatch: pytest.MonkeyPatch, failure: Failure | None, history: list[str], last: str
) -> None:
    """It counts where the job could not say it: killed, never begun, or told to end for a reason it did not know.
    An eviction or a person's removal is no failure: the cell is submitted again as if nothing had been."""
    sweep = sweep_of(lab)
    [key] = sweep.cells
    for event in history:
        sweep.cell(key).note(event, **({"job": "7"} if event == "started" else {}), node="n1")
    job = Job(state="ended", id="7", node="n1", detail="gone", failure=failure)
    engine = Engine({key: job})
    monkeypatch.setattr(driver, "get_launcher", lambda sweep: engine)
    assert submit_missing(sweep).submitted == 1
    told = sweep.cell(key).events()
    assert (told[-1]["event"] if told else "") == last
    assert engine.submitted == [key]
    if last == "failed":
        assert (told[-1]["failure"], told[-1]["judged"]) == (str(failure), "7")
        # looked at again, the same job is not counted twice
        submit_missing(sweep)
        assert len(sweep.cell(key).events()) == len(told)
    assert submit_missing(sweep).over == 0

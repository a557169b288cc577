"""Whole runs on a real HTCondor pool of three nodes on this machine (`scripts/condor_lab.sh`), as a plain user.

Opt-in, because the first time it fetches 590 MB: `PTB_TEST_HTCONDOR=1`. `PTB_TEST_HTCONDOR_RUNS` says how many runs the
chaos has (60).
"""

from __future__ import annotations

import json
import os
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from tests.launch.conftest import SCRIPTS
from tests.launch.support import OWN, SHARED, Lab, check_once, events, kill, results, text_of, until

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(
        not os.environ.get("PTB_TEST_HTCONDOR"), reason="set PTB_TEST_HTCONDOR=1; see scripts/condor_lab.sh"
    ),
]

RUNS = int(os.environ.get("PTB_TEST_HTCONDOR_RUNS", "60"))
SCRIPT = str(SCRIPTS / "condor_lab.sh")
ROOT = Path(os.environ.get("PTB_CONDOR_ROOT", "/var/tmp/ptb-condor"))
CONDOR = 'kind = "htcondor"\nmargin_h = 0.5\ncpus = 4\nmemory_gib = 1.5\ndisk_gib = 0.1'
LEASE = 'options = ["job_lease_duration = 20"]'
TESTER = 1002


@dataclass
class Pool(Lab):
    """`ptb sweep` and HTCondor's programs inside the pool's root, as its user."""

    def popen(self, *arguments: str | Path) -> subprocess.Popen[str]:
        """The process is `ptb` itself: the script and what it calls replace themselves."""
        self.own()
        clean = {name: value for name, value in os.environ.items() if not name.startswith("PTB_")}
        return subprocess.Popen(
            [SCRIPT, "run", sys.executable, "-m", "posttrainbench", "sweep", *map(str, arguments)],
            cwd=self.place,
            env={**clean, "HF_HUB_OFFLINE": "1", **self.env},
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )

    def status(self, root: Path) -> dict[str, dict[str, Any]]:
        """By the program, because HTCondor's programs are inside only."""
        return {entry["key"]: entry for entry in json.loads(self.sweep("status", root, "--json"))}

    def own(self) -> None:
        """What the test has written is the user's."""
        for path in (self.place, *self.place.glob("*")):
            os.chown(path, TESTER, TESTER)

    def condor(self, *command: str) -> str:
        """A program of HTCondor's; its failures are those of a pool in chaos."""
        return subprocess.run([SCRIPT, "run", *command], capture_output=True, text=True, check=False).stdout

    def daemons(self) -> dict[str, int]:
        """Living daemons of the pool: `n1` ... for its nodes, `schedd`."""
        master = int((ROOT / "lab" / "master.pid").read_text())
        found = {}
        for pid in _children(master):
            words = Path(f"/proc/{pid}/cmdline").read_bytes().decode().split("\0")
            name = Path(words[0]).name.removeprefix("condor_")
            found[words[words.index("-local-name") + 1] if "-local-name" in words else name] = pid
        return found


def _children(pid: int) -> list[int]:
    try:
        tasks = list(Path(f"/proc/{pid}/task").glob("*/children"))
        return [int(child) for task in tasks for child in task.read_text().split()]
    except OSError:
        return []


def kill_node(pool: Pool, node: str) -> None:
    """SIGKILL a startd with everything below it: starters, harness, sandboxes, agents. Its master starts a new one."""
    pids, left = [], [pool.daemons()[node]]
    while left:
        pid = left.pop()
        try:
            os.kill(pid, signal.SIGSTOP)  # nothing is born while the tree is read
        except ProcessLookupError:
            continue
        pids.append(pid)
        left += _children(pid)
    for pid in pids:
        try:
            os.kill(pid, signal.SIGKILL)
        except ProcessLookupError:
            continue


@pytest.fixture
def pool() -> Iterator[Pool]:
    """Three nodes, up for one test."""
    if os.geteuid() != 0:
        pytest.skip("the pool's root is made as root")
    if not (ROOT / "usr" / "bin" / "bwrap").exists() and shutil.which("debootstrap") is None:
        pytest.skip("debootstrap is not installed; see scripts/condor_lab.sh")
    place = Path(tempfile.mkdtemp(prefix="ptb-condor-sweeps-", dir="/var/tmp"))
    place.chmod(0o755)
    for file in (*OWN.glob("*.py"), SHARED / "copy_base.py", SHARED / "hog.py"):
        shutil.copyfile(file, place / file.name)
    try:
        subprocess.run([SCRIPT, "up"], check=True, timeout=900, capture_output=True)
        found = Pool(place)
        yield found
        for root in (place / "results").glob("*"):
            if any((root / ".sweep").glob("slots/*.json")):
                found.sweep("cancel", root, code=None)
    finally:
        subprocess.run([SCRIPT, "down"], check=False)
        shutil.rmtree(place, ignore_errors=True)


def cell(agent: str, repeat: int = 1) -> str:
    """Key of an agent's cell."""
    return f"scripted-{agent}--ptb-tiny-base--smoke-math--r{repeat}"


def started(root: Path, agent: str) -> list[dict[str, Any]]:
    """How often an agent's first cell began."""
    return [event for event in events(root, cell(agent)) if event["event"] == "started"]


def scored(root: Path) -> dict[str, tuple[Any, ...]]:
    """What counts of each result."""
    found = {}
    for path in root.glob("[!.]*/result.json"):
        result = json.loads(path.read_text())
        found[path.parent.name] = tuple(result.get(name) for name in ("status", "score", "own_score", "verdict"))
    return found


def plan(agents: Mapping[str, int], *, launcher: str, name: str = "s") -> str:
    """A sweep file in which each agent's cells are a submission of their own, to die between them."""
    top = "retry = {time_limit = 1}"
    text = text_of(agents, name=name, launcher=launcher, top=top, hours=0.2)
    for number, agent in enumerate(agents):
        # without control groups a limit is for all that is mapped: the evaluation of a tiny model needs 0.8 GiB
        more = {"hog.py": ", memory_gib = 0.5", "swell.py": ", memory_gib = 6"}.get(agent, "")
        text = text.replace(f'"scripted:{agent}"', f'"scripted:{agent}"\nrun = {{hours = {0.2 + number / 1000}{more}}}')
    return text


def test_runs_survive_everything(pool: Pool) -> None:
    """Killed submitters, a lost node, a killed schedd, a hold, an eviction, the pool's limits of time and memory."""
    usual = {"nap.py": 3, "hog.py": 1, "copy_base.py": 2, "brief.py": RUNS - 8}
    root = pool.write(plan({"forever.py": 1, "swell.py": 1, **usual}, launcher=f"{CONDOR}\n{LEASE}"))
    ours = f'PtbSweep == "{root}"'

    def submitted() -> int:
        return len(pool.condor("condor_q", "-constraint", ours, "-af", "ClusterId").split())

    submitter = pool.popen("start", "s.toml")
    until(lambda: len(list((root / ".sweep" / "cells").glob("*"))) >= 3, every=0.002)
    kill(submitter)
    time.sleep(1)  # a condor_submit that outlives it holds the sweep's lock
    first = submitted()
    assert first < RUNS
    submitter = pool.popen("start", "s.toml", "--wait")
    # a person holds a job, makes its time short, and releases it
    limited = until(lambda: started(root, "forever"))[0]["job"]
    assert pool.condor("condor_hold", limited)
    until(lambda: events(root, cell("forever"))[-1]["event"] != "started")
    assert events(root, cell("forever"))[-1]["event"] == "interrupted", str(events(root, cell("forever"))[-1])
    held = until(lambda: pool.status(root)[cell("forever")], every=1)
    assert (held["state"], held["detail"][:9]) == ("queued", "held: via")
    pool.condor("condor_qedit", limited, "AllowedJobDuration", "10")
    pool.condor("condor_release", limited)
    # an eviction
    napping = until(lambda: started(root, "nap"), seconds=200)[0]["job"]
    pool.condor("condor_vacate_job", napping)
    until(lambda: len(results(root)) >= 5, seconds=240)
    kill_node(pool, "n2")
    kill(submitter)
    until(lambda: len(results(root)) >= 10, seconds=240)
    os.kill(pool.daemons()["schedd"], signal.SIGKILL)
    said = _again(pool)
    status = pool.status(root)
    assert len(status) == RUNS, said
    bad = {key: entry["detail"].partition(":")[0] for key, entry in status.items() if entry["state"] == "failed"}
    assert bad == {cell("forever"): "time_limit", cell("swell"): "out_of_memory"}
    odd = {key: [event for event in events(root, key) if event["event"] == "failed"] for key in _not_usual(status)}
    assert odd == {}, odd
    swollen = started(root, "swell")
    assert len({_node(event["node"]) for event in swollen}) == len(swollen) == 2
    keys = [key for key in status if key not in bad]
    seen = check_once(root, keys)
    assert seen["superseded"] == 0
    records = {key: json.loads((root / key / "run.json").read_text()) for key in keys}
    assert {record["engine"]["kind"] for record in records.values()} == {"htcondor"}
    assert {_node(record["engine"]["node"])[:2] for record in records.values()} == {"n1", "n2", "n3"}
    booked = [record["engine"].get("booked", {}) for record in records.values()]
    assert sum(entry.get("state") == "completed" and entry["exit"] == 0 for entry in booked) >= 0.9 * len(keys)
    assert [event["event"] for event in events(root, cell("nap"))][:2] == ["started", "interrupted"]
    assert pool.sweep("start", "s.toml").startswith(f"0 submitted, 0 already active, {RUNS} over")
    # the same plan on the slots of this machine
    local = pool.write(plan(usual, launcher='kind = "local"\nslots = 2', name="local"), name="local")
    pool.sweep("start", "s.toml", "--wait", timeout=500)
    assert scored(local) == scored(root)
    print(f"{RUNS} runs, {first} known when the submitter died first; on the pool {dict(seen)}; failed {bad}")


def _again(pool: Pool) -> str:
    """`start --wait`, as soon as there is a schedd again: without one it says so and starts nothing."""
    end = time.monotonic() + 120
    while True:
        process = pool.popen("start", "s.toml", "--wait")
        said, _ = process.communicate(timeout=590)
        assert "Traceback" not in said, said
        if process.returncode != 2:
            assert process.returncode == 1, said
            return said
        assert time.monotonic() < end, said
        time.sleep(2)


def _not_usual(status: Mapping[str, Mapping[str, Any]]) -> list[str]:
    return [key for key, entry in status.items() if entry["state"] not in ("no_submission", "scored", "failed")]


def _node(slot: str) -> str:
    """`n1@host` of `slot1_2@n1@host`."""
    return slot.partition("@")[2]


def test_cancel_and_resume(pool: Pool) -> None:
    """Waiting jobs vanish, running ones end their agents in an orderly way; `resume` submits both again."""
    root = pool.write(text_of({"forever.py": 4}, launcher=CONDOR.replace("cpus = 4", "cpus = 8"), hours=0.5))

    def at_work() -> bool:
        return sum(entry["stage"] == "solve" for entry in pool.status(root).values()) == 3

    assert pool.sweep("start", "s.toml").startswith("4 submitted")
    until(at_work, seconds=120, every=1)
    states = [entry["state"] for entry in pool.status(root).values()]
    assert (states.count("running"), states.count("queued")) == (3, 1)
    assert pool.sweep("start", "s.toml").startswith("0 submitted, 4 already active")
    assert "4 cancelled" in pool.sweep("cancel", root)
    until(lambda: {entry["state"] for entry in pool.status(root).values()} == {"open"}, seconds=120, every=1)
    told = [event["event"] for key in pool.status(root) for event in events(root, key)]
    assert sorted(told) == ["interrupted"] * 3 + ["started"] * 3
    assert pool.sweep("resume", root).startswith("4 submitted")
    until(at_work, seconds=120, every=1)
    pool.sweep("cancel", root)
    until(lambda: {entry["state"] for entry in pool.status(root).values()} == {"open"}, seconds=120, every=1)


def test_a_job_that_cannot_begin_is_given_up(pool: Pool) -> None:
    """A `setup` that fails everywhere, and a program that is not there: a reason that names the job, no endless loop."""
    root = pool.write(text_of({"brief.py": 1}, launcher=f'{CONDOR}\nsetup = "exit 9"', top="retry = {lost = 2}"))
    pool.sweep("start", "s.toml", "--wait", code=1)
    [(key, entry)] = pool.status(root).items()
    assert entry["state"] == "failed"
    assert re.match(r"lost: job \d+\.0 ended before its run began with completed on slot\d+_\d+@n\d", entry["detail"])
    assert len(events(root, key)) == 2
    missing = f'{CONDOR}\noptions = ["executable = /nonexistent/python"]'
    root = pool.write(text_of({"brief.py": 1}, name="m", launcher=missing, top="retry = {lost = 1}"), name="m")
    pool.sweep("start", "s.toml", "--wait", code=1)
    assert "removed: " in pool.status(root)[key]["detail"]
    assert "No such file" in pool.status(root)[key]["detail"]


def test_a_node_that_does_not_do_is_left(pool: Pool) -> None:
    """The nodes offer a GPU that none of them has: the same job tries another node, and that is the last."""
    root = pool.write(text_of({"brief.py": 1}, launcher=CONDOR).replace("gpus = 0", "gpus = 1"))
    pool.sweep("start", "s.toml", "--wait", code=1)
    [(key, entry)] = pool.status(root).items()
    assert entry["detail"].startswith("sandbox: this job needs 1 GPUs and has 0")
    told = events(root, key)
    assert [event.get("decision") for event in told] == [None, "elsewhere", None, "give up"]
    assert _node(told[0]["node"]) != _node(told[2]["node"])
    assert told[0]["job"] == told[2]["job"]


def test_a_schedd_that_does_not_answer_is_no_empty_pool(pool: Pool) -> None:
    """Nothing is submitted, and the line says what does not answer."""
    os.kill(pool.daemons()["schedd"], signal.SIGKILL)
    pool.write(text_of({"brief.py": 1}, launcher=CONDOR))
    said = pool.sweep("start", "s.toml", code=2)
    assert said.startswith("ptb: condor_q failed")
    assert len(said.splitlines()) == 1

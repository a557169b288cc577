"""Whole sweeps on a real Slurm of three nodes: everything that can be killed is; results are those of the local launcher."""

from __future__ import annotations

import json
import shutil
import time
from typing import Any

import pytest

from posttrainbench.launch.launcher import get_launcher
from posttrainbench.launch.store import SweepDirectory
from tests.launch.operators import job_of, key_of, operator, run
from tests.launch.support import SHARED, SLURM, Lab, check_once, events, kill, outcome, results, text_of, until

AGENTS = {
    "forever.py": 1, "doze.py": 1, "nap.py": 2, "hog.py": 1, "gorge.py": 1, "starved.py": 1, "copy_base.py": 1, "brief.py": 52,
}  # fmt: skip


def chaotic(lab: Lab) -> str:
    """A sweep file with an array for each agent, so that there is a submission in many steps to die between."""
    shutil.copyfile(SHARED / "hog.py", lab.place / "gorge.py")
    shutil.copyfile(lab.place / "brief.py", lab.place / "starved.py")
    # long enough to be met at work however loaded this machine is
    (lab.place / "doze.py").write_text((lab.place / "nap.py").read_text().replace("range(5)", "range(25)"))
    launcher = f"{SLURM}\nmemory_gib = 1.5"
    text = text_of(AGENTS, launcher=launcher, run="memory_gib = 0.5", top="retry = {time_limit = 1}", hours=0.2)
    for number, agent in enumerate(AGENTS):
        # more than its whole job has, so that Slurm's limit comes first
        own = ", memory_gib = 6" if agent == "gorge.py" else ""
        options = f"run = {{hours = {0.2 + number / 1000}{own}}}"
        text = text.replace(f'"scripted:{agent}"', f'"scripted:{agent}"\n{options}')
    return text


@pytest.mark.slow
@pytest.mark.timeout(1500)
def test_sixty_runs_survive_everything(lab: Lab, slurm: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """Killed submitters, a lost node, a killed controller, a requeue, a time limit, too little memory: each cell ends once."""
    monkeypatch.setenv("SLURM_CONF", lab.env["SLURM_CONF"])
    root = lab.write(chaotic(lab))
    forever, gorge, starved = (key_of(agent) for agent in ("forever", "gorge", "starved"))

    # a slow sbatch: the submitter dies while one is under way, which goes on
    slow = lab.place / "bin" / "sbatch"
    slow.parent.mkdir()
    slow.write_text(f'#!/bin/sh\nsleep 0.3\nexec {shutil.which("sbatch")} "$@"\n')
    slow.chmod(0o755)
    path = {"PATH": f"{slow.parent}:/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"}
    lab.env |= path
    submitter = lab.popen("start", "s.toml")
    until(lambda: len(list((root / ".sweep" / "slurm").glob("*.json"))) >= 3)
    kill(submitter)
    assert len(list((root / ".sweep" / "slurm").glob("*.json"))) < len(AGENTS)
    del lab.env["PATH"]
    with operator(lab):
        until(lambda: lab.sweep("start", "s.toml", code=None).startswith("5"), every=0.5)  # once that sbatch is done
        if slurm.limits_memory:
            job = get_launcher(SweepDirectory.open(root)).jobs()[starved]
            assert job.state == "queued"
            run(lab, "scontrol", "update", f"jobid={job.id}", "MinMemoryNode=30")
        submitter = lab.popen("start", "s.toml", "--wait")
        limited = until(lambda: job_of(root, "forever"))
        run(lab, "scontrol", "update", f"jobid={limited}", "timelimit=1")
        dozing = until(lambda: job_of(root, "doze"))
        run(lab, "scontrol", "requeue", dozing)
        until(lambda: len(results(root)) >= 5, seconds=240)
        lost = run(lab, "squeue", "-h", "-j", limited, "-o", "%N").strip()
        node = next(name for name in slurm.nodes if name != lost)
        slurm.kill_node(node)
        kill(submitter)
        until(lambda: len(results(root)) >= 10, seconds=240)
        slurm.kill_controller()
        time.sleep(1)
        slurm.start_controller()
        slurm.start_node(node)
        said = lab.sweep("start", "s.toml", "--wait", code=1, timeout=500)
    status = lab.status(root)
    assert len(status) == 60, said
    assert status[forever]["state"] == "failed"
    assert status[forever]["detail"].startswith("time_limit:")
    assert not (root / forever).exists()
    keys = [key for key in status if key != forever]
    seen = check_once(root, keys)
    assert seen["superseded"] == 0
    records = {key: json.loads((root / key / "run.json").read_text()) for key in keys}
    assert {record["engine"]["kind"] for record in records.values()} == {"slurm"}
    assert {record["engine"]["node"] for record in records.values()} == set(slurm.nodes)
    booked = [record["engine"].get("booked", {}) for record in records.values()]
    assert sum(entry.get("state") == "COMPLETED" and entry["elapsed_s"] >= 0 for entry in booked) >= 54
    # Slurm kills what it requeues, and says nothing
    doze = [event["event"] for event in events(root, key_of("doze"))]
    assert doze.count("started") >= 2
    if slurm.limits_memory:
        # the harness was killed: again, on another node; only the agent was, at the job's limit: its end is a result
        [told] = [event for event in events(root, starved) if event.get("failure") == "out_of_memory"]
        assert told["decision"] == "elsewhere"
        assert told["node"] != records[starved]["engine"]["node"]
        assert 1.2 < records[gorge]["stages"]["solve"]["peak_memory_bytes"] / 2**30 < 1.6
        assert "killed by SIGKILL" in (root / gorge / "trace" / "raw.jsonl").read_text()
    assert lab.sweep("start", "s.toml").startswith("0 submitted, 0 already active, 60 over")

    # the same on this machine's slots, once each: no chaos shows in any result
    once = {agent: 1 for agent in AGENTS if agent not in ("forever.py", "gorge.py", "doze.py")}
    local = lab.write(text_of(once, name="l", run="memory_gib = 0.5", hours=0.2), name="l")
    lab.sweep("start", "s.toml", "--wait")
    wanted = {key: outcome(local, key) for key in lab.status(local)}
    assert {found["status"] for found in wanted.values()} == {"no_submission", "scored"}
    for key in keys:
        if key not in (gorge, key_of("doze")):
            first = wanted[f"{key.rpartition('--')[0]}--r1"]
            assert {**outcome(root, key), "hours": None} == {**first, "hours": None}, key
    assert {results(root)[key] for key in (gorge, key_of("doze"))} == {"no_submission"}


@pytest.mark.slow
@pytest.mark.timeout(1500)
def test_results_equal_those_of_the_local_launcher(lab: Lab, slurm: Any) -> None:
    """One plan run by local slots, by Slurm, and by Slurm with evaluation jobs of their own: item by item the same."""
    shutil.copyfile(SHARED / "half_model.py", lab.place / "half_model.py")
    agents = '"scripted:copy_base.py", "scripted:half_model.py", "scripted:submit-instruct", "scripted:idle", "scripted:broken"'
    launchers = {
        "local": 'kind = "local"\nslots = 2',
        "slurm": SLURM,
        "split": f'{SLURM}\nsplit = true\n[launcher.evaluation]\npartition = "cheap"\nhours = 0.5',
    }
    found: dict[str, dict[str, dict[str, Any]]] = {}
    for name, launcher in launchers.items():
        text = text_of({}, name=name, launcher=launcher, top=f"agents = [{agents}]")
        root = lab.write(text, name=name)
        lab.sweep("start", "s.toml", "--wait")
        found[name] = {key: outcome(root, key) for key in lab.status(root)}
        check_once(root, list(found[name]))
    assert sorted(entry["status"] for entry in found["local"].values()) == [
        "flagged", "no_submission", "scored", "unloadable", "unloadable",
    ]  # fmt: skip
    assert found["slurm"] == found["local"]
    assert found["split"] == found["local"]
    # both evaluated ones have 200 items, whose answers differ between the two models
    items = [entry["items"] for entry in found["local"].values() if "items" in entry]
    assert [len(entry) for entry in items] == [200, 200]
    assert items[0] != items[1]

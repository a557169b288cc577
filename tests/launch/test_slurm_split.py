"""Audit and evaluation as jobs of their own (`launcher.split`), on a real Slurm: the agent's GPUs are free as soon as it ends."""

from __future__ import annotations

import json
import shutil
from typing import Any

import pytest

from posttrainbench.launch.launcher import Part, get_launcher
from posttrainbench.launch.store import SweepDirectory
from tests.launch.operators import job_of, key_of, operator, run
from tests.launch.support import SHARED, SLURM, Lab, check_once, events, kill, results, text_of, until

SPLIT = f"{SLURM}\nsplit = true\n[launcher.evaluation]\nhours = 0.5\nmemory_gib = 2"
HALF = key_of("half_model")


def told(lab: Lab, key: str) -> list[str]:
    return [event["event"] for event in events(lab.place / "results" / "s", key)]


@pytest.fixture
def half(lab: Lab) -> Lab:
    """An agent whose submission cannot be loaded: an evaluation that takes two seconds."""
    shutil.copyfile(SHARED / "half_model.py", lab.place / "half_model.py")
    return lab


def test_evaluation_jobs(half: Lab, slurm: Any) -> None:
    """They fail on every node at first: given up with the reason; once mended `retry` evaluates, and no agent works again."""
    lab = half
    text = text_of(
        {"half_model.py": 1, "brief.py": 1}, launcher=f'{SPLIT}\npartition = "cheap"', top="retry = {lost = 2}"
    )
    broken = f'{text}setup = "exit 9"\n'
    root = lab.write(broken)
    assert "audit and evaluation in jobs of their own: 0 GPU, partition cheap, at most 0.5 h" in lab.sweep(
        "plan", "s.toml"
    )
    lab.sweep("start", "s.toml", "--wait", code=1)
    status = lab.status(root)
    assert status[HALF]["state"] == "failed"
    assert "ended before its run began with FAILED" in status[HALF]["detail"]
    # nothing was submitted: there is nothing to evaluate, and that job ends it
    assert status[key_of("brief")]["state"] == "no_submission"
    assert told(lab, HALF) == ["started", "collected", "failed", "failed"]
    lab.write(text)
    lab.sweep("start", "s.toml")
    assert "1 opened again, 1 submitted" in lab.sweep("retry", root, HALF, "--status", "failed")
    lab.sweep("start", "s.toml", "--wait")
    assert results(root) == {HALF: "unloadable", key_of("brief"): "no_submission"}
    check_once(root, list(status))
    assert told(lab, HALF) == ["started", "committed"]
    record = json.loads((root / HALF / "run.json").read_text())
    engine, [before] = record["engine"], record["engines_before"]
    assert (before["part"], engine["part"]) == ("agent", "evaluation")
    assert (before["booked"]["state"], engine["booked"]["state"]) == ("COMPLETED", "COMPLETED")
    assert engine["node"] == slurm.nodes[-1]
    assert before["since"] < record["stages"]["collect"]["ended"] < engine["since"]
    checked = {check["name"] for check in record["evaluation_preflight"]}
    assert "model and data" in checked
    assert "model API" not in checked
    assert lab.sweep("resume", root).startswith("0 submitted, 0 already active, 2 over")


@pytest.mark.slow
@pytest.mark.timeout(1500)
def test_evaluation_jobs_survive_everything(half: Lab, slurm: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """The evaluation array lost, its node lost, the agents' jobs requeued or out of time, cancelled between the two."""
    lab = half
    monkeypatch.setenv("SLURM_CONF", lab.env["SLURM_CONF"])
    agents = {"half_model.py": 12, "nap.py": 1, "forever.py": 1}
    text = text_of(agents, launcher=SPLIT, top="retry = {time_limit = 1}", hours=0.2)
    # one array each
    text = text.replace('"scripted:nap.py"', '"scripted:nap.py"\nrun = {hours = 0.21}')
    text = text.replace('"scripted:forever.py"', '"scripted:forever.py"\nrun = {hours = 0.22}')
    root = lab.write(text)
    sweep = SweepDirectory(root)

    def alive(part: Part) -> dict[str, list[str]]:
        jobs = get_launcher(SweepDirectory.open(root)).jobs()
        found = {key: [one for one in (job, *job.others) if one.state != "ended"] for key, job in jobs.items()}
        return {key: [one.id for one in entries if one.part is part] for key, entries in found.items()}

    # the submitter dies before the last evaluation array: those agents' jobs are to see to it themselves
    submitter = lab.popen("start", "s.toml")
    until(lambda: len(list((root / ".sweep" / "slurm").glob("*.json"))) >= 3)
    kill(submitter)
    with operator(lab):
        until(lambda: lab.sweep("start", "s.toml", code=None).endswith(f"status {root}\n"), every=0.5)
        # an operator removes the evaluation jobs of some cells: the same
        gone = [job for key in list(sweep.cells)[4:8] for job in alive(Part.EVALUATION).get(key, [])]
        run(lab, "scancel", *gone)
        endless = until(lambda: job_of(root, "forever"))
        requeued = until(lambda: job_of(root, "half_model"))
        run(lab, "scontrol", "requeue", requeued)
        # a node dies, whatever is at work on it
        until(lambda: len(results(root)) >= 2, seconds=240)
        lost = run(lab, "squeue", "-h", "-j", endless, "-o", "%N").strip()
        node = next(name for name in slurm.nodes if name != lost)
        slurm.kill_node(node)
        until(lambda: len(results(root)) >= 5, seconds=240)
        slurm.start_node(node)
        # cancelled as a whole: what is collected is kept, and only evaluated afterwards
        lab.sweep("cancel", root)
        until(lambda: not any(job for jobs in (alive(part) for part in Part) for job in jobs.values()), seconds=120)
        collected = [key for key in sweep.cells if sweep.cell(key).collected]
        lab.sweep("resume", root)
        assert not any(alive(Part.AGENT).get(key) for key in collected)
        limited = until(lambda: (found := alive(Part.AGENT).get(key_of("forever"))) and found[0], seconds=120)
        run(lab, "scontrol", "update", f"jobid={limited}", "timelimit=1")
        lab.sweep("resume", root, "--wait", code=1, timeout=500)
    status = lab.status(root)
    assert status[key_of("forever")]["detail"].startswith("time_limit:")
    assert not (root / key_of("forever")).exists()
    keys = [key for key in status if key != key_of("forever")]
    check_once(root, keys)
    assert {key: status[key]["state"] for key in keys} == {
        key: "no_submission" if "nap" in key else "unloadable" for key in keys
    }
    for key in keys:
        record = json.loads((root / key / "run.json").read_text())
        parts = [engine["part"] for engine in (*record["engines_before"], record["engine"])]
        assert parts[0] == "agent"
        assert parts[-1] == ("agent" if "nap" in key else "evaluation"), (key, parts)
        # of the agent's jobs only those whose run was lost with them worked again
        assert record["sweep"]["attempt"] == 1 or told(lab, key).count("started") >= 2
    assert lab.sweep("start", "s.toml").startswith("0 submitted, 0 already active, 14 over")
    # the one that waited for a job that failed is removed by Slurm in its next round
    until(lambda: not run(lab, "squeue", "-h", "-t", "PD,R"), seconds=120)

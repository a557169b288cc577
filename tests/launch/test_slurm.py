"""The Slurm launcher on a real cluster of three nodes on this machine (`scripts/slurm_lab.py`); see also the files beside."""

from __future__ import annotations

import json
import re
from typing import Any

import pytest

from posttrainbench.launch.slurm_rows import seconds
from tests.launch.support import SLURM, Lab, events, results, text_of, until


def test_cancel_and_resume(lab: Lab, slurm: Any) -> None:
    """Waiting jobs vanish, running ones end their agents in an orderly way; `resume` submits both again."""
    root = lab.write(text_of({"forever.py": 4}, launcher=SLURM, hours=0.5))

    def at_work() -> bool:
        return sum(entry["left_s"] is not None for entry in lab.status(root).values()) == 3

    assert lab.sweep("start", "s.toml").startswith("4 submitted")
    until(at_work, seconds=120)
    states = [entry["state"] for entry in lab.status(root).values()]
    assert (states.count("running"), states.count("queued")) == (3, 1)
    assert lab.sweep("start", "s.toml").startswith("0 submitted, 4 already active")
    assert "4 cancelled" in lab.sweep("cancel", root)
    until(lambda: {entry["state"] for entry in lab.status(root).values()} == {"open"}, seconds=120)
    told = [event["event"] for key in lab.status(root) for event in events(root, key)]
    assert sorted(told) == ["interrupted"] * 3 + ["started"] * 3
    assert lab.sweep("resume", root).startswith("4 submitted")
    until(at_work, seconds=120)
    told = [event["event"] for key in lab.status(root) for event in events(root, key)]
    assert sorted(told) == ["interrupted"] * 3 + ["started"] * 6
    lab.sweep("cancel", root)


def test_a_job_that_cannot_begin_is_given_up(lab: Lab, slurm: Any) -> None:
    """A `setup` that fails on every node: four jobs, then a reason that names the job, not an endless submission."""
    root = lab.write(text_of({"brief.py": 1}, launcher=f'{SLURM}\nsetup = "exit 9"', top="retry = {lost = 2}"))
    lab.sweep("start", "s.toml", "--wait", code=1)
    [entry] = lab.status(root).values()
    assert entry["state"] == "failed"
    assert re.match(r"lost: job \d+_0 ended before its run began with FAILED on w\w+n\d$", entry["detail"])
    [key] = lab.status(root)
    assert len(events(root, key)) == 2
    # mended: a new try
    plan = json.loads((root / ".sweep" / "plan.json").read_text())
    assert plan["launcher"]["setup"] == "exit 9"
    lab.write((lab.place / "s.toml").read_text().replace("exit 9", "true"))
    lab.sweep("start", "s.toml")
    lab.sweep("retry", root, "--status", "failed")
    lab.sweep("resume", root, "--wait")
    assert results(root) == {key: "no_submission"}


def test_a_node_that_does_not_do_is_left(lab: Lab, slurm: Any) -> None:
    """The nodes offer a GPU that none of them has: the second try goes to another node, and is the last."""
    root = lab.write(text_of({"brief.py": 1}, launcher=SLURM).replace("gpus = 0", "gpus = 1"))
    lab.sweep("start", "s.toml", "--wait", code=1)
    [(key, entry)] = lab.status(root).items()
    assert entry["detail"] == "sandbox: this job needs 1 GPUs and has 0 (0)"
    told = events(root, key)
    assert [event.get("decision") for event in told] == [None, "elsewhere", None, "give up"]
    assert told[0]["node"] != told[2]["node"]
    lab.write(text_of({"brief.py": 1}, launcher=SLURM).replace("gpus = 0", "gpus = 2"))
    assert "a run needs 2 GPUs and a node of main has at most 1 GPUs" in lab.sweep("plan", "s.toml", code=1)


def test_a_controller_that_does_not_answer_is_no_empty_cluster(lab: Lab, slurm: Any) -> None:
    """Nothing is submitted, nothing is started half, and the line says what does not answer."""
    slurm.kill_controller()
    root = lab.write(text_of({"brief.py": 1}, launcher=SLURM))
    said = lab.sweep("start", "s.toml", code=2)
    assert said.startswith("ptb: Slurm: sinfo failed")
    assert len(said.splitlines()) == 1
    assert not root.exists()


def test_out_of_memory_is_the_engines_word(lab: Lab, slurm: Any) -> None:
    """Too little memory for the harness itself: Slurm says OUT_OF_MEMORY, the second try is on another node, and the last."""
    if not slurm.limits_memory:
        pytest.skip("control groups of version 1 cannot be made here, so this Slurm cannot hold jobs to their memory")
    root = lab.write(text_of({"brief.py": 1}, launcher=f"{SLURM}\nmemory_gib = 0.03"))
    lab.sweep("start", "s.toml", "--wait", code=1)
    [(key, entry)] = lab.status(root).items()
    assert entry["state"] == "failed"
    assert re.match(
        r"out_of_memory: job \d+_0 ended (before its run began )?with OUT_OF_MEMORY on w\w+n\d$", entry["detail"]
    )
    # how far the harness comes with so little is chance: the system's files may be in another job's account already
    told = [event for event in events(root, key) if event["event"] == "failed"]
    assert [(event["failure"], event["decision"]) for event in told] == [
        ("out_of_memory", "elsewhere"), ("out_of_memory", "give up"),
    ]  # fmt: skip
    assert told[0]["node"] != told[1]["node"]
    # given enough, and the agent the share of the job that the harness leaves it: its end is a result, and the job is whole
    lab.write(text_of({"hog.py": 1, "brief.py": 1}, launcher=f"{SLURM}\nmemory_gib = 0.8"))
    lab.sweep("start", "s.toml")
    lab.sweep("retry", root, "--status", "failed")
    lab.sweep("resume", root, "--wait")
    lab.status(root)
    hog = "scripted-hog--ptb-tiny-base--smoke-math--r1"
    assert results(root) == {key: "no_submission", hog: "no_submission"}
    record = json.loads((root / hog / "run.json").read_text())
    assert 0.39 * 2**30 < record["limits"]["memory_bytes"] < 0.41 * 2**30
    assert record["stages"]["solve"]["peak_memory_bytes"] > 0.3 * 2**30
    assert record["engine"]["booked"]["state"] == "COMPLETED"
    assert "killed by SIGKILL" in (root / hog / "trace" / "raw.jsonl").read_text()


@pytest.mark.parametrize(
    ("text", "expected"), [("0:07", 7), ("1:02:03", 3723), ("2-00:00:01", 172801), ("90", 90), ("3:04", 184)]
)
def test_times_of_slurm(text: str, expected: int) -> None:
    assert seconds(text) == expected

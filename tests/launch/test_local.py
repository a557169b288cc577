"""The local launcher: slots that nobody owns, killed starters, killed slots, orderly ends."""

from __future__ import annotations

import json
import os
import random
import signal
import time
from pathlib import Path

import pytest

from tests.launch.support import Lab, check_once, events, kill, results, text_of, until
from tests.support.model_server import Fault, ModelServer, Script


@pytest.mark.slow
@pytest.mark.timeout(1500)
def test_sixty_runs_survive_killed_starters_and_a_killed_slot(lab: Lab) -> None:
    """The starter dies three times at random moments and a slot once: every cell ends once, with its status."""
    root = lab.write(text_of({"nap.py": 2, "copy_base.py": 1, "hog.py": 1, "brief.py": 56}, run="memory_gib = 0.5"))
    chance = random.Random(8)
    for _ in range(3):
        starter = lab.popen("start", "s.toml", "--wait")
        time.sleep(chance.uniform(0.05, 3.0))
        assert starter.poll() is None, starter.communicate()
        kill(starter)
    until(lambda: any((root / ".sweep" / "slots").glob("*.json")))
    slot = root / ".sweep" / "slots" / "0.json"
    pid = until(lambda: (told := json.loads(slot.read_text()))["cell"] and told["pid"])
    os.kill(pid, signal.SIGKILL)
    lab.sweep("start", "s.toml", "--wait", timeout=900)
    keys = list(lab.status(root))
    assert len(keys) == 60
    seen = check_once(root, keys)
    assert seen["started"] <= 61
    assert seen["failed"] <= 1
    found = results(root)
    assert {key: status for key, status in found.items() if status != "no_submission"} == {
        "scripted-copy_base--ptb-tiny-base--smoke-math--r1": "scored"
    }
    hog = json.loads((root / "scripted-hog--ptb-tiny-base--smoke-math--r1" / "run.json").read_text())
    assert hog["stages"]["solve"]["peak_memory_bytes"] > 0.3 * 2**30
    # early results cover all agents
    order = sorted(keys, key=lambda key: json.loads((root / key / "run.json").read_text())["id"][:15])
    assert {key.split("--")[0] for key in order[:6]} >= {"scripted-brief", "scripted-nap"}
    # nothing in a committed run points to where it was made
    logs = [path for path in root.glob("[!.]*/**/*.json*") if b"/attempts/" in path.read_bytes()]
    assert logs == []
    before = {path: path.stat().st_mtime_ns for path in root.glob("[!.]*/result.json")}
    said = lab.sweep("start", "s.toml")
    assert said.startswith("0 submitted, 0 already active, 60 over")
    assert {path: path.stat().st_mtime_ns for path in root.glob("[!.]*/result.json")} == before


def test_cancelled_cells_go_on_and_finished_ones_are_run_again(lab: Lab) -> None:
    """`cancel` ends agents in an orderly way, `resume` starts them afresh, `retry --status` opens what is over."""
    told = lab.place / "told"
    told.mkdir()
    notify = f'notify = ["/bin/cp", "-t", "{told}"]'
    root = lab.write(text_of({"forever.py": 1, "brief.py": 1}, top=notify, hours=0.005))
    lab.sweep("start", "s.toml")
    brief, forever = (f"scripted-{name}--ptb-tiny-base--smoke-math--r1" for name in ("brief", "forever"))
    working = until(lambda: (found := lab.status(root))[forever]["left_s"] is not None and found)
    assert 0 <= working[forever]["left_s"] <= 18
    assert lab.sweep("start", "s.toml").startswith("0 submitted, ")
    assert "1 cancelled" in lab.sweep("cancel", root, "forever")
    until(lambda: results(root) and lab.status(root)[forever]["state"] == "cancelled")
    assert [event["event"] for event in events(root, forever)] == ["started", "interrupted"]
    assert results(root) == {brief: "no_submission"}
    lab.sweep("resume", root, "--wait")
    seen = check_once(root, [brief, forever])
    assert (seen["started"], seen["interrupted"]) == (3, 1)
    assert json.loads((told / "summary.json").read_text())["counts"] == {"no_submission": 2}
    assert json.loads((root / forever / "run.json").read_text())["sweep"]["attempt"] == 2
    first = json.loads((root / brief / "run.json").read_text())["id"]
    assert "0 opened" in lab.sweep("retry", root)
    assert "1 opened again, 1 submitted" in lab.sweep("retry", root, "--status", "no_submission", "brief")
    until(lambda: brief in results(root))
    assert json.loads((root / brief / "run.json").read_text())["id"] != first
    kept = list((root / ".sweep" / "cells" / brief / "retired").iterdir())
    assert [json.loads((path / "run.json").read_text())["id"] for path in kept] == [first]
    assert "no state of a finished cell" in lab.sweep("retry", root, "--status", "nonsense", code=2)
    assert "no cell" in lab.sweep("cancel", root, "nonsense", code=2)


LAB_CLI = """
name = "lab"
command = ["/bin/sh", "-c", "echo done"]
wire = "anthropic"
"""


def test_a_dead_key_stops_the_sweep_until_it_is_mended(lab: Lab) -> None:
    """A one-token call before the first run finds it: no run is spent, the command of the user is told."""
    (lab.place / "lab.toml").write_text(LAB_CLI)
    told = lab.place / "told"
    text = text_of(
        {},
        top=f'agents = [{{agent = "lab.toml", model = "m", repeats = 4}}]\nnotify = ["/bin/cp", "-t", "{told}"]',
    )
    text = text.replace('"-T", "--", ', '"-t", ')
    told.mkdir()
    root = lab.write(text)
    assert "ANTHROPIC_API_KEY" in lab.sweep("start", "s.toml", code=2)
    assert not root.exists()
    refuse = Fault(status=401, message="invalid x-api-key")
    with ModelServer(Script.of("hello"), faults=lambda number: refuse if number <= 2 else None) as server:
        lab.env |= {"ANTHROPIC_API_KEY": "sk-ant-api03-lab-0123456789", "PTB_UPSTREAM_ANTHROPIC": server.url}
        lab.env |= {"HTTPS_PROXY": "", "https_proxy": ""}
        said = lab.sweep("start", "s.toml", "--wait", code=1)
        assert "stopped: the model's service refused the key" in said
        assert "invalid x-api-key" in said
        summary = json.loads((told / "summary.json").read_text())
        assert summary["stopped"]["kind"] == "auth"
        assert not results(root)
        assert server.calls <= 2  # one for each slot
        calls = server.calls
        server.faults = {}
        lab.sweep("resume", root, "--wait")
        assert server.calls - calls <= 2  # what held is remembered
    assert results(root) == dict.fromkeys(lab.status(root), "no_submission")
    assert len(results(root)) == 4
    record = json.loads(next(root.glob("[!.]*/run.json")).read_text())
    [check] = [check for check in record["preflight"] if check["name"] == "model API"]
    assert check["detail"] == "anthropic/m answers: HTTP 200"
    assert "sk-ant-api03-lab" not in _everything(root)


def _everything(root: Path) -> str:
    return "".join(path.read_text(errors="replace") for path in root.rglob("*") if path.is_file())


def test_a_smoke_sweep_stands_beside_the_real_one(lab: Lab) -> None:
    """`--smoke` runs each cell once with a tiny budget; `--dry-run` starts nothing."""
    root = lab.write(text_of({"brief.py": 2}, hours=1))
    assert "2 cells could be started" in lab.sweep("start", "s.toml", "--dry-run")
    assert not root.exists()
    lab.sweep("start", "s.toml", "--smoke", "--wait")
    smoke = root.with_name("s-smoke")
    [key] = results(smoke)
    assert json.loads((smoke / key / "result.json").read_text())["hours"] == 0.05
    assert not root.exists()
    assert events(smoke, key)[-1]["event"] == "committed"

"""The end of a sweep as a person learns of it: exit codes, the summary file, a command of the user's that may fail or hang."""

from __future__ import annotations

import errno
import json
import os
import signal
from pathlib import Path
from typing import Any

import pytest

from posttrainbench.files import write_json
from posttrainbench.launch import notify
from posttrainbench.launch.notify import notify_if_over
from posttrainbench.launch.store import SweepDirectory, held
from posttrainbench.launch.sweepfile import load
from tests.launch.support import Lab, results, text_of, until


def sweep_of(lab: Lab, command: list[str], *, states: list[str]) -> SweepDirectory:
    """A sweep whose cells have these results (`failed` for one that was given up, `open` for none)."""
    lab.write(text_of({"brief.py": len(states)}, top=f"notify = {json.dumps(command)}"))
    sweep = SweepDirectory.create(load(lab.place / "s.toml"))
    for key, state in zip(sweep.cells, states, strict=True):
        finish(sweep, key, state)
    return sweep


def finish(sweep: SweepDirectory, key: str, state: str) -> None:
    cell = sweep.cell(key)
    cell.work.mkdir(parents=True, exist_ok=True)
    if state == "failed":
        write_json(cell.failed_file, {"time": "t", "failure": "lost", "error": "gone", "attempts": 4})
    elif state != "open":
        cell.result.mkdir(parents=True)
        write_json(cell.result / "result.json", {"status": state, "error": "why", "own_score": None})


def summary(sweep: SweepDirectory) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((sweep.state / "summary.json").read_text())
    return found


def script(lab: Lab, text: str) -> list[str]:
    file = lab.place / "tell"
    file.write_text(f"#!/bin/sh\n{text}\n")
    file.chmod(0o755)
    return [str(file)]


def test_said_once_for_each_end(lab: Lab) -> None:
    """Nothing before the end; one call with the summary's path; another one only when there is something new to say."""
    told = lab.place / "told"
    sweep = sweep_of(lab, script(lab, f'echo "$PTB_SWEEP $1" >> {told}'), states=["scored", "open"])
    assert not notify_if_over(sweep)
    assert not (sweep.state / "summary.json").exists()
    second = list(sweep.cells)[1]
    finish(sweep, second, "failed")
    assert notify_if_over(sweep)
    assert notify_if_over(sweep)
    assert told.read_text() == f"{sweep.root} {sweep.state / 'summary.json'}\n"
    found = summary(sweep)
    assert (found["name"], found["cells"], found["counts"]) == ("s", 2, {"scored": 1, "failed": 1})
    assert [(entry["key"], entry["detail"]) for entry in found["not_scored"]] == [(second, "lost: gone")]
    # a sweep that stops is an end of another kind
    sweep.cell(second).failed_file.unlink()
    sweep.stop("the model's service refused the key: 401", kind="auth")
    assert notify_if_over(sweep)
    assert len(told.read_text().splitlines()) == 2
    assert summary(sweep)["stopped"]["kind"] == "auth"


FAILING = {"exit 7": "ended with status 7", "sleep 600": "did not end within 1 s", "": "could not be run: No such file"}


@pytest.mark.parametrize(("words", "outcome"), FAILING.items())
def test_a_command_that_fails_or_hangs_or_is_not_there(
    lab: Lab, words: str, outcome: str, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    """The summary is there; what went wrong is said and kept; the next who looks tries again, three times in all."""
    monkeypatch.setattr(notify, "_PATIENCE_S", 1.0)
    mark = lab.place / "pids"
    command = script(lab, f"sleep 601 & echo $! >> {mark}\n{words}") if words else ["/nonexistent/tell"]
    sweep = sweep_of(lab, command, states=["infra_error"])
    for tries in (1, 2, 3, 3):
        assert notify_if_over(sweep)
        assert json.loads((sweep.state / "notified.json").read_text())["tries"] == tries
    assert summary(sweep)["counts"] == {"infra_error": 1}
    said = capfd.readouterr().err.splitlines()
    assert [line[: len(outcome) + 29] for line in said] == [f"ptb: the notification command {outcome}"[:-1]] * 3
    for pid in mark.read_text().split() if words else []:
        if words == "sleep 600":
            until(lambda pid=pid: not alive(pid))  # type: ignore[misc]
        else:
            os.kill(int(pid), signal.SIGKILL)


def alive(pid: str) -> bool:
    try:
        return Path("/proc", pid, "stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


def test_one_whose_caller_died_is_run_again(lab: Lab) -> None:
    """It began to tell and never said how that went; while somebody is at it, nobody else is."""
    told = lab.place / "told"
    sweep = sweep_of(lab, script(lab, f"echo . >> {told}; exit $(wc -l < {told} | tr -d 2)"), states=["scored"])
    with held(sweep.state / "notify.lock"):
        assert notify_if_over(sweep)
    assert not told.exists()
    assert notify_if_over(sweep)
    record = json.loads((sweep.state / "notified.json").read_text())
    write_json(sweep.state / "notified.json", {**record, "outcome": None})
    assert notify_if_over(sweep)
    assert len(told.read_text().split()) == 2


def test_a_full_disk_is_told(lab: Lab, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]) -> None:
    """Neither the record nor the summary can be written: the command runs all the same, and nobody sees a traceback."""
    told = lab.place / "told"
    sweep = sweep_of(lab, script(lab, f"echo $PTB_SWEEP >> {told}"), states=["open"])
    sweep.stop("the disk is full", kind="disk_full")

    def full(path: Path, value: Any) -> None:
        raise OSError(errno.ENOSPC, "No space left on device", str(path))

    monkeypatch.setattr(notify, "write_json", full)
    assert notify_if_over(sweep)
    assert told.read_text() == f"{sweep.root}\n"
    assert "No space left on device" in capfd.readouterr().err


def test_exit_codes_of_a_real_sweep(lab: Lab) -> None:
    """`start --wait` and `resume --wait` end with 0 or 1 as the cells did, whatever the command does."""
    fails = script(lab, "exit 3")
    root = lab.write(text_of({"brief.py": 1}, top=f"notify = {json.dumps(fails)}"))
    lab.sweep("start", "s.toml", "--wait")
    assert list(results(root).values()) == ["no_submission"]
    told = until(lambda: json.loads((root / ".sweep" / "notified.json").read_text()).get("outcome"))
    assert told == "ended with status 3"
    [key] = results(root)
    (root / key / "result.json").rename(root / key / "was.json")
    cell = SweepDirectory.open(root).cell(key)
    write_json(cell.failed_file, {"time": "t", "failure": "lost", "error": "gone", "attempts": 4})
    said = lab.sweep("resume", root, "--wait", code=1)
    assert "1 cells: 1 failed" in said
    assert json.loads((root / ".sweep" / "summary.json").read_text())["counts"] == {"failed": 1}
    assert "1 failed" in lab.sweep("status", root)
    assert lab.sweep("status", lab.place, code=2).startswith("ptb: ")

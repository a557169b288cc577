"""A harness killed at any moment loses nothing: `ptb resume` ends with the result of an undisturbed run."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from posttrainbench.cli import main
from posttrainbench.pipeline import STAGES, RunDirectory
from tests.conftest import AGENTS, ROOT


def arguments(base_model: Path, out: Path, agent: str) -> list[str]:
    return [
        "run",
        "--agent",
        f"scripted:{AGENTS / agent}.py",
        "--model",
        str(base_model),
        "--benchmark",
        "smoke-math",
        "--hours",
        "0.02",
        "--out",
        str(out),
    ]


def start(module: str, *rest: str) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-m", module, *rest], cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )


def only_run(out: Path) -> Path | None:
    found = [path.parent for path in out.glob("adhoc/*/run.json") if not path.parent.name.startswith(".")]
    assert len(found) <= 1
    return found[0] if found else None


def outcome(run: Path) -> dict[str, Any]:
    """Of the result, what an undisturbed repetition would give again."""
    result = json.loads((run / "result.json").read_text())
    return {key: value for key, value in result.items() if key not in ("id", "wall_s")}


def files(run: Path) -> set[str]:
    """All files, without the traces of interrupted attempts, which are kept on purpose."""
    names = {str(path.relative_to(run)) for path in run.rglob("*") if path.is_file()}
    return {name for name in names if not name.startswith(("trace/interrupted-", "evaluation/"))}


def finished_well(run: Path, expected: Path) -> None:
    assert outcome(run) == outcome(expected)
    assert files(run) == files(expected)
    assert [path.name for path in run.iterdir() if path.name.startswith(".")] == [".lock"]
    record = RunDirectory.open(run).record()
    assert [record["stages"][stage]["status"] for stage in STAGES] == ["done"] * len(STAGES)
    for path in run.rglob("*.json"):
        json.loads(path.read_text())


def alone(patch: pytest.MonkeyPatch, places: Path) -> None:
    """A cache and a TMPDIR of its own: a run that finds a copy there, or what a killed one left, does other things."""
    for variable in ("PTB_CACHE", "TMPDIR"):
        (places / variable).mkdir(parents=True)
        patch.setenv(variable, str(places / variable))


@pytest.fixture(scope="module")
def undisturbed(base_model: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, int]:
    """A run that nobody disturbed, and how many durable operations it took."""
    out = tmp_path_factory.mktemp("undisturbed")
    with pytest.MonkeyPatch.context() as patch:
        alone(patch, out.with_name(f"{out.name}-places"))
        process = start("tests.pipeline.crash", "0", *arguments(base_model, out, "half_model"))
    printed, errors = process.communicate(timeout=120)
    assert process.returncode == 0, errors
    run = only_run(out)
    assert run is not None
    return run, int(printed.rpartition("operations=")[2])


@pytest.mark.slow
def test_killed_at_every_durable_operation(
    base_model: Path, undisturbed: tuple[Path, int], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """About 30 operations over all stages but the scoring itself; a run and a resume for each."""
    expected, operations = undisturbed
    assert operations > 15
    stages_hit = set()
    for number in range(1, operations + 1):
        out = tmp_path / str(number)
        alone(monkeypatch, tmp_path / f"{number}-places")
        process = start("tests.pipeline.crash", str(number), *arguments(base_model, out, "half_model"))
        process.communicate(timeout=120)
        assert process.returncode == -signal.SIGKILL
        run = only_run(out)
        if run is None:
            stages_hit.add("prepare")
            continue
        done = RunDirectory.open(run).record()["stages"]
        stages_hit.add(next((stage for stage in STAGES if done.get(stage, {}).get("status") != "done"), "end"))
        main(["resume", str(run)])
        finished_well(run, expected)
    assert stages_hit == set(STAGES)


def wait_for(condition: Any, seconds: float = 60) -> Any:
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        value = condition()
        if value:
            return value
        time.sleep(0.02)
    raise AssertionError("did not happen in time")


def test_killed_while_the_agent_works(base_model: Path, tmp_path: Path) -> None:
    """Nothing of the agent lives on; it is started afresh; the trace of the first attempt is kept."""
    quiet, out = tmp_path / "quiet", tmp_path / "out"
    main(arguments(base_model, quiet, "heartbeat"))
    process = start("posttrainbench", *arguments(base_model, out, "heartbeat"))
    heart = wait_for(lambda: next(iter(out.glob("adhoc/*/.job/home/task/heartbeat")), None))
    process.send_signal(signal.SIGKILL)
    process.communicate(timeout=60)
    time.sleep(0.5)
    beat = heart.read_text()
    time.sleep(0.5)
    assert heart.read_text() == beat, "the agent outlived its harness"
    run, expected = only_run(out), only_run(quiet)
    assert run is not None and expected is not None
    main(["resume", str(run)])
    finished_well(run, expected)
    assert "started" in (run / "trace" / "interrupted-1.jsonl").read_text()
    assert RunDirectory.open(run).stage("solve")["attempts"] == 2


@pytest.mark.slow
def test_killed_while_scoring(base_model: Path, tmp_path: Path) -> None:
    """SIGKILL in the middle of the evaluation's sandbox; the second evaluation gives the same score."""
    quiet, out = tmp_path / "quiet", tmp_path / "out"
    main(arguments(base_model, quiet, "copy_base"))
    process = start("posttrainbench", *arguments(base_model, out, "copy_base"))
    wait_for(lambda: next(iter(out.glob("adhoc/*/ptb-scratch-evaluate-*/in/request.json")), None))
    time.sleep(3)
    process.send_signal(signal.SIGKILL)
    process.communicate(timeout=60)
    run, expected = only_run(out), only_run(quiet)
    assert run is not None and expected is not None
    assert RunDirectory.open(run).stage("evaluate").get("status") != "done"
    main(["resume", str(run)])
    finished_well(run, expected)
    scores = [json.loads((path / "evaluation" / "metrics.json").read_text()) for path in (run, expected)]
    assert scores[0]["strict"] == scores[1]["strict"] and scores[0]["generated_tokens"] == scores[1]["generated_tokens"]


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_interrupted_by_the_user(number: int, base_model: Path, tmp_path: Path) -> None:
    process = start("posttrainbench", *arguments(base_model, tmp_path, "heartbeat"))
    wait_for(lambda: next(iter(tmp_path.glob("adhoc/*/.job/home/task/heartbeat")), None))
    process.send_signal(number)
    _, errors = process.communicate(timeout=60)
    run = only_run(tmp_path)
    assert process.returncode == 130 and run is not None
    assert errors.strip() == f"ptb: interrupted; go on with `ptb resume {run}`"
    main(["resume", str(run)])
    assert outcome(run)["status"] == "unloadable"


def test_two_harnesses_do_not_work_on_one_run(
    base_model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    process = start("posttrainbench", *arguments(base_model, tmp_path, "heartbeat"))
    wait_for(lambda: next(iter(tmp_path.glob("adhoc/*/.job/home/task/heartbeat")), None))
    run = only_run(tmp_path)
    with pytest.raises(SystemExit) as ended:
        main(["resume", str(run)])
    assert ended.value.code == 2 and "another ptb process" in capsys.readouterr().err
    assert process.wait(timeout=60) == 0


def test_a_finished_run_is_left_alone(undisturbed: tuple[Path, int]) -> None:
    run = undisturbed[0]
    before = {path: path.stat().st_mtime_ns for path in run.rglob("*")}
    main(["resume", str(run)])
    assert {path: path.stat().st_mtime_ns for path in run.rglob("*")} == before


def test_audit_can_be_repeated_alone(undisturbed: tuple[Path, int], capsys: pytest.CaptureFixture[str]) -> None:
    run = undisturbed[0]
    before = outcome(run)
    main(["audit", str(run)])
    assert "verdict:" in capsys.readouterr().out and outcome(run) == before


def test_audit_needs_the_stages_before_it(base_model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    process = start("posttrainbench", *arguments(base_model, tmp_path, "heartbeat"))
    wait_for(lambda: next(iter(tmp_path.glob("adhoc/*/.job/home/task/heartbeat")), None))
    process.kill()
    process.communicate(timeout=60)
    with pytest.raises(SystemExit) as ended:
        main(["audit", str(only_run(tmp_path))])
    assert ended.value.code == 2 and "stage solve" in capsys.readouterr().err


def test_a_full_disk_in_the_middle_loses_nothing(base_model: Path, tmp_path: Path) -> None:
    """The results disk (a small tmpfs) fills while the agent works: one line, exit code 2; with room again, resume ends."""
    if os.geteuid() != 0:
        pytest.skip("mounting a small disk needs root")
    run = " ".join(arguments(base_model, Path("disk"), "fill_once"))
    script = f"""
        mkdir disk; mount -t tmpfs -o size=160m none disk
        PTB="{sys.executable} -m posttrainbench"
        $PTB {run} --disk-gib 100; echo rc=$?
        mount -o remount,size=1g disk
        $PTB resume disk/adhoc/*; echo rc=$?
        cat disk/adhoc/*/result.json
    """
    done = subprocess.run(
        ["unshare", "--mount", "bash", "-c", script],
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        check=False,
        timeout=200,
    )
    codes = [line for line in done.stdout.splitlines() if line.startswith("rc=")]
    assert codes[-1] == "rc=0", done.stdout + done.stderr
    assert "Traceback" not in done.stderr
    if codes[0] == "rc=2":
        assert "disk is full" in done.stderr
    assert '"status": "no_submission"' in done.stdout

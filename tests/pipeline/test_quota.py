"""`--disk-quota exact`: to the block, whatever way is taken, and nothing of it is left, not even after SIGKILL."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from posttrainbench.cli import main
from posttrainbench.pipeline import quota
from tests.conftest import AGENTS, ROOT

LIMIT = 96 * 2**20


@pytest.fixture
def here(tmp_path: Path) -> Path:
    """A results directory on whose disk exact quotas work."""
    try:
        quota.check("exact", sandbox="bubblewrap", disk_gib=1.0, results=tmp_path)
    except Exception as error:
        pytest.skip(str(error))
    return tmp_path / "results"


def arguments(base_model: Path, out: Path, agent: str) -> list[str]:
    return [
        *("run", "--agent", f"scripted:{AGENTS / agent}.py", "--model", str(base_model), "--benchmark", "smoke-math"),
        *("--hours", "0.02", "--disk-gib", str(LIMIT / 2**30), "--disk-quota", "exact", "--out", str(out)),
    ]


def looped(place: Path) -> str:
    """Loop devices over files below a place; the kernel gives one back a moment after its last user is gone."""
    for _ in range(100):
        told = subprocess.run(["losetup", "--all"], capture_output=True, text=True, check=True).stdout
        if str(place) not in told:
            return ""
        time.sleep(0.1)
    return told


def test_exact_to_the_block(base_model: Path, here: Path) -> None:
    before = shutil.disk_usage(here.parent).free
    done = subprocess.run(
        [sys.executable, "-m", "posttrainbench", *arguments(base_model, here, "fill_to_the_last_byte")],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
        timeout=200,
    )
    assert done.returncode == 0, done.stderr
    run = next(here.glob("adhoc/*"))
    trace = (run / "trace/raw.jsonl").read_text()
    wrote = int(trace.partition("wrote ")[2].partition('"')[0])
    # all files that were there at the same time, with the harness's own and the directories' blocks
    assert LIMIT - 2**20 < wrote <= LIMIT
    assert '"tmp 0"' in trace
    record = json.loads((run / "run.json").read_text())
    assert record["stages"]["solve"]["reason"] == "exit", "its writes failed; it was not killed"
    assert record["spec"]["disk_quota"] == "exact"
    assert (run / "final_model/large.bin").stat().st_size == 3 << 20, "collected across file systems"
    assert [path.name for path in run.iterdir() if path.name.startswith(".")] == [".lock"]
    assert not looped(here)
    assert before - shutil.disk_usage(here.parent).free < 80 * 2**20, "the image's room is free again"


def test_after_sigkill_nothing_is_mounted_and_the_run_goes_on(base_model: Path, here: Path) -> None:
    process = subprocess.Popen(
        [sys.executable, "-m", "posttrainbench", *arguments(base_model, here, "heartbeat")],
        cwd=ROOT,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
    )
    end = time.monotonic() + 100
    trace = lambda: next(iter(here.glob("adhoc/*/trace/raw.jsonl")), None)  # noqa: E731
    while not (trace() and "started" in trace().read_text()):  # type: ignore[union-attr]
        assert process.poll() is None and time.monotonic() < end, process.stderr and process.stderr.read()
        time.sleep(0.05)
    assert str(here) not in Path("/proc/self/mountinfo").read_text(), "mounted where the host sees it"
    process.send_signal(signal.SIGKILL)
    process.communicate(timeout=60)
    assert not looped(here)
    run = next(here.glob("adhoc/*"))
    assert (run / quota.IMAGE).stat().st_size > LIMIT and list((run / ".job").iterdir()) == []
    main(["resume", str(run)])
    assert json.loads((run / "result.json").read_text())["status"] == "unloadable"
    assert [path.name for path in run.iterdir() if path.name.startswith(".")] == [".lock"]
    assert not looped(here)


def test_work_that_is_gone_is_not_no_submission(
    base_model: Path, here: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Killed before it was collected, and the image was removed by hand: an error, and no score for the agent."""
    process = subprocess.run(
        [sys.executable, "-m", "tests.pipeline.killed", "collect", *arguments(base_model, here, "half_model")],
        cwd=ROOT,
        capture_output=True,
        check=False,
        timeout=100,
    )
    assert process.returncode == -signal.SIGKILL
    run = next(here.glob("adhoc/*"))
    (run / quota.IMAGE).rename(run / "elsewhere")
    with pytest.raises(SystemExit):
        main(["resume", str(run)])
    assert "is gone, and its work with it" in capsys.readouterr().err
    (run / "elsewhere").rename(run / quota.IMAGE)
    main(["resume", str(run)])
    assert json.loads((run / "result.json").read_text())["status"] == "unloadable"


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"sandbox": "docker"}, "works with --sandbox bubblewrap"),
        ({"disk_gib": None}, "needs --disk-gib"),
    ],
)
def test_refused_before_it_starts(changes: dict[str, object], said: str, tmp_path: Path) -> None:
    if os.geteuid() != 0:
        said = "run by root"
    asked = {"sandbox": "bubblewrap", "disk_gib": 1.0, "results": tmp_path, **changes}
    with pytest.raises(Exception, match=said):
        quota.check("exact", **asked)  # type: ignore[arg-type]
    quota.check("watchdog", **asked)  # type: ignore[arg-type]

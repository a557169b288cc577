"""A harness that is killed, in whatever stage, leaves nothing behind that the next start or `ptb clean` does not take away."""

from __future__ import annotations

import ctypes
import json
import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from posttrainbench.cli import main
from posttrainbench.pipeline import RunDirectory
from tests.conftest import AGENTS, ROOT

_SUBREAPER = 36


@pytest.fixture
def orphans() -> Iterator[Callable[[], list[str]]]:
    """Living processes that came to us because those who started them are dead; what is left at the end is killed."""
    library = ctypes.CDLL(None)
    library.prctl(_SUBREAPER, 1, 0, 0, 0)
    before = children()
    yield lambda: [name for pid, name in children().items() if pid not in before]
    library.prctl(_SUBREAPER, 0, 0, 0, 0)
    for pid in children().keys() - before.keys():
        os.kill(pid, 9)
        os.waitpid(pid, 0)


def children() -> dict[int, str]:
    """Our living children, with their command lines. Dead orphans are reaped."""
    found = {}
    for process in Path("/proc").glob("[0-9]*"):
        try:
            fields = (process / "stat").read_text().rpartition(")")[2].split()
            if int(fields[1]) != os.getpid():
                continue
            name = (process / "cmdline").read_bytes().replace(b"\0", b" ").decode(errors="replace")
            if fields[0] == "Z":
                if not name:
                    os.waitpid(int(process.name), os.WNOHANG)
                continue
            found[int(process.name)] = name
        except (OSError, IndexError):
            continue
    return found


def mounts(place: Path) -> list[str]:
    return [line for line in Path("/proc/self/mountinfo").read_text().splitlines() if str(place) in line]


def groups(pid: int) -> list[str]:
    return [name for _, names, _ in os.walk("/sys/fs/cgroup") for name in names if name.startswith(f"ptb-{pid}-")]


def arguments(base_model: Path, agent: str) -> list[str]:
    """Of a run with the gateway's process, in ./results."""
    return [
        *("run", "--agent", f"scripted:{AGENTS / agent}.py", "--model", str(base_model)),
        *("--benchmark", "smoke-math", "--hours", "0.02", "--network", "guarded", "--out", "results"),
    ]


class Place:
    """A directory to run `ptb` in, with a TMPDIR and caches of its own."""

    def __init__(self, root: Path) -> None:
        self.root = root
        for name in ("tmp", "cache", "agents"):
            (root / name).mkdir()
        self.env = {name: value for name, value in os.environ.items() if not name.startswith("PTB_")} | {
            "PYTHONPATH": str(ROOT),
            "TMPDIR": str(root / "tmp"),
            "PTB_CACHE": str(root / "cache"),
            "PTB_AGENTS_DIR": str(root / "agents"),
        }

    def ptb(self, *arguments: str, module: str = "posttrainbench") -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [sys.executable, "-m", module, *arguments],
            cwd=self.root,
            env=self.env,
            capture_output=True,
            text=True,
            timeout=240,
            check=False,
        )

    @property
    def temporary(self) -> list[str]:
        return sorted(path.name for path in (self.root / "tmp").iterdir())

    @property
    def runs(self) -> list[Path]:
        return sorted(self.root.glob("results/adhoc/*"))


@pytest.fixture
def place(tmp_path: Path) -> Place:
    return Place(tmp_path)


def settled(condition: Callable[[], object], seconds: float = 20) -> bool:
    """Whether nothing is left, within a time in which the kernel and the gateway surely end."""
    end = time.monotonic() + seconds
    while condition():
        if time.monotonic() > end:
            return False
        time.sleep(0.05)
    return True


STAGES = (
    "draft",
    "prepare",
    "solve",
    "collect",
    "audit",
    pytest.param("evaluate", marks=pytest.mark.slow),
)


@pytest.mark.parametrize("stage", STAGES)
def test_killed_in_a_stage(stage: str, base_model: Path, place: Place, orphans: Callable[[], list[str]]) -> None:
    agent = {"solve": "heartbeat", "evaluate": "copy_base"}.get(stage, "half_model")
    process = subprocess.Popen(
        [sys.executable, "-m", "tests.pipeline.killed", stage, *arguments(base_model, agent)],
        cwd=place.root,
        env=place.env,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
    )
    _, said = process.communicate(timeout=240)
    assert process.returncode == -9, said.decode()
    # of themselves, before anybody cleans: processes, their namespaces and what is mounted in them
    assert settled(orphans), f"processes outlived the harness: {orphans()}"
    assert mounts(place.root) == []
    record = [RunDirectory.open(path).record()["stages"] for path in place.runs if not path.name.startswith(".")]
    if stage in ("draft", "prepare"):
        assert record == []
    else:
        assert len(record) == 1 and record[0].get(stage, {}).get("status") != "done"
    if stage == "prepare":
        assert place.temporary != [], "this test is to find something to clean"
    if stage == "evaluate":
        assert list(place.runs[0].glob("ptb-scratch-*")), "this test is to find something to clean"

    done = place.ptb("clean", "--what", "leftovers", "--yes")
    assert done.returncode == 0, done.stderr
    assert place.temporary == []
    assert groups(process.pid) == []
    assert [path.name for path in place.runs if path.name.startswith(".")] == []
    for run in place.runs:
        assert {path.name for path in run.iterdir() if path.name.startswith(".")} <= {".lock", ".job"}
        assert list(run.glob("ptb-scratch-*")) == []
    assert place.ptb("clean", "--what", "leftovers", "--yes").stdout == "nothing to remove\n"
    for run in place.runs:  # what was left of the run itself is enough to go on with
        done = place.ptb("resume", str(run))
        assert done.returncode == 0, done.stderr
        assert {path.name for path in run.iterdir() if path.name.startswith(".")} == {".lock"}
    assert place.temporary == [] and settled(orphans)


def test_the_next_start_cleans_up_too(base_model: Path, place: Place) -> None:
    """Without `ptb clean`: temporary directories, control groups and drafts of a dead harness go when another one starts."""
    killed = []
    for stage in ("prepare", "draft"):
        process = subprocess.Popen(
            [sys.executable, "-m", "tests.pipeline.killed", stage, *arguments(base_model, "half_model")],
            cwd=place.root,
            env=place.env,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )
        assert process.wait(timeout=120) == -9
        killed.append(process.pid)
    assert any(path.name.startswith(".") for path in place.runs)
    done = place.ptb(*arguments(base_model, "half_model"))
    assert done.returncode == 0, done.stderr
    assert place.temporary == [] and [groups(pid) for pid in killed] == [[], []]
    assert len(place.runs) == 1


@pytest.mark.skipif(os.geteuid() != 0, reason="mounting a small disk needs root")
@pytest.mark.parametrize("agent", ["fill_once", "half_model"])
def test_a_full_disk_is_an_error_of_its_own_kind(agent: str, base_model: Path, tmp_path: Path) -> None:
    """While the agent works, and while the harness does: one line, a record, and with room again the run goes on."""
    command = f"{sys.executable} -m posttrainbench"
    if agent == "fill_once":
        first = f"{command} {' '.join(arguments(base_model, agent))} --disk-gib 100"
    else:
        # interrupted while the agent works; then somebody else fills the disk to the last byte
        first = (
            f"{sys.executable} -m tests.pipeline.killed collect {' '.join(arguments(base_model, agent))};"
            f"dd if=/dev/zero of=results/filler bs=4k status=none; {command} resume results/adhoc/*"
        )
    script = f"""
        mkdir results; mount -t tmpfs -o size=160m none results
        ({first}) 2>said; echo rc=$?
        cat results/adhoc/*/result.json || true; echo; echo ====
        rm -f results/filler; mount -o remount,size=1g results
        {command} resume results/adhoc/* >/dev/null; echo rc=$?
        cat results/adhoc/*/result.json; ls -A results/adhoc/*
    """
    done = subprocess.run(
        ["unshare", "--mount", "bash", "-c", script],
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        check=False,
        timeout=240,
    )
    before, after = done.stdout.split("====")
    said = (tmp_path / "said").read_text()
    told = [line for line in said.splitlines() if line.startswith("ptb:")]
    assert "\nrc=2\n" in before and "Traceback" not in said, done.stdout + said
    assert len(told) == 1 and told[0].startswith("ptb: the disk is full: ") and "ptb resume" in told[0]
    result = json.loads(before.partition("rc=2")[2])
    assert result["status"] == "infra_error" and result["kind"] == "disk_full" and result["score"] is None
    assert after.startswith("\nrc=0\n"), after
    result = json.loads(after[after.index("{") : after.rindex("}") + 1])
    assert result["status"] == ("no_submission" if agent == "fill_once" else "unloadable")
    assert ".reserve.tmp" not in after


def test_recorded_as_disk_full_although_nothing_can_be_written(
    base_model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """A stage fails for want of room: the room that was kept is enough for the record."""
    if os.geteuid() != 0:
        pytest.skip("mounting a small disk needs root")
    code = """
import os, sys
from pathlib import Path
from posttrainbench.cli import main
from posttrainbench.pipeline import run
def fill(context):
    with (context.run.path / "filler").open("wb", buffering=0) as file:
        while True:
            file.write(bytes(4096))
run._STAGES["audit"] = fill
main(sys.argv[1:])
"""
    (tmp_path / "results").mkdir()
    (tmp_path / "code.py").write_text(code)
    command = " ".join(arguments(base_model, "half_model"))
    done = subprocess.run(
        [
            *("unshare", "--mount", "bash", "-c"),
            f"mount -t tmpfs -o size=160m none results; {sys.executable} code.py {command}; cat results/adhoc/*/r*.json",
        ],
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        check=False,
        timeout=120,
    )
    result, _, record = done.stdout.partition("\n}\n")
    found = json.loads(result[result.index("{") :] + "}")
    assert found["status"] == "infra_error" and found["kind"] == "disk_full" and found["stage"] == "audit"
    assert json.loads(record)["stages"]["audit"]["status"] == "failed"
    assert done.stderr.startswith("ptb: the disk is full: ") and done.stderr.count("\n") == 1


def test_temporary_directories_are_removed_in_good_order(base_model: Path, place: Place) -> None:
    """Nothing is left by runs that end well, nor by those that cannot begin."""
    done = place.ptb(*arguments(base_model, "half_model"))
    assert done.returncode == 0 and place.temporary == []
    done = place.ptb(*arguments(base_model, "half_model"), "--gpus", "77")
    assert done.returncode == 2 and place.temporary == []
    with pytest.raises(SystemExit):
        main(["resume", str(place.root)])

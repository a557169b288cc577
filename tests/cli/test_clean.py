"""`ptb clean`: lists first, removes with --yes, and never what a record, a resume or another audit needs."""

from __future__ import annotations

import fcntl
import json
import os
import shutil
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from posttrainbench.cli import main
from posttrainbench.disk import DEFAULT, measure, parts_of_run
from posttrainbench.files import write_json
from posttrainbench.launch.store import CellDirectory
from posttrainbench.pipeline.run_dir import STAGES
from posttrainbench.scratch import Scratch, in_use
from tests.conftest import AGENTS

ALWAYS = (
    "run.json",
    "result.json",
    "prompt.md",
    "trace/raw.jsonl",
    "gateway/hub.jsonl",
    "audit/verdict.json",
    "evaluation/metrics.json",
    "monitor.jsonl",
)


@pytest.fixture(autouse=True)
def own_machine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Own TMPDIR and caches, so that nothing of the real ones is listed."""
    place = tmp_path / "machine"
    for name in ("tmp", "cache", "agents"):
        (place / name).mkdir(parents=True)
    monkeypatch.setattr("tempfile.tempdir", str(place / "tmp"))
    monkeypatch.setenv("TMPDIR", str(place / "tmp"))
    monkeypatch.setenv("PTB_CACHE", str(place / "cache"))
    monkeypatch.setenv("PTB_AGENTS_DIR", str(place / "agents"))
    monkeypatch.setattr("posttrainbench.disk.machine.stale_groups", lambda: iter(()))  # those of other tests
    monkeypatch.setattr("posttrainbench.disk.machine.ended_containers", lambda: iter(()))
    return place


def write(path: Path, size: int = 10) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(os.urandom(size))
    return path


def make_run(path: Path, *, done: tuple[str, ...] = STAGES) -> Path:
    """A run directory with something of every kind in it."""
    path.mkdir(parents=True)
    for name in ALWAYS:
        write(path / name)
    stages = {name: {"status": "done"} for name in done}
    write_json(path / "run.json", {"format": 1, "id": path.name, "group": path.parent.name, "stages": stages})
    write_json(path / "result.json", {"format": 1, "status": "scored"})
    write(path / ".job/home/big", 300_000)
    write(path / ".evaluate-x/in/request.json")
    write(path / "workspace/task/train.py", 50_000)
    write(path / "final_model/model.safetensors", 200_000)
    write(path / "gateway/hub-files/abc.jsonl", 70_000)
    write(path / "trace/interrupted-1.jsonl", 5_000)
    write(path / "gateway-interrupted/1/hub.jsonl", 5_000)
    return path


def names(root: Path) -> set[str]:
    return {str(path.relative_to(root)) for path in root.rglob("*")}


def clean(capsys: pytest.CaptureFixture[str], *arguments: str | Path) -> tuple[int, dict[str, Any]]:
    """Exit code and report."""
    code = 0
    try:
        main(["clean", *map(str, arguments), "--json"])
    except SystemExit as ended:
        code = int(str(ended.code))
    report: dict[str, Any] = json.loads(capsys.readouterr().out)
    return code, report


def removed(report: dict[str, Any], root: Path) -> dict[str, str]:
    return {str(Path(row["path"]).relative_to(root)): row["what"] for row in report["items"]}


def test_lists_first_and_then_removes_exactly_that(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run = make_run(tmp_path / "results/adhoc/one")
    before = names(run)
    code, report = clean(capsys, "--results", tmp_path / "results")
    assert code == 0 and report["dry_run"] and names(run) == before
    assert removed(report, run) == {".job": "job", ".evaluate-x": "job"}
    assert 300_000 <= report["freed_bytes"] < 400_000
    code, report = clean(capsys, "--results", tmp_path / "results", "--yes")
    assert code == 0 and all(row["removed"] for row in report["items"]) and not report["errors"]
    assert before - names(run) == {name for name in before if name.startswith((".job", ".evaluate-x"))}
    assert clean(capsys, "--results", tmp_path / "results", "--yes")[1]["items"] == []


def test_the_rest_only_by_name_and_records_never(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run = make_run(tmp_path / "results/adhoc/one")
    every = "job,superseded,leftovers,caches,interrupted,hub-files,snapshots,submissions"
    code, report = clean(capsys, run, "--what", every, "--yes")
    assert code == 0
    assert removed(report, run) == {
        ".job": "job",
        ".evaluate-x": "job",
        "trace/interrupted-1.jsonl": "interrupted",
        "gateway-interrupted": "interrupted",
        "gateway/hub-files": "hub-files",
        "workspace": "snapshots",
        "final_model": "submissions",
    }
    left = {name for name in names(run) if (run / name).is_file()}
    assert left == {*ALWAYS, ".lock", "cleaned.json"}
    gone = json.loads((run / "cleaned.json").read_text())
    assert set(gone) == {"snapshots", "submissions", "hub-files"}


def test_unfinished_and_running_runs_keep_theirs(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    results = tmp_path / "results"
    unsolved = make_run(results / "adhoc/unsolved", done=("prepare",))
    uncollected = make_run(results / "adhoc/uncollected", done=("prepare", "solve"))
    running = make_run(results / "adhoc/running", done=("prepare",))
    every = ("--what", "job,hub-files,snapshots,submissions,interrupted", "--yes")
    with (running / ".lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        code, report = clean(capsys, results, *every)
        assert code == 0 and report["items"] == []
        reasons = {(Path(row["path"]).name, row["reason"].partition(":")[0]) for row in report["kept"]}
        assert (
            ("running", "job") in reasons
            and ("unsolved", "job") in reasons
            and ("uncollected", "submissions") in reasons
        )
        code, report = clean(capsys, results, *every, "--include-unfinished")
    assert {name for name in removed(report, results) if "interrupted" not in name} == {
        "adhoc/unsolved/.job",
        "adhoc/unsolved/.evaluate-x",
    }
    assert (uncollected / ".job/home/big").exists(), "the only copy of the agent's work"
    assert (running / ".job/home/big").exists() and (running / "trace/interrupted-1.jsonl").exists()
    assert (unsolved / "final_model").exists() and not (unsolved / ".job").exists()


def test_superseded_attempts_of_a_sweep(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Once a cell has its result, its other attempts shrink to what tells their story."""
    results = tmp_path / "results"
    cell = CellDirectory(results / "sweep", "key")
    old = make_run(cell.attempts / "old", done=("prepare", "solve"))
    retired = make_run(cell.work / "retired" / "1")
    open_cell = CellDirectory(results / "sweep", "open")
    waiting = make_run(open_cell.attempts / "waiting", done=("prepare", "solve"))
    rows = clean(capsys, results, "--what", "job,superseded")[1]["items"]
    assert rows and all("retired" in row["path"] for row in rows), "nothing of attempts that may be gone on with"
    result = make_run(cell.result)
    with cell.locked():
        assert not any("/old" in row["path"] for row in clean(capsys, results, "--what", "superseded")[1]["items"]), (
            "a process holds the cell"
        )
    write_json(cell.work / "claim.json", {"host": "another/boot", "token": "x", "beat": time.time()})
    assert not any("/old" in row["path"] for row in clean(capsys, results, "--what", "superseded")[1]["items"]), (
        "a node elsewhere holds it"
    )
    write_json(cell.work / "claim.json", {"host": "another/boot", "token": "x", "beat": 0, "released": True})
    assert clean(capsys, results, "--yes")[0] == 0
    for run in (old, retired):
        left = {name for name in names(run) if (run / name).is_file()}
        stories = {"trace/interrupted-1.jsonl", "gateway-interrupted/1/hub.jsonl"}
        assert left == {*ALWAYS, *stories, ".lock", "cleaned.json"}
    assert (waiting / ".job/home/big").exists() and (result / "final_model").exists() and not (result / ".job").exists()


def test_a_result_that_is_a_link_to_its_attempt_stays(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    sweep = tmp_path / "results/sweep"
    only = make_run(sweep / ".sweep/cells/cell/attempts/run")
    (sweep / "cell").symlink_to(only)
    clean(capsys, sweep, "--yes")
    assert (only / "final_model").exists() and (only / "workspace").exists()


def test_age(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    results = tmp_path / "results"
    old, young = make_run(results / "adhoc/old"), make_run(results / "adhoc/young")
    then = time.time() - 8 * 86_400
    for name in ("run.json", "result.json"):
        os.utime(old / name, (then, then))
    _, report = clean(capsys, results, "--older-than", "7d", "--yes")
    assert set(removed(report, results)) == {"adhoc/old/.job", "adhoc/old/.evaluate-x"}
    assert (young / ".job").exists()


def test_links_lead_nowhere(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Links of the agent's, links in place of parts, links to other runs: what they lead to stays."""
    outside = make_run(tmp_path / "outside/adhoc/other")
    before = names(outside)
    results = tmp_path / "results"
    run = make_run(results / "adhoc/one")
    (run / ".job/home/link").symlink_to(outside)
    (run / ".job/loop").symlink_to(".")
    (results / "linked").symlink_to(outside.parent)
    (results / "adhoc/linked").symlink_to(outside)
    other = make_run(results / "adhoc/two")
    for part in (".job", "gateway"):
        subprocess.run(["rm", "-r", str(other / part)], check=True)
        (other / part).symlink_to(outside / part)
    code, report = clean(capsys, results, "--what", "job,hub-files,snapshots", "--yes")
    assert code == 0, report
    assert names(outside) == before
    assert not (run / ".job").exists() and not os.path.lexists(other / ".job")
    assert (results / "linked").is_symlink() and (other / "gateway").is_symlink()


def test_deep_and_closed_trees_go_too(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run = make_run(tmp_path / "results/adhoc/one")
    script = "import os\nfor i in range(1500):\n os.mkdir('d'*20); os.chdir('d'*20)\nopen('f','w').write('x'*100000)\n"
    subprocess.run([sys.executable, "-c", script], cwd=run / ".job/home", check=True)
    (run / ".job/home/closed").mkdir(mode=0)
    assert measure([run / ".job"]).held > 100_000 + 1500 * 4096 + 300_000
    code, report = clean(capsys, run, "--yes")
    assert code == 0 and not (run / ".job").exists() and report["freed_bytes"] > 6_000_000


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can make files of another user's")
def test_other_users_keep_theirs(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    results = tmp_path / "results"
    run = make_run(results / "adhoc/theirs")
    os.chown(run, 12345, 12345)
    mine = make_run(results / "adhoc/mine")
    os.chown(mine / "workspace", 12345, 12345)
    code, report = clean(capsys, results, "--what", "job,snapshots", "--yes")
    assert (run / ".job").exists() and (run / "workspace").exists() and not (mine / ".job").exists()
    assert any("another user" in row["reason"] for row in report["kept"])
    assert code == 1 and "user 12345" in report["errors"][0] and (mine / "workspace").exists()


def test_hard_links_count_once(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """While a run is collected, weights have a name in .job and one in final_model: removing one gives nothing back."""
    run = make_run(tmp_path / "results/adhoc/one")
    weights = write(run / ".job/home/task/final_model/w", 1_000_000)
    os.link(weights, run / "final_model/w")
    _, report = clean(capsys, run)
    assert 300_000 <= report["freed_bytes"] < 1_000_000
    _, report = clean(capsys, run, "--what", "job,submissions")
    assert report["freed_bytes"] > 1_500_000
    parts = parts_of_run(run)
    assert parts["total"] < sum(size for name, size in parts.items() if name != "total")


def test_leftovers_of_the_dead_but_not_of_the_living(
    tmp_path: Path, own_machine: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    place = own_machine / "tmp"
    alive = Scratch("probe")
    code = "import os, posttrainbench.scratch as s; print(s.Scratch('grade').path); os.kill(os.getpid(), 9)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    dead = Path(done.stdout.strip())
    old = place / "ptb-probe-abcd_123"
    write(old / "work/f")
    then = time.time() - 2 * 86_400
    for path in (old / "work", old):
        os.utime(path, (then, then))
    young = write(place / "ptb-probe-abcd_124/f").parent
    users = write(place / "ptb-notes/f").parent
    os.utime(users, (then, then))
    results = tmp_path / "results"
    draft = make_run(results / "adhoc/.20260101T000000-x.tmp")
    (draft / ".lock").touch()
    busy = make_run(results / "adhoc/.20260101T000000-y.tmp")
    try:
        with (busy / ".lock").open("w") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            code_, report = clean(capsys, "--results", results, "--yes")
        assert code_ == 0
        assert {Path(row["path"]) for row in report["items"]} == {dead, old, draft}
        assert alive.path.exists() and young.exists() and users.exists() and busy.exists()
        assert not dead.exists() and not old.exists() and not draft.exists()
    finally:
        alive.close()


def test_caches(own_machine: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    """Old versions of CLIs unless a process uses them; never the pinned one."""
    from posttrainbench.scaffolds import install

    pinned = install.place(install.entry("codex-cli"))
    old, used = pinned.with_name("0.0.1-linux-x64"), pinned.with_name("0.0.2-linux-x64")
    for path in (pinned, old, used):
        write(path / "installation.json")
    process = subprocess.Popen(["sleep", "60"], cwd=used)
    try:
        assert clean(capsys, "--what", "caches")[1]["items"] == [], "a week old at least, by default"
        code, report = clean(capsys, "--what", "caches", "--older-than", "0s", "--yes")
    finally:
        process.kill()
        process.wait()
    assert code == 0 and [row["path"] for row in report["items"]] == [str(old)]
    assert pinned.exists() and used.exists() and not old.exists()


def test_hidden_directories_of_the_users_own_stay(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    results = tmp_path / "results"
    make_run(results / "adhoc/one")
    own = [write(results / name / "thesis.txt") for name in ("adhoc/.notes.tmp", ".cache.tmp", "other/.x.tmp")]
    for path in own:
        os.utime(path.parent, (1, 1))
    clean(capsys, results, "--what", ",".join(DEFAULT), "--include-unfinished", "--yes")
    assert all(path.exists() for path in own) and not (results / "adhoc/one/.job").exists()


def test_names_cannot_steer_the_terminal(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    make_run(tmp_path / "results" / "a\x1b[2J\nnothing to remove")
    main(["clean", str(tmp_path / "results"), "--what", "job"])
    printed = capsys.readouterr().out
    assert "\x1b" not in printed and "\\x1b[2J\\x0anothing" in printed


@pytest.mark.skipif(os.geteuid() != 0 or shutil.which("bwrap") is None, reason="mounts a file system; needs bubblewrap")
def test_what_a_sandbox_has_mounted_is_in_use(tmp_path: Path) -> None:
    """Whatever file system it is on, and whatever its path: the kernel tells paths within file systems, escaped."""
    volume = tmp_path / "volume of agents"
    volume.mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "none", volume], check=True)
    try:
        for place in (volume / "codex/1.0", tmp_path / "with space\\and more"):
            place.mkdir(parents=True)
            binds = ["--ro-bind", "/", "/", "--ro-bind", place, "/opt"]
            with subprocess.Popen(
                ["bwrap", *binds, "sh", "-c", "echo up; exec sleep 60"], stdout=subprocess.PIPE
            ) as box:
                assert box.stdout is not None and box.stdout.readline() == b"up\n"
                try:
                    assert place in set(in_use())
                finally:
                    box.kill()
    finally:
        subprocess.run(["umount", "--lazy", volume], check=True)


@pytest.mark.skipif(os.geteuid() != 0, reason="only a root harness makes copies")
def test_shared_copies(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    source = write(tmp_path / "weights", 100_000)
    code = "import sys, pathlib, posttrainbench.pipeline.copies as c; c.Copies().readable(pathlib.Path(sys.argv[1]))"
    subprocess.run([sys.executable, "-c", code, str(source)], check=True)
    assert clean(capsys, "--what", "caches")[1]["items"] == []
    _, report = clean(capsys, "--what", "caches", "--older-than", "0s", "--yes")
    assert len(report["items"]) == 1 and report["freed_bytes"] >= 100_000
    assert not Path(report["items"][0]["path"]).exists()


def test_named_targets_are_not_the_whole_machine(
    tmp_path: Path, own_machine: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = make_run(tmp_path / "results/adhoc/one")
    write(own_machine / "tmp/ptb-sandbox-dead/f")
    assert set(removed(clean(capsys, run)[1], run)) == {".job", ".evaluate-x"}
    assert len(clean(capsys, run, "--what", "job,leftovers")[1]["items"]) == 3
    assert len(clean(capsys, "--results", tmp_path / "results")[1]["items"]) == 3
    assert len(clean(capsys, "adhoc", "--results", tmp_path / "results")[1]["items"]) == 2


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["nowhere"], "there is no directory"),
        (["--what", "everything"], "known: job"),
        (["--what", "all"], "name the kinds"),
        (["--older-than", "soon"], "is no age"),
    ],
)
def test_wrong_input(arguments: list[str], said: str, capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    with pytest.raises(SystemExit) as ended:
        main(["clean", *arguments, "--results", str(tmp_path)])
    assert ended.value.code == 2 and said in capsys.readouterr().err


def test_what_was_removed_is_not_judged_again(
    base_model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """A real run: its result and page stay, and an audit without evidence is refused instead of coming out clean."""
    out = tmp_path / "results"
    agent = f"scripted:{AGENTS / 'half_model.py'}"
    main(
        [
            "run",
            "--agent",
            agent,
            "--model",
            str(base_model),
            "--benchmark",
            "smoke-math",
            "--hours",
            "0.02",
            "--out",
            str(out),
        ]
    )
    run = next(out.glob("adhoc/*"))
    capsys.readouterr()
    main(["show", str(run)])
    shown = capsys.readouterr().out
    assert "disk       " in shown and "final_model" in shown.partition("disk ")[2]
    result = (run / "result.json").read_bytes()
    main(["clean", str(run)])
    assert "nothing to remove" in capsys.readouterr().out
    main(["clean", str(run), "--what", "snapshots,submissions", "--yes"])
    assert "freed" in capsys.readouterr().out
    for command in ("audit", "evaluate"):
        with pytest.raises(SystemExit) as ended:
            main([command, str(run)])
        assert ended.value.code == 2 and "`ptb clean` removed the" in capsys.readouterr().err
    assert (run / "result.json").read_bytes() == result
    main(["show", str(run)])
    main(["resume", str(run)])
    assert (run / "result.json").read_bytes() == result

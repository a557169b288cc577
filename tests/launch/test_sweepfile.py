"""Sweep files: what is wrong with them is said with line and key, and nothing is started."""

from __future__ import annotations

import os
import re
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from posttrainbench.errors import ConfigurationError
from posttrainbench.launch import claim as claims
from posttrainbench.launch.claim import Claim, claimed, read_claim
from posttrainbench.launch.settings import evaluation_gpus, evaluation_place
from posttrainbench.launch.store import CellDirectory, SweepDirectory
from posttrainbench.launch.sweepfile import Sweep, load
from tests.launch.support import Lab, results

GOOD = """\
name = "good"
agents = ["scripted:brief.py", "scripted:idle"]
base_models = ["ptb-tiny-base"]
benchmarks = ["smoke-math"]
repeats = 2
notify = ["/bin/true"]

[run]
hours = 0.5
gpus = 0

[retry]
network = 2

[launcher]
kind = "local"
slots = 2
"""


def written(place: Path, text: str) -> Path:
    (place / "brief.py").write_text("print(1)\n")
    (place / "s.toml").write_text(text)
    return place / "s.toml"


def test_agents_take_turns(tmp_path: Path) -> None:
    """First runs of all agents come before anybody's second."""
    sweep = load(written(tmp_path, GOOD))
    assert [(cell.agent, cell.repeat) for cell in sweep.cells] == [
        ("scripted:brief", 1), ("scripted:idle", 1), ("scripted:brief", 2), ("scripted:idle", 2),
    ]  # fmt: skip
    assert sweep.root == tmp_path / "results" / "good"
    assert {cell.spec.hours for cell in sweep.cells} == {0.5}


def test_paths_are_relative_to_the_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Jobs run elsewhere than where the sweep is started."""
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    monkeypatch.chdir(elsewhere)
    options = 'data_dir = "data"\nnetwork = "lab.toml"\ninstruct = "./it"\nsandbox = "apptainer"\nimage = "image.sif"\n[retry]'
    text = GOOD.replace("[retry]", options).replace('"ptb-tiny-base"', '"./models/base", "org/base"')
    specs = [cell.spec for cell in load(written(tmp_path, text)).cells if cell.repeat == 1]
    assert {spec.base_model for spec in specs} == {str(tmp_path / "models/base"), "org/base"}
    assert {(spec.data_dir, spec.network, spec.instruct, spec.image) for spec in specs} == {
        (str(tmp_path / "data"), str(tmp_path / "lab.toml"), str(tmp_path / "it"), str(tmp_path / "image.sif"))
    }
    named = GOOD.replace("[retry]", 'network = "guarded"\ninstruct = "org/it"\nimage = "localhost/image:1"\n[retry]')
    spec = load(written(tmp_path, named)).cells[0].spec
    assert (spec.network, spec.instruct, spec.image) == ("guarded", "org/it", "localhost/image:1")


@pytest.mark.parametrize(
    ("old", "new", "said"),
    [
        ('"scripted:idle"]', '"scripted:idel"]', r"s.toml:2: agent: .*idel"),
        ('"scripted:idle"]', '"nonsense:x"]', r"s.toml:2: agent: .*nonsense"),
        ('"scripted:idle"]', '"scripted:brief.py"]', r"s.toml:2: agents: two cells are the same: .*r1; use repeats"),
        ('"scripted:idle"]', "7]", r"agents\[1\]: is to be a table"),
        ('["ptb-tiny-base"]', '["ptb-tiny-bass"]', r"s.toml:3: base_models: .*ptb-tiny-bass.*ptb-tiny-base"),
        ('["smoke-math"]', '["smoke-maths"]', r"s.toml:4: benchmarks: .*smoke-maths"),
        ('["smoke-math"]', "[]", r"s.toml:4: benchmarks: is missing"),
        ("repeats = 2", "repeats = 0", r"s.toml:5: repeats: is to be a whole number from 1"),
        ("repeats = 2", "repeats = true", r"s.toml:5: repeats: is to be a whole number"),
        ("repeats = 2", "repaets = 2", r"s.toml:5: repaets: there is no such key; known: .*repeats"),
        ("hours = 0.5", 'hours = "long"', r"s.toml:9: run.hours: is to be float, not 'long'"),
        ("hours = 0.5", "hours = 1e9", r"s.toml:\d+: run: --hours"),
        ("hours = 0.5", "hours = nan", r"s.toml:\d+: run: --hours"),
        ("hours = 0.5", "houres = 1", r"s.toml:9: run.houres: there is no such key"),
        ("gpus = 0", "gpus = -1", r"s.toml:10: run.gpus: is to be a whole number from 0"),
        ("[run]\nhours = 0.5\ngpus = 0", "", r"at all|gpus"),
        ("network = 2", "networks = 2", r"s.toml:13: retry.networks: there is no such key"),
        ('"local"', '"pbs"', r"s.toml:16: launcher.kind: is to be one of local, slurm, htcondor"),
        ("slots = 2", "partition = 'x'", r"s.toml:17: launcher.partition: there is no such key"),
        ("slots = 2", "slots = 1.5", r"s.toml:17: launcher.slots"),
        ("slots = 2", "split = true", r"s.toml:17: launcher.split: only kind = .slurm. .*remove it for local"),
        ('name = "good"', 'name = "../x"', r"s.toml:1: name: "),
        ('name = "good"', "name = ", r"is not TOML: .*line 1"),
        ('["/bin/true"]', "[1]", r"s.toml:6: notify: is to be a list of texts"),
    ],
)
def test_wrong_files(tmp_path: Path, old: str, new: str, said: str) -> None:
    assert old in GOOD
    path = written(tmp_path, GOOD.replace(old, new))
    if said == r"at all|gpus":
        assert {cell.gpus for cell in load(path).cells} == {1}
        return
    with pytest.raises(ConfigurationError, match=said) as caught:
        load(path)
    assert "\n" not in str(caught.value)


SPLIT = GOOD.replace('"local"\nslots = 2', '"slurm"\nsplit = true\n[launcher.evaluation]\npartition = "cpu"\nhours = 2')


@pytest.mark.parametrize(
    ("old", "new", "said"),
    [
        ("split = true\n", "", r"s.toml:17: launcher.evaluation: .*needs launcher.split = true"),
        ("split = true", "split = 1", r"s.toml:17: launcher.split: is to be true or false"),
        ("hours = 2", "hours = 0", r"s.toml:20: launcher.evaluation.hours: is to be a number > 0"),
        ("hours = 2", "gpus = -1", r"s.toml:20: launcher.evaluation.gpus: is to be a whole number from 0"),
        (
            "hours = 2",
            "margin_h = 1",
            r"s.toml:20: launcher.evaluation.margin_h: there is no such key; known: partition",
        ),
        ('"cpu"', "7", r"s.toml:19: launcher.evaluation.partition: is to be text"),
        ("[launcher.evaluation]", "evaluation = 3\n[x]", r"s.toml:19: x: there is no such key"),
        ('"slurm"', '"htcondor"', r"s.toml:17: launcher.split: only kind = .slurm. .*remove it for htcondor"),
        ('["ptb-tiny-base"]', '["Qwen3-1.7B-Base"]', ""),
    ],
)
def test_wrong_evaluation_tables(tmp_path: Path, old: str, new: str, said: str) -> None:
    assert old in SPLIT
    path = written(tmp_path, SPLIT.replace(old, new))
    if not said:
        load(path)  # without GPU as a whole: that is what was asked for
        path = written(
            tmp_path, SPLIT.replace(old, new).replace("gpus = 0", "gpus = 4").replace("hours = 2", "gpus = 0")
        )
        said = r"s.toml:20: launcher.evaluation.gpus: the evaluation of Qwen3-1.7B-Base needs a GPU; give it 1"
    with pytest.raises(ConfigurationError, match=said) as caught:
        load(path)
    assert "\n" not in str(caught.value)


def test_evaluation_jobs_are_like_the_agents_but_for_what_is_said(tmp_path: Path) -> None:
    """One GPU unless told otherwise, never more than the agent; its type is not carried into another partition."""
    more = 'split = true\naccount = "a"\ncpus = 16\noptions = ["--nice"]\ngpu_type = "h100"'
    launcher = load(written(tmp_path, SPLIT.replace("split = true", more))).launcher
    assert evaluation_place(launcher) == {"partition": "cpu", "hours": 2, "account": "a", "cpus": 16}
    assert [evaluation_gpus(launcher, gpus) for gpus in (0, 1, 8)] == [0, 1, 1]
    launcher = load(
        written(tmp_path, SPLIT.replace("split = true", more).replace('partition = "cpu"', "gpus = 2"))
    ).launcher
    assert evaluation_place(launcher)["gpu_type"] == "h100"
    assert [evaluation_gpus(launcher, gpus) for gpus in (0, 1, 8)] == [0, 1, 2]
    assert load(written(tmp_path, SPLIT.partition("[launcher.evaluation]")[0])).launcher["evaluation"] == {}


def test_no_file(tmp_path: Path) -> None:
    with pytest.raises(ConfigurationError, match=r"there is no sweep file .*none.toml"):
        load(tmp_path / "none.toml")


VALUES = [
    "0",
    "-1",
    "1.5",
    "true",
    '"x"',
    '""',
    "[]",
    "[1]",
    '["x"]',
    "{}",
    "{x = 1}",
    "[[1]]",
    "nan",
    "1979-05-27",
    "[{}]",
]


def test_any_type_anywhere_is_one_line(tmp_path: Path) -> None:
    """Each value of a file, and each key of an agent's table, takes every type in turn: a sweep, or one clear line."""
    tables = GOOD.replace(
        'agents = ["scripted:brief.py", "scripted:idle"]\n',
        'agents = [{agent = "scripted:brief.py", model = "m", effort = "high", helper_models = [], reprompt = false, '
        "subscription = false, env = {}, base_models = ['ptb-tiny-base'], benchmarks = ['smoke-math'], repeats = 1, run = {}}]\n",
    )
    keys = [*(f"{name} = " for name in ("name", "agents", "base_models", "benchmarks", "repeats", "notify", "hours", "kind", "slots")),
            *(f"{name} = " for name in ("agent", "model", "effort", "helper_models", "reprompt", "subscription", "env", "run"))]  # fmt: skip

    tried = 0
    for key in keys:
        for value in VALUES:
            for source in (GOOD, tables):
                text, count = re.subn(
                    rf"(?<![a-z_]){re.escape(key)}(\"[^\"]*\"|'[^']*'|\[[^\n]*?\](?=[,\n])|\{{\}}|[0-9a-z.]+)",
                    f"{key}{value}",
                    source,
                    count=1,
                )
                if not count:
                    continue
                tried += 1
                path = written(tmp_path, text)
                try:
                    assert isinstance(load(path), Sweep)
                except ConfigurationError as error:
                    assert "\n" not in str(error), (key, value)
    assert tried > 250


def test_more_gpus_than_there_are(lab: Lab) -> None:
    """Both for one run and for all slots."""
    from posttrainbench import hardware

    there = len(hardware.detect().gpus)
    written(lab.place, GOOD.replace("gpus = 0", f"gpus = {there + 1}"))
    said = lab.sweep("start", "s.toml", code=2)
    assert said.startswith(f"ptb: a run needs {there + 1} GPU")
    assert not (lab.place / "results").exists()
    assert "problem: a run needs" in lab.sweep("plan", "s.toml", code=1)


@pytest.mark.parametrize(
    ("old", "new", "said"),
    [
        ('"scripted:idle"]', '"scripted:idel"]', "s.toml:2: agent: "),
        ('"scripted:idle"]', '"scripted:idle", "scripted:idle"]', "s.toml:2: agents: two cells are the same: "),
        ('"scripted:brief.py"', '"scripted:gone.py"', "s.toml:2: agent: "),
    ],
)
@pytest.mark.parametrize("kind", ["local", "slurm"])
def test_nothing_of_a_wrong_file_is_started(
    lab: Lab, capsys: pytest.CaptureFixture[str], kind: str, old: str, new: str, said: str
) -> None:
    """One line, exit code 2, nothing on the disk, and no engine is asked: for each command that reads the file."""
    from posttrainbench.cli import main

    path = written(lab.place, GOOD.replace(old, new).replace('"local"\nslots = 2', f'"{kind}"'))
    for command in ("plan", "start"):
        with pytest.raises(SystemExit) as ended:
            main(["sweep", command, str(path)])
        assert ended.value.code == 2
        told = capsys.readouterr()
        assert told.err.startswith(f"ptb: {lab.place}/{said}")
        assert (told.out, len(told.err.splitlines())) == ("", 1)
    assert not (lab.place / "results").exists()


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A tmpfs of 8 MiB."""
    place = tmp_path / "disk"
    place.mkdir()
    command = ["mount", "-t", "tmpfs", "-o", "size=8m", "none", str(place)]
    if os.geteuid() != 0 or subprocess.run(command, capture_output=True, check=False).returncode != 0:
        pytest.skip("only root can mount a small disk")
    yield place
    subprocess.run(["umount", "-l", str(place)], check=True)


def test_a_full_and_a_read_only_disk(lab: Lab, small_disk: Path) -> None:
    """One line, and nothing on the disk."""
    written(lab.place, f'results = "{small_disk}"\n' + GOOD)
    said = lab.sweep("start", "s.toml", code=2)
    assert said.startswith(f"ptb: too little disk space for results in {small_disk}")
    assert len(said.splitlines()) == 1
    assert list(small_disk.iterdir()) == []
    subprocess.run(["mount", "-o", "remount,ro", str(small_disk)], check=True)
    said = lab.sweep("start", "s.toml", code=2)
    assert said.startswith(f"ptb: the results directory {small_disk} is not writable")
    assert list(small_disk.iterdir()) == []


def test_a_disk_that_fills_up_or_turns_read_only_under_a_sweep(lab: Lab, small_disk: Path) -> None:
    """Each command says so in one line and starts nothing; with room again it goes on."""
    subprocess.run(["mount", "-o", "remount,size=2g", str(small_disk)], check=True)
    written(lab.place, f'results = "{small_disk}"\n{GOOD}')
    root = SweepDirectory.create(load(lab.place / "s.toml")).root
    subprocess.run(["mount", "-o", "remount,ro", str(small_disk)], check=True)
    for command, expected in (("resume", f"ptb: the results directory {root} is not writable"),
                              ("cancel", f"ptb: {root}/.sweep/lock: Read-only file system")):  # fmt: skip
        said = lab.sweep(command, root, code=2)
        assert (said.startswith(expected), len(said.splitlines())) == (True, 1), said
    assert "4 open" in lab.sweep("status", root)
    subprocess.run(["mount", "-o", "remount,rw,size=1m", str(small_disk)], check=True)
    with pytest.raises(OSError, match="No space"):
        (small_disk / "filler").write_bytes(bytes(2**20))
    said = lab.sweep("resume", root, code=2)
    assert said.startswith(f"ptb: too little disk space for results in {root}: 0 MiB free"), said
    assert len(said.splitlines()) == 1
    assert [path.name for path in (root / ".sweep").iterdir()] == ["plan.json"]
    assert "4 open" in lab.sweep("status", root)
    (small_disk / "filler").unlink()
    subprocess.run(["mount", "-o", "remount,size=2g", str(small_disk)], check=True)
    lab.sweep("resume", root, "--wait")
    assert set(results(root).values()) == {"no_submission"}


def test_slurm_that_is_not_installed(lab: Lab) -> None:
    """For a controller that does not answer see test_slurm.py."""
    lab.env["PATH"] = str(lab.place)
    written(lab.place, GOOD.replace('"local"\nslots = 2', '"slurm"'))
    said = lab.sweep("start", "s.toml", code=2)
    assert said == "ptb: Slurm: sinfo is not installed here; run this on a node that may submit jobs\n"
    assert not (lab.place / "results").exists()


def test_a_changed_cell_needs_a_new_name(lab: Lab) -> None:
    """A sweep that has begun cannot turn into another one under the same name; it can grow."""
    written(lab.place, GOOD)
    lab.sweep("start", "s.toml", "--wait")
    written(lab.place, GOOD.replace("hours = 0.5", "hours = 0.6"))
    said = lab.sweep("start", "s.toml", code=2)
    assert "was started with other settings for scripted-brief" in said
    written(lab.place, GOOD.replace("repeats = 2", "repeats = 3"))
    assert lab.sweep("start", "s.toml", "--wait").startswith("2 submitted, 0 already active, 4 over")


def test_claims_of_other_hosts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A claim that moves is respected, one that stands still is taken over, and who lost his claim finds out."""
    monkeypatch.setattr(claims, "STALE_S", 0.6)
    cell = CellDirectory(tmp_path, "a")
    cell.work.mkdir(parents=True)
    file = cell.work / "claim.json"
    with claimed(cell) as first:
        assert first is not None and first.alone
    monkeypatch.setattr(claims, "host", lambda: "other/boot")
    with claimed(cell) as second:
        assert second is not None and second.alone  # it had let go
        monkeypatch.setattr(claims, "host", lambda: "third/boot")
        with pytest.MonkeyPatch.context() as patch:
            # on another host this one's lock is not seen
            patch.setattr(CellDirectory, "locked", _unlocked)
            with claimed(cell) as third:
                assert third is not None and not third.alone
                second.beat()
                assert second.lost and not third.lost
                moving = Claim(file, alone=True)

                def still() -> bool:
                    moving.take()
                    return False

                monkeypatch.setattr(claims, "host", lambda: "fourth/boot")
                with claimed(cell, cancelled=still) as fourth:
                    assert fourth is None
    assert read_claim(file)["token"] == moving._mine()["token"]
    assert [event["event"] for event in cell.events()] == ["taken over"]


@contextmanager
def _unlocked(self: CellDirectory) -> Iterator[bool]:
    yield True

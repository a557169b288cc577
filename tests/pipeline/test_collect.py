"""What is taken from an agent's directories: links resolved by our rules, odd files refused, budgets kept."""

from __future__ import annotations

import os
from pathlib import Path, PurePosixPath

import numpy as np
import pytest

from posttrainbench.files import remove_tree
from posttrainbench.pipeline.collect import Places, Taken, take_snapshot, take_submission
from tests.models import save_weights


@pytest.fixture
def places(tmp_path: Path) -> Places:
    """A home, a /tmp and a base model, with a secret of the host's beside them."""
    for name in ("job/home/task/final_model", "job/tmp", "models"):
        (tmp_path / name).mkdir(parents=True)
    (tmp_path / "secret").write_text("host secret")
    (tmp_path / "models" / "weights").write_text("base weights")
    return Places(
        {PurePosixPath("/home/agent"): tmp_path / "job/home", PurePosixPath("/tmp"): tmp_path / "job/tmp"},
        {PurePosixPath("/models/base"): tmp_path / "models"},
    )


def take(places: Places, tmp_path: Path) -> tuple[Taken, Path]:
    target = tmp_path / "taken"
    inside = PurePosixPath("/home/agent/task/final_model")
    return take_submission(inside, places, target, own=tmp_path / "job"), target


def model(tmp_path: Path) -> Path:
    return tmp_path / "job/home/task/final_model"


def test_links_inside_are_resolved(places: Places, tmp_path: Path) -> None:
    (tmp_path / "job/home/checkpoint").mkdir()
    (tmp_path / "job/home/checkpoint/w").write_text("trained")
    (model(tmp_path) / "a").symlink_to("/home/agent/checkpoint/w")
    (model(tmp_path) / "b").symlink_to("../../checkpoint/w")
    (model(tmp_path) / "c").symlink_to("/home/agent/checkpoint")
    (model(tmp_path) / "d").symlink_to("/models/base/weights")
    taken, target = take(places, tmp_path)
    assert not taken.refused
    assert (target / "a").read_text() == (target / "b").read_text() == (target / "c/w").read_text() == "trained"
    assert (target / "d").read_text() == "base weights"
    assert not any(path.is_symlink() for path in target.rglob("*"))


def test_the_base_models_own_file_is_copied_not_shared(places: Places, tmp_path: Path) -> None:
    (model(tmp_path) / "d").symlink_to("/models/base/weights")
    _, target = take(places, tmp_path)
    assert (target / "d").stat().st_ino != (tmp_path / "models/weights").stat().st_ino


LINKS_OUT = {
    "host file": "{host}/secret",
    "etc": "/etc/shadow",
    "up and out": "../../../../secret",
    "far up": "../" * 40 + "etc/shadow",
    "through the base model": "/models/base/../../secret",
    "through a directory of the base": "/models/base/x/../../secret",
    "proc": "/proc/self/environ",
    "itself": "link",
    "nowhere": "/home/agent/none",
}


@pytest.mark.parametrize("link", LINKS_OUT.values(), ids=LINKS_OUT.keys())
def test_links_out_are_refused(link: str, places: Places, tmp_path: Path) -> None:
    (model(tmp_path) / "link").symlink_to(link.format(host=tmp_path))
    taken, target = take(places, tmp_path)
    assert [entry["path"] for entry in taken.refused] == ["link"]
    assert list(target.iterdir()) == []


def test_a_directory_link_out_is_refused(places: Places, tmp_path: Path) -> None:
    model(tmp_path).rmdir()
    model(tmp_path).symlink_to(tmp_path)
    taken, target = take(places, tmp_path)
    assert taken.refused and list(target.iterdir()) == []


def test_loops_end(places: Places, tmp_path: Path) -> None:
    (model(tmp_path) / "again").symlink_to("/home/agent/task/final_model")
    (model(tmp_path) / "config.json").write_text("{}")
    taken, target = take(places, tmp_path)
    assert (target / "config.json").exists() and any("loop" in entry["reason"] for entry in taken.refused)


def test_pipes_and_sockets_are_refused(places: Places, tmp_path: Path) -> None:
    os.mkfifo(model(tmp_path) / "pipe")
    taken, _ = take(places, tmp_path)
    assert [entry["reason"] for entry in taken.refused] == ["neither file nor directory"]


def test_names_that_are_no_text(places: Places, tmp_path: Path) -> None:
    Path(os.fsdecode(bytes(model(tmp_path)) + b"/\xff\xfe")).write_text("odd")
    taken, _ = take(places, tmp_path)
    assert list(taken.files) == ["\\xff\\xfe"]
    "".join(taken.files).encode()


def test_snapshot_keeps_text_within_its_budget(tmp_path: Path) -> None:
    source = tmp_path / "work"
    (source / "deep").mkdir(parents=True)
    (source / "train.py").write_text("x" * 100)
    (source / "deep/data.jsonl").write_text("y" * 1000)
    save_weights({"x": np.ones(3, np.float32)}, source / "checkpoint.safetensors")
    (source / "link").symlink_to("/etc/passwd")
    (source / "huge.txt").write_text("h" * 5000)
    taken = take_snapshot(source, tmp_path / "kept", prefix="task", skip=set(), budget=2000)
    assert set(taken.files) == {"task/train.py", "task/deep/data.jsonl"}
    assert {entry["path"] for entry in taken.refused} == {"task/checkpoint.safetensors", "task/link", "task/huge.txt"}
    assert taken.files["task/train.py"]["bytes"] == 100 and len(taken.files["task/train.py"]["sha256"]) == 64
    assert not any(path.is_symlink() for path in (tmp_path / "kept").rglob("*"))


def test_text_called_weights_is_kept(tmp_path: Path) -> None:
    source = tmp_path / "work"
    source.mkdir()
    for name in ("a.bin", "b.pt", "c.safetensors", "d.npz"):
        (source / name).write_text("test items")
    assert len(take_snapshot(source, tmp_path / "kept", prefix="task", skip=set(), budget=1 << 20).files) == 4


def test_names_too_long_to_follow(places: Places, tmp_path: Path) -> None:
    (model(tmp_path) / "link").symlink_to("x" * 1000)
    taken, _ = take(places, tmp_path)
    assert [entry["path"] for entry in taken.refused] == ["link"]


def test_a_cut_list_of_refusals_says_so(tmp_path: Path) -> None:
    """Thousands of dead links must not push a file that nobody read out of the record."""
    source = tmp_path / "work"
    source.mkdir()
    for number in range(2500):
        (source / f"link{number}").symlink_to("/nowhere")
    (source / "train.txt").write_text("x" * 5000)
    taken = take_snapshot(source, tmp_path / "kept", prefix="task", skip=set(), budget=1000)
    assert len(taken.refused) == 2001 and "more was left out" in taken.refused[-1]["reason"]


def test_a_sparse_giant_does_not_fill_the_disk(tmp_path: Path) -> None:
    source = tmp_path / "work"
    source.mkdir()
    with (source / "giant").open("wb") as file:
        file.truncate(1 << 40)
    taken = take_snapshot(source, tmp_path / "kept", prefix="task", skip=set(), budget=1 << 31)
    assert taken.files == {} and "budget" in taken.refused[0]["reason"]


def test_a_tree_that_never_ends(tmp_path: Path) -> None:
    """Deeper than a recursion or a path may go: noted, not followed, and removable."""
    source = tmp_path / "work"
    source.mkdir()
    here = os.open(source, os.O_RDONLY)
    for _ in range(1500):
        os.mkdir("d" * 20, dir_fd=here)
        deeper = os.open("d" * 20, os.O_RDONLY, dir_fd=here)
        os.close(here)
        here = deeper
    os.close(here)
    (source / "note.txt").write_text("kept")
    taken = take_snapshot(source, tmp_path / "kept", prefix="task", skip=set(), budget=1 << 20)
    assert set(taken.files) == {"task/note.txt"} and len(taken.refused) == 1
    remove_tree(source)
    assert not source.exists()


def test_a_deep_submission_is_refused(places: Places, tmp_path: Path) -> None:
    (model(tmp_path) / "/".join("d" * 20)).mkdir(parents=True)
    (model(tmp_path) / "config.json").write_text("{}")
    taken, target = take(places, tmp_path)
    assert (target / "config.json").exists() and taken.refused[0]["reason"] == "too deep"

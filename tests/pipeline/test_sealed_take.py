"""The copy of a model out of a living workspace: nothing but regular files below the agent's directories, whatever it tries."""

from __future__ import annotations

import hashlib
import itertools
import os
import shutil
import threading
import time
from collections.abc import Iterator
from pathlib import Path, PurePosixPath

import pytest

from posttrainbench.pipeline.sealed_take import Agent, NotTaken, Stopped, largest, take

SECRET = b"of another run, or of the host"


@pytest.fixture
def home(tmp_path: Path) -> Path:
    path = tmp_path / "run" / ".job" / "home"
    (path / "task").mkdir(parents=True)
    (tmp_path / "run" / ".job" / "tmp").mkdir()
    outside = tmp_path / "other"
    outside.mkdir()
    (outside / "model.safetensors").write_bytes(SECRET)
    (outside / "config.json").write_bytes(SECRET)
    return path


@pytest.fixture
def agent(home: Path) -> Agent:
    return Agent({PurePosixPath("/home/agent"): home, PurePosixPath("/tmp"): home.with_name("tmp")})


def model(path: Path, weights: bytes = b"weights") -> Path:
    path.mkdir(parents=True)
    (path / "model.safetensors").write_bytes(weights)
    (path / "config.json").write_text("{}")
    (path / "modeling.py").write_text("raise SystemExit")
    return path


def refused(agent: Agent, inside: str, tmp_path: Path, *, most: int = 10_000) -> str:
    with pytest.raises(NotTaken) as error:
        take(agent, inside, tmp_path / "taken", most=most)
    return str(error.value)


def led_out(said: str) -> bool:
    """Whether a path was refused because it is none of the agent's. This test's own may lie in /tmp, which is empty inside."""
    return "out of your directories" in said or "there is no such file" in said


def test_takes_what_an_evaluation_uses(agent: Agent, home: Path, tmp_path: Path) -> None:
    model(home / "task" / "m")
    found = take(agent, "/home/agent/task/m", tmp_path / "taken", most=1000)
    assert sorted(path.name for path in (tmp_path / "taken").iterdir()) == ["config.json", "model.safetensors"]
    inner = hashlib.sha256(b"weights").hexdigest()
    assert found.weights == hashlib.sha256(f"{inner}  model.safetensors\n".encode()).hexdigest()
    assert found.bytes == 9
    # a copy of its own: what the agent writes now changes nothing
    (home / "task" / "m" / "model.safetensors").write_bytes(b"changed")
    assert (tmp_path / "taken" / "model.safetensors").read_bytes() == b"weights"


@pytest.mark.parametrize(
    "target", ["ckpt", "../task/ckpt", "/home/agent/task/ckpt", "/tmp/../home/agent/task/ckpt", "/tmp/far"]
)
def test_links_within_the_agents_directories_are_followed_as_inside(
    target: str, agent: Agent, home: Path, tmp_path: Path
) -> None:
    model(home / "task" / "ckpt")
    model(home.with_name("tmp") / "far")
    (home / "task" / "final_model").symlink_to(target)
    take(agent, "/home/agent/task/final_model", tmp_path / "taken", most=1000)
    take(agent, "/tmp/../home/./agent//task/final_model/", tmp_path / "again", most=1000)
    assert (tmp_path / "again" / "model.safetensors").read_bytes() == b"weights"


def test_paths_that_lead_out(agent: Agent, home: Path, tmp_path: Path) -> None:
    task = home / "task"
    for name, target in {
        "etc": "/etc",
        "host": str(tmp_path / "other"),
        "up": "../../../../other",
        "proc": "/proc/self/root/etc",
        "control": "/run/ptb",
        "half": "/home",
    }.items():
        (task / name).symlink_to(target)
    paths = [f"/home/agent/task/{name}" for name in ("etc", "host", "up", "proc", "control", "half")]
    paths += [
        str(tmp_path / "other"),
        "/etc",
        "/",
        "/home",
        "/home/agent/../../etc",
        f"/home/agent/../..{tmp_path}/other",
    ]
    paths += ["/proc/self/cwd", "/home/agent/task/../../../../other", "/models/base"]
    for path in paths:
        assert led_out(refused(agent, path, tmp_path)), path
    assert not (tmp_path / "taken").exists()
    (task / "round").symlink_to("round2")
    (task / "round2").symlink_to("round")
    assert "circles" in refused(agent, "/home/agent/task/round", tmp_path)
    assert "no such file" in refused(agent, "/home/agent/task/none", tmp_path)
    assert "too deep" in refused(agent, "/home/agent/" + "../agent/" * 200, tmp_path)
    (task / "file").write_text("x")
    assert "file in the place of a directory" in refused(agent, "/home/agent/task/file/x", tmp_path)
    assert "no directory" in refused(agent, "/home/agent/task/file", tmp_path)


def test_names_that_no_file_has(agent: Agent, tmp_path: Path) -> None:
    for name in ("\ud800", "\udcff", "a\0b"):
        assert "no such file" in refused(agent, f"/home/agent/task/{name}", tmp_path)


def test_files_that_are_none_or_too_large(agent: Agent, home: Path, tmp_path: Path) -> None:
    task = home / "task"
    made = {name: model(task / name) for name in ("fifo", "socket", "sparse", "config", "link", "hub", "empty")}
    for name in ("fifo", "socket", "sparse", "link", "hub", "empty"):
        (made[name] / "model.safetensors").unlink()
    os.mkfifo(made["fifo"] / "model.safetensors")
    os.mknod(made["socket"] / "model.safetensors", 0o140644)
    with (made["sparse"] / "model.safetensors").open("wb") as file:
        file.truncate(1 << 40)
    (made["config"] / "config.json").unlink()
    with (made["config"] / "config.json").open("wb") as file:
        file.truncate(2**20 + 1)
    (made["link"] / "model.safetensors").symlink_to(tmp_path / "other" / "model.safetensors")
    (made["hub"] / "model.safetensors").symlink_to("/etc/shadow")
    for name, says in {
        "fifo": "neither file nor directory",
        "socket": "neither file nor directory",
        "sparse": "1099511627776 bytes, more than",
        "config": "more than the 1048576",
        "hub": "out of your directories",
        "empty": "no safetensors file",
    }.items():
        assert says in refused(agent, f"/home/agent/task/{name}", tmp_path / name), name
    assert led_out(refused(agent, "/home/agent/task/link", tmp_path / "link"))
    many = model(task / "many")
    for number in range(1001):
        (many / f"{number}.safetensors").touch()
    assert "more than 1000" in refused(agent, "/home/agent/task/many", tmp_path)
    two = model(task / "two", b"x" * 600)
    (two / "b.safetensors").write_bytes(b"x" * 600)
    assert "more than the 400" in refused(agent, "/home/agent/task/two", tmp_path / "t", most=1000)


def swapping(path: Path, variants: list[Path], done: threading.Event) -> Iterator[None]:
    """Exchange what stands at `path`, as fast as it goes, for all variants in turn."""
    for number, variant in enumerate(itertools.cycle(variants)):
        if done.is_set():
            return
        fresh = path.with_name(f"fresh{number}")
        fresh.symlink_to(variant)
        fresh.rename(path)
        yield


@pytest.mark.parametrize("what", ["directory", "file"])
def test_replaced_while_it_is_looked_at(what: str, agent: Agent, home: Path, tmp_path: Path) -> None:
    """A race that the agent wins sometimes, between a good model and one outside: it never gets the other's bytes."""
    task, done = home / "task", threading.Event()
    good = model(task / "good", b"g" * 5000)
    if what == "directory":
        path, variants = task / "m", [good, tmp_path / "other", Path("/etc")]
    else:
        path = model(task / "m") / "model.safetensors"
        variants = [good / "model.safetensors", tmp_path / "other" / "model.safetensors"]
    # the good one as the agent names it
    inside = [Path("/home/agent/task") / v.relative_to(task) if v.is_relative_to(task) else v for v in variants]

    def swap() -> None:
        for _ in swapping(path, inside, done):
            pass

    thread = threading.Thread(target=swap)
    thread.start()
    outcomes = {"taken": 0, "refused": 0}
    try:
        until, number = time.monotonic() + 120, 0
        # on a busy machine the two threads take long turns
        while time.monotonic() < until and (number < 300 or not all(outcomes.values())):
            number += 1
            target = tmp_path / f"taken{number}"
            try:
                take(agent, "/home/agent/task/m", target, most=10_000)
            except NotTaken:
                outcomes["refused"] += 1
            else:
                outcomes["taken"] += 1
            for file in target.glob("*") if target.exists() else ():
                assert SECRET not in file.read_bytes()
            shutil.rmtree(target, ignore_errors=True)
    finally:
        done.set()
        thread.join()
    assert outcomes["taken"] and outcomes["refused"], outcomes


def test_growing_shrinking_and_stopping(agent: Agent, home: Path, tmp_path: Path) -> None:
    weights = model(home / "task" / "m", b"0" * (40 << 20)) / "model.safetensors"
    looks = 0

    def grow() -> bool:
        nonlocal looks
        looks += 1
        with weights.open("ab") as file:
            file.write(b"1" * 1000)
        return False

    found = take(agent, "/home/agent/task/m", tmp_path / "grown", most=50 << 20, stopped=grow)
    size = (tmp_path / "grown" / "model.safetensors").stat().st_size
    assert looks > 4 and 40 << 20 <= size < weights.stat().st_size
    assert found.bytes == size + 2

    def shrink() -> bool:
        if (tmp_path / "shrunk" / "model.safetensors").exists():
            os.truncate(weights, 10)
        return False

    with pytest.raises(NotTaken, match="shorter"):
        take(agent, "/home/agent/task/m", tmp_path / "shrunk", most=50 << 20, stopped=shrink)
    weights.write_bytes(b"0" * 100)
    with pytest.raises(Stopped):
        take(agent, "/home/agent/task/m", tmp_path / "stopped", most=50 << 20, stopped=lambda: True)


def test_bound_follows_the_base_model(base_model: Path) -> None:
    size = (base_model / "model.safetensors").stat().st_size
    # the same weights in float32 where the base has bfloat16, and then some
    assert 2 * size < largest(base_model) < 3 * size + (64 << 20) + 1

"""Memory, process and disk limits, by control groups and by what stands in for them."""

from __future__ import annotations

import os
from dataclasses import replace
from pathlib import Path

import pytest

from posttrainbench.sandbox import Backend, Limits
from posttrainbench.sandbox.bubblewrap import Bubblewrap
from posttrainbench.sandbox.containers import ContainerBackend
from posttrainbench.sandbox.limits import Group, Means, find_means
from posttrainbench.sandbox.watchdog import disk_usage

HOG = "import time; a = bytearray({0} << 20); a[::4096] = b'x' * len(a[::4096]); time.sleep(5)"
FORKS = """
import os, time
n = 0
try:
    while n < 300:
        if os.fork() == 0: time.sleep(5); os._exit(0)
        n += 1
except OSError: pass
print(n, flush=True)
os._exit(0)
"""


@pytest.fixture(params=["best", "fallback"])
def either(request: pytest.FixtureRequest, backend: Backend) -> Backend:
    """The best means of this machine, and those of a machine without control groups."""
    if request.param == "best":
        return backend
    if isinstance(backend, ContainerBackend):
        backend.engine = replace(backend.engine, memory="watchdog", processes="rlimit")
        return backend
    return Bubblewrap(means=Means())


def test_memory_limit_ends_the_command(run, either, tmp_path, monkeypatch):
    here = tmp_path / "here"
    here.mkdir()
    monkeypatch.chdir(here)
    result, _ = run(
        on=either, argv=["/usr/bin/python3", "-c", HOG.format(200)], limits=Limits(wall_s=20, memory_bytes=80 << 20)
    )
    assert (result.reason, result.returncode) == ("memory", 137)
    assert result.memory_kills >= 1
    assert result.peak_memory_bytes is not None
    assert result.peak_memory_bytes > 70 << 20
    assert list(here.iterdir()) == []  # conmon leaves a file `oom`


def test_memory_limit_kills_the_largest_and_spares_the_rest(run, either):
    script = f'python3 -c "{HOG.format(200)}"; echo child: $?; exit 5'
    result, output = run(script, on=either, limits=Limits(wall_s=20, memory_bytes=80 << 20))
    assert "child: 137" in output
    assert (result.reason, result.returncode, result.memory_kills) == ("exit", 5, 1)


@pytest.mark.parametrize("place", ["/tmp", "/dev/shm"])
def test_files_in_memory_count(run, either, place):
    if place == "/tmp" and isinstance(either, ContainerBackend) and not either.in_memory:
        pytest.skip("it is on disk there")
    script = f"head -c 200M /dev/zero >{place}/big; sleep 5; rm {place}/big; echo fits"
    result, output = run(script, on=either, limits=Limits(wall_s=20, memory_bytes=80 << 20))
    assert result.memory_kills >= 1
    assert "fits" not in output or result.reason == "memory"


def test_files_in_dev_count(run, either):
    """64 MB that are the user's own in apptainer."""
    script = "head -c 60M /dev/zero >/dev/big || echo refused; sleep 4; echo fits"
    result, output = run(script, on=either, limits=Limits(wall_s=20, memory_bytes=50 << 20))
    assert "refused" in output or result.reason == "memory"


def test_process_limit(run, either):
    limits = Limits(wall_s=20, processes=50)
    result, output = run(on=either, argv=["/usr/bin/python3", "-Sc", FORKS], limits=limits)
    if os.geteuid() == 0:
        assert 20 <= int(output) <= 60
    else:  # RLIMIT_NPROC also counts what the user runs outside
        assert int(output) < 300
    assert result.returncode == 0


def test_disk_limit(run, tmp_path):
    (tmp_path / "work").mkdir()
    result, _ = run(
        "echo ok >keep; while :; do head -c 3M /dev/zero >>big; sleep 0.05; done",
        rw={"/w": tmp_path / "work"},
        cwd="/w",
        limits=Limits(wall_s=20, disk_bytes=10 << 20),
    )
    assert result.reason == "disk"
    assert result.peak_disk_bytes is not None
    assert result.peak_disk_bytes > 10 << 20


def test_disk_limit_sees_deleted_open_files(run, tmp_path):
    (tmp_path / "work").mkdir()
    script = "import os,time; f=open('big','wb'); os.unlink('big'); f.write(b'x'*(20<<20)); f.flush(); time.sleep(20)"
    result, _ = run(
        argv=["/usr/bin/python3", "-c", script],
        rw={"/w": tmp_path / "work"},
        cwd="/w",
        limits=Limits(wall_s=15, disk_bytes=10 << 20),
    )
    assert result.reason == "disk"


def test_disk_limit_sees_deleted_files_that_are_only_mapped(run, tmp_path):
    (tmp_path / "work").mkdir()
    script = (
        "import os,mmap,time; f=open('big','w+b'); f.write(b'x'*(6<<20)); f.flush(); m=mmap.mmap(f.fileno(), 6<<20)\n"
        "os.unlink('big'); f.close(); os.closerange(3, 64)\n"  # mmap keeps a descriptor of its own
        "open('seen','wb').write(b'x'*(6<<20)); time.sleep(20)"
    )
    result, _ = run(
        argv=["/usr/bin/python3", "-c", script],
        rw={"/w": tmp_path / "work"},
        cwd="/w",
        limits=Limits(wall_s=15, disk_bytes=10 << 20),
    )
    assert result.reason == "disk"


def test_disk_peak_of_a_short_command(run, tmp_path):
    (tmp_path / "work").mkdir()
    result, _ = run(
        "head -c 2M /dev/zero >f", rw={"/w": tmp_path / "work"}, cwd="/w", limits=Limits(disk_bytes=10 << 20)
    )
    assert result.reason == "exit"
    assert result.peak_disk_bytes is not None
    assert result.peak_disk_bytes >= 2 << 20


def test_disk_usage_counts_names_once_and_follows_nothing(tmp_path):
    (tmp_path / "a").write_bytes(b"x" * (1 << 20))
    alone = disk_usage([tmp_path])
    os.link(tmp_path / "a", tmp_path / "b")
    (tmp_path / "c").symlink_to("/usr")
    assert disk_usage([tmp_path]) - alone < 100_000
    with (tmp_path / "sparse").open("wb") as file:
        file.truncate(1 << 30)
    assert disk_usage([tmp_path]) < 3 << 20


def fake_v2(root: Path, *, handed_down: str) -> Path:
    """A cgroup v2 tree as systemd makes it: /user.slice/app.slice/shell.scope is ours."""
    own = root / "cgroup" / "user.slice" / "app.slice" / "shell.scope"
    own.mkdir(parents=True)
    for place in (own, own.parent, own.parent.parent, root / "cgroup"):
        (place / "cgroup.procs").write_text("")
        (place / "cgroup.subtree_control").write_text("" if place == own else handed_down)
    proc = root / "proc"
    proc.mkdir()
    (proc / "cgroup").write_text("0::/user.slice/app.slice/shell.scope\n")
    (proc / "mountinfo").write_text(f"30 23 0:26 / {root}/cgroup rw,nosuid shared:4 - cgroup2 cgroup2 rw,nsdelegate\n")
    return own


def test_v2_group_is_made_beside_ours(tmp_path):
    own = fake_v2(tmp_path, handed_down="cpu memory pids\n")
    means = find_means(tmp_path / "proc")
    assert means == Means(v2=own.parent)
    assert (means.memory, means.processes) == ("cgroup-v2", "cgroup-v2")
    group = Group(means, Limits(memory_bytes=1 << 30, processes=77))
    (made,) = [path for path in own.parent.iterdir() if path.name.startswith("ptb-")]
    assert group.joins == [str(made / "cgroup.procs")]
    assert (made / "memory.max").read_text() == str(1 << 30)
    assert (made / "memory.swap.max").read_text() == "0"
    assert (made / "pids.max").read_text() == "77"
    (made / "memory.events").write_text("low 0\noom 2\noom_kill 1\noom_group_kill 0\n")
    (made / "memory.peak").write_text("4096\n")
    assert (group.memory_kills(), group.peak_memory()) == (1, 4096)
    for file in made.iterdir():
        file.unlink()
    group.close()
    assert not made.exists() or [p.name for p in made.iterdir()] == ["cgroup.kill"]


def test_v2_without_memory_controller_is_no_place(tmp_path):
    fake_v2(tmp_path, handed_down="cpu pids\n")
    assert find_means(tmp_path / "proc") == Means()


def test_unreadable_proc_means_fallback(tmp_path):
    assert find_means(tmp_path / "none").memory == "watchdog"

"""Base models are shared between runs: the same files, or one copy for all where the sandbox's user may not read them."""

from __future__ import annotations

import fcntl
import os
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest

from posttrainbench.errors import ConfigurationError
from posttrainbench.files import sha256_file
from posttrainbench.pipeline.copies import Copies
from posttrainbench.pipeline.mounts import readable_binds
from posttrainbench.sandbox import Limits, Spec
from posttrainbench.sandbox.bubblewrap import Bubblewrap

needs_root = pytest.mark.skipif(os.geteuid() != 0, reason="only a root harness needs copies")


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("PTB_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache" / "copies"


@pytest.fixture
def model(tmp_path: Path) -> Path:
    """Like a model in the hub's cache: links to blobs, the weights readable by their owner only."""
    blobs, snapshot = tmp_path / "hub" / "blobs", tmp_path / "hub" / "snapshots" / "abc"
    blobs.mkdir(parents=True)
    snapshot.mkdir(parents=True)
    for name, text, mode in (("config.json", "{}", 0o644), ("model.safetensors", "weights" * 1000, 0o600)):
        blob = blobs / f"blob-of-{name}"
        blob.write_text(text)
        blob.chmod(mode)
        (snapshot / name).symlink_to(f"../../blobs/{blob.name}")
    return snapshot


def inodes(model: Path, folder: Path, *, hold: threading.Barrier | None = None) -> list[str]:
    """What a sandbox sees of the model: device and inode of each file. `hold` keeps it running until another one is."""
    (folder / "home").mkdir(parents=True)
    printed = bytearray()

    def listen(data: bytes) -> None:
        printed.extend(data)
        if b"seen\n" in printed and hold is not None:
            hold.wait(60)
            (folder / "home" / "go").touch()

    script = (
        "set -e; cat /models/m/* >/dev/null; stat -c '%n %d:%i %a' /models/m/*; echo seen; "
        'while [ -n "$WAIT" ] && [ ! -e /home/agent/go ]; do sleep 0.05; done'
    )
    result = Bubblewrap().run(
        Spec(
            argv=["/bin/sh", "-c", script],
            env={"WAIT": "" if hold is None else "1"},
            ro=readable_binds("/models/m", model, spare=folder / "spare"),
            rw={"/home/agent": folder / "home"},
            limits=Limits(wall_s=120),
        ),
        on_output=listen,
    )
    assert result.returncode == 0, printed
    assert not (folder / "spare").exists(), "a copy of the run's own"
    return printed.decode().splitlines()[:-1]


def test_two_runs_at_once_read_the_same_files(model: Path, tmp_path: Path, cache: Path) -> None:
    found: dict[int, list[str]] = {}
    both = threading.Barrier(2)
    threads = [
        threading.Thread(target=lambda n=n: found.update({n: inodes(model, tmp_path / str(n), hold=both)}))
        for n in range(2)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert found[0] == found[1] and len(found[0]) == 2
    config = (model / "config.json").stat()
    assert f"/models/m/config.json {config.st_dev}:{config.st_ino} 644" in found[0], "not the host's own file"
    if os.geteuid() == 0:
        assert len(list((cache / "files").iterdir())) == 1, "one copy, of the one file that needs it"
        assert (model / "model.safetensors").stat().st_mode & 0o777 == 0o600


@needs_root
def test_a_copy_is_made_once_per_content_and_anew_when_the_file_changes(model: Path, tmp_path: Path) -> None:
    weights = model / "model.safetensors"
    first = readable_binds("/m", model, spare=tmp_path / "s")["/m/model.safetensors"]
    again = readable_binds("/m", model, spare=tmp_path / "s")["/m/model.safetensors"]
    assert first == again and first.name == sha256_file(weights) and first.stat().st_mode & 0o777 == 0o444
    twin = tmp_path / "twin"
    twin.write_bytes(weights.read_bytes())
    twin.chmod(0o600)
    assert Copies().readable(twin) == first
    status = weights.stat()
    weights.write_text("changed" * 1000)  # as long, and as old
    os.utime(weights, ns=(status.st_atime_ns, status.st_mtime_ns))
    changed = readable_binds("/m", model, spare=tmp_path / "s")["/m/model.safetensors"]
    assert changed != first and changed.read_text() == "changed" * 1000


@needs_root
def test_eviction_spares_what_a_living_process_uses(
    tmp_path: Path, cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    sources = []
    for number in range(3):
        source = tmp_path / f"source{number}"
        source.write_bytes(os.urandom(1 << 20))
        source.chmod(0o600)
        sources.append(source)
    holder = (
        "import sys, pathlib, posttrainbench.pipeline.copies as c\n"
        "c.Copies().readable(pathlib.Path(sys.argv[1])); print(1, flush=True); sys.stdin.read()"
    )
    holders = [
        subprocess.Popen([sys.executable, "-c", holder, str(s)], stdin=subprocess.PIPE, stdout=subprocess.PIPE)
        for s in sources[:2]
    ]
    for process in holders:
        assert process.stdout is not None and process.stdout.readline()
    holders[0].kill()
    holders[0].wait()
    monkeypatch.setenv("PTB_COPIES_GIB", str(2 / 1024))
    mine = Copies().readable(sources[2])
    left = {copy.path.name for copy in Copies().listed()}
    assert left == {sha256_file(sources[1]), mine.name}, "the unused one goes, the used one and the new one stay"
    assert Copies().in_use(mine)
    holders[1].communicate()
    assert Copies().evict(cache / "files" / sha256_file(sources[1]))
    assert Copies().readable(sources[0]).read_bytes() == sources[0].read_bytes()
    assert len(list((cache / "index").iterdir())) == len(Copies().listed())


@needs_root
def test_without_a_place_for_shared_copies_a_run_has_its_own(
    model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "file").touch()
    monkeypatch.setenv("PTB_CACHE", str(tmp_path / "file"))
    bound = readable_binds("/m", model, spare=tmp_path / "spare")
    assert bound["/m/model.safetensors"] == tmp_path / "spare" / "model.safetensors"
    monkeypatch.setenv("PTB_COPIES_GIB", "lots")
    with pytest.raises(ConfigurationError, match="PTB_COPIES_GIB"):
        readable_binds("/m", model, spare=tmp_path / "spare")


@needs_root
@pytest.mark.parametrize("how", ["owner", "mode", "link"])
def test_a_store_in_which_others_can_write_is_not_used(how: str, model: Path, tmp_path: Path, cache: Path) -> None:
    """Whoever is first in a shared PTB_CACHE must not choose other people's weights."""
    made = readable_binds("/m", model, spare=tmp_path / "spare")["/m/model.safetensors"]
    made.chmod(0o644)
    made.write_text("poisons" * 1000)
    if how == "owner":
        os.chown(cache / "files", 12345, 12345)
    elif how == "mode":
        (cache / "index").chmod(0o777)
    else:
        cache.rename(tmp_path / "elsewhere")
        cache.symlink_to(tmp_path / "elsewhere")
    bound = readable_binds("/m", model, spare=tmp_path / "spare")["/m/model.safetensors"]
    assert bound == tmp_path / "spare" / "model.safetensors" and bound.read_text() == "weights" * 1000


@needs_root
def test_a_reader_cannot_unlock_or_lock_a_copy(model: Path) -> None:
    """An agent may lock what it can read. The copy is protected for other runs all the same, and nobody waits for it."""
    code = (
        "import sys, time, pathlib, posttrainbench.pipeline.copies as c;"
        "print(c.Copies().readable(pathlib.Path(sys.argv[1])), flush=True); time.sleep(float(sys.argv[2]))"
    )
    using = [sys.executable, "-c", code, str(model / "model.safetensors")]
    copy = Path(subprocess.run([*using, "0"], check=True, timeout=60, capture_output=True, text=True).stdout.strip())
    with copy.open("rb") as agents:
        fcntl.flock(agents, fcntl.LOCK_EX)
        with subprocess.Popen([*using, "60"], stdout=subprocess.PIPE) as process:
            try:
                assert process.stdout is not None and process.stdout.readline().strip() == os.fsencode(copy)
                fcntl.flock(agents, fcntl.LOCK_UN)
                assert Copies().in_use(copy) and not Copies().evict(copy) and copy.exists()
                fcntl.flock(agents, fcntl.LOCK_EX)
            finally:
                process.kill()
        # an agent's lock is none of ours
        assert Copies().evict(copy) and not copy.exists()


def test_an_agent_changes_its_own_layer_of_the_hub_cache_only(model: Path, tmp_path: Path) -> None:
    """As in a run: the base model bound into the hub cache below the agent's home, whose rest is its own."""
    home = tmp_path / "home"
    (home / "hub/refs").mkdir(parents=True)
    before = {path: (path.stat().st_mtime_ns, sha256_file(path)) for path in model.iterdir()}
    script = """
        cd /home/agent/hub/snapshots/abc
        cat model.safetensors | head -c 7; echo
        echo x >>config.json || echo refused; rm -f config.json || echo refused; mv model.safetensors m || echo refused
        echo new >tokenizer.json && cp config.json own.json && echo more >>own.json && cat own.json
        mkdir -p ../def && echo other >../def/config.json && echo def >../../refs/main && cat ../../refs/main
    """
    printed = bytearray()
    Bubblewrap().run(
        Spec(
            argv=["/bin/sh", "-c", f"exec 2>/dev/null; {script}"],
            ro=readable_binds("/home/agent/hub/snapshots/abc", model, spare=tmp_path / "spare"),
            rw={"/home/agent": home},
            limits=Limits(wall_s=60),
        ),
        on_output=printed.extend,
    )
    assert printed.decode().split() == ["weights", "refused", "refused", "refused", "{}more", "def"]
    assert {path: (path.stat().st_mtime_ns, sha256_file(path)) for path in model.iterdir()} == before
    assert (home / "hub/snapshots/abc/tokenizer.json").read_text() == "new\n", (
        "the private layer is in the run's directory"
    )


@needs_root
def test_a_killed_copy_leaves_nothing(tmp_path: Path, cache: Path) -> None:
    source = tmp_path / "source"
    source.write_bytes(os.urandom(64 << 20))
    source.chmod(0o600)
    code = "import sys, pathlib, posttrainbench.pipeline.copies as c; c.Copies().readable(pathlib.Path(sys.argv[1]))"
    process = subprocess.Popen([sys.executable, "-c", code, str(source)])
    end = time.monotonic() + 60
    while not list(cache.glob("*.part")) and process.poll() is None and time.monotonic() < end:
        time.sleep(0.001)
    process.kill()
    process.wait()
    assert sha256_file(Copies().readable(source)) == sha256_file(source)
    assert not list(cache.glob("*.part"))

"""`Spec.caches`: the command may change everything, the original never changes, the changes are gone afterwards."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from posttrainbench.files import sha256_file, walk_files
from posttrainbench.sandbox import Backend
from posttrainbench.sandbox.bubblewrap import Bubblewrap


@pytest.fixture
def cache(tmp_path: Path) -> Path:
    """Like a hub cache: nested, links, read-only files, several owners if we may make them."""
    root = tmp_path / "cache, of: models"  # characters that mean something to mount
    (root / "blobs").mkdir(parents=True)
    (root / "snapshots" / "main").mkdir(parents=True)
    (root / "blobs" / "abc").write_text("weights")
    (root / "blobs" / "fixed").write_text("fixed")
    (root / "blobs" / "fixed").chmod(0o400)
    (root / "snapshots" / "main" / "model").symlink_to("../../blobs/abc")
    if os.geteuid() == 0:
        os.chown(root / "blobs" / "abc", 12345, 54321)
    return root


@pytest.fixture(params=["best", "copy"])
def either(request: pytest.FixtureRequest, backend: Backend) -> Backend:
    if request.param == "best":
        return backend
    if backend.name != "bubblewrap":
        pytest.skip("copies anyway")
    return Bubblewrap(overlay=False)


def state(root: Path) -> dict[str, object]:
    found: dict[str, object] = {}
    for path in walk_files(root):
        status = path.lstat()
        content = str(path.readlink()) if path.is_symlink() else sha256_file(path)
        found[str(path)] = (status.st_uid, status.st_gid, status.st_mode, status.st_mtime_ns, content)
    return found


def test_cache_is_changeable_and_unchanged(run, either, cache):
    before = state(cache)
    script = """
        set -e
        cat snapshots/main/model blobs/fixed; echo
        echo more >>blobs/abc; chmod u+w blobs/fixed; echo more >>blobs/fixed
        mkdir new; echo n >new/file; mv new/file blobs/moved; rm snapshots/main/model; rmdir snapshots/main
        cat blobs/abc blobs/fixed; find . | sort | tr '\\n' ' '
    """
    result, output = run(script, on=either, caches={"/home/agent/.cache/hub": cache}, cwd="/home/agent/.cache/hub")
    assert output == (
        "weightsfixed\nweightsmore\nfixedmore\n. ./blobs ./blobs/abc ./blobs/fixed ./blobs/moved ./new ./snapshots "
    )
    assert result.returncode == 0
    assert state(cache) == before


def test_two_caches_and_a_bind_within(run, either, cache, tmp_path):
    other = tmp_path / "other"
    (other / "mount").mkdir(parents=True)
    (other / "f").write_text("other")
    result, output = run(
        "cat /c/blobs/abc /o/f /o/mount/abc; echo x >/c/x; echo x >/o/x; touch /o/mount/x 2>/dev/null || echo ' ro'",
        on=either,
        caches={"/c": cache, "/o": other},
        ro={"/o/mount": cache / "blobs"},
    )
    assert (result.returncode, output) == (0, "weightsotherweights ro\n")
    assert not (other / "x").exists()


def test_refused_overlay_falls_back_to_a_copy(run, bwrap, cache, monkeypatch):
    """An upper directory on a file system that cannot be one, as in many containers."""
    if os.geteuid() != 0:
        pytest.skip("the launcher mounts overlays only as root")
    from posttrainbench.sandbox import staging

    def broken(scratch, caches):  # type: ignore[no-untyped-def]
        return {path: {"lowerdir": str(host), "upperdir": "/proc", "workdir": "/proc"} for path, host in caches.items()}

    monkeypatch.setattr(staging, "overlay_layers", broken)
    own = Bubblewrap(overlay=True)
    result, output = run("echo x >/c/x; cat /c/x", on=own, caches={"/c": cache})
    assert (result.returncode, output) == (0, "x\n")
    assert own.capabilities().caches == "copy"


def test_left_over_of_a_killed_harness_is_removed(run, cache):
    import tempfile

    stale = Path(tempfile.gettempdir()) / "ptb-sandbox-stale"
    (stale / "upper0").mkdir(parents=True)
    run("true", caches={"/c": cache})
    assert not stale.exists()


def test_only_changes_count_towards_the_disk_limit(run, either, cache, limits):
    (cache / "large").write_bytes(b"x" * (8 << 20))
    for size, reason in (("1M", "exit"), ("6M", "disk")):
        result, _ = run(
            f"head -c {size} /dev/zero >/c/new", on=either, caches={"/c": cache}, limits=limits(disk_bytes=4 << 20)
        )
        assert result.reason == reason

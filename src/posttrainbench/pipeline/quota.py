"""`--disk-quota exact`: the agent's directories lie in a file system of their own, of exactly the size of its limit.

The file system is an ext4 image beside them (`RUN/.job.img`), its room reserved on the host's disk, mounted on `RUN/.job` in
a mount namespace that only this harness and what it starts live in. When it dies, however it dies, the kernel unmounts it
and gives the loop device back. What the agent writes too much fails inside with "no space left"; it is not killed for it.

Needs root, loop devices and e2fsprogs. Weights are copied, not linked, when they are collected.
"""

from __future__ import annotations

import contextlib
import ctypes
import os
import shutil
import subprocess
import threading
from collections.abc import Iterator
from pathlib import Path

from posttrainbench.errors import ConfigurationError, InfrastructureError
from posttrainbench.files import remove_tree
from posttrainbench.pipeline.context import Context
from posttrainbench.pipeline.run_dir import RunDirectory
from posttrainbench.scratch import Scratch

IMAGE = ".job.img"
_CLONE_NEWNS, _MS_REC, _MS_SLAVE = 0x00020000, 0x4000, 0x80000
_PROGRAMS = ("mkfs.ext4", "tune2fs", "fallocate", "mount", "umount")
_PATH = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"
_TRIAL_BYTES = 16 * 2**20
# inodes of 256 bytes for every 16 KiB are 1.6 %; the journal and group tables of a small image come on top
_OVERHEAD, _JOURNAL_MIB = 0.03, 16

_here = threading.local()


def check(disk_quota: str, *, sandbox: str, disk_gib: float | None, results: Path) -> None:
    """See, before a run, that its quota can be kept here: makes and mounts a small file system. Takes 0.3 s.

    Raises:
        ConfigurationError: it cannot; says what is missing.
    """
    if disk_quota == "watchdog":
        return
    missing = [name for name in _PROGRAMS if shutil.which(name, path=_PATH) is None]
    reason = (
        "needs a harness run by root"
        if os.geteuid() != 0
        else f"works with --sandbox bubblewrap, not with {sandbox}, whose engine may not see what this process mounts"
        if sandbox != "bubblewrap"
        else "needs --disk-gib: that much of the disk is reserved"
        if disk_gib is None
        else f"needs {missing[0]} (e2fsprogs, util-linux)"
        if missing
        else _trial(results)
    )
    if reason:
        raise ConfigurationError(f"--disk-quota exact {reason}; without it a watchdog keeps the limit")


def _trial(results: Path) -> str:
    """On the disk of the results, because not every file system can reserve room or be looped."""
    place = results if results.is_dir() else results.parent
    try:
        with Scratch("quota", parent=place if place.is_dir() else None) as folder:
            _make(folder / "image", _TRIAL_BYTES)
            # a child's namespace: this process may have nothing to mount after all
            _do("unshare", "--mount", "mount", "-o", "loop", str(folder / "image"), str(folder))
    except (InfrastructureError, OSError) as error:
        return f"does not work here: {error}"
    return ""


@contextlib.contextmanager
def mounted(context: Context, stage: str) -> Iterator[None]:
    """Have the agent's file system in its place while a stage works with it; made afresh for `solve`.

    Raises:
        InfrastructureError: it cannot be made or mounted, or it is gone with the agent's work in it.
    """
    run = context.run
    if context.spec.disk_quota == "watchdog" or stage not in ("solve", "collect"):
        yield
        return
    image = run.path / IMAGE
    if stage == "solve":
        discard(run)
        limit = context.record["limits"]["disk_bytes"]
        _make(image, limit)
    elif not image.exists():
        raise InfrastructureError(f"the agent's disk {image} is gone, and its work with it")
    run.job.root.mkdir(exist_ok=True)
    _enter()
    _mount(image, run.job.root)
    try:
        yield
    finally:
        _do("umount", str(run.job.root))
        if run.done("collect"):
            discard(run)


def discard(run: RunDirectory) -> None:
    """Remove the agent's directories, and its file system if it has one; not while it is mounted."""
    remove_tree(run.job.root)
    (run.path / IMAGE).unlink(missing_ok=True)


def _make(image: Path, limit: int) -> None:
    """An image whose file system has `limit` bytes for anybody but root, to the block, and not one more."""
    size = int(limit * (1 + _OVERHEAD)) + (_JOURNAL_MIB + 32) * 2**20
    image.unlink(missing_ok=True)
    try:
        # reserved: an image that outgrows the host's disk would be damaged
        _do("fallocate", "-l", str(size), str(image))
        image.chmod(0o600)
        features = ("-b", "4096", "-i", "16384", "-m", "0", "-J", f"size={_JOURNAL_MIB}", "-O", "^resize_inode")
        _do("mkfs.ext4", "-q", "-F", *features, "-E", "lazy_itable_init=1,nodiscard", str(image))
        blocks, free = _blocks(image)
        # for itself ext4 keeps 2 %, at most 4096 blocks (fs/ext4/super.c: ext4_calculate_resv_clusters)
        spare = free - min(blocks // 50, 4096) - limit // 4096
        if spare < 0:
            raise InfrastructureError(f"an image of {size} bytes has no room for {limit}; please report this")
        _do("tune2fs", "-r", str(spare), str(image))
    except BaseException:
        image.unlink(missing_ok=True)
        raise


def _blocks(image: Path) -> tuple[int, int]:
    told = dict(line.split(":", 1) for line in _do("tune2fs", "-l", str(image)).splitlines() if ":" in line)
    return int(told["Block count"]), int(told["Free blocks"])


def _enter() -> None:
    """Give this thread, and what it starts, a mount namespace of its own. What the host mounts later shows in it, too."""
    if getattr(_here, "entered", None) == os.getpid():
        return
    library = ctypes.CDLL(None, use_errno=True)
    if library.unshare(_CLONE_NEWNS) != 0 or library.mount(b"none", b"/", None, _MS_REC | _MS_SLAVE, None) != 0:
        raise InfrastructureError(f"no mount namespace of our own: {os.strerror(ctypes.get_errno())}")
    _here.entered = os.getpid()


def _mount(image: Path, place: Path) -> None:
    _do("mount", "-o", "loop,nosuid,nodev", str(image), str(place))
    place.chmod(0o755)


def _do(program: str, *arguments: str) -> str:
    """Run a system program. Returns what it printed.

    Raises:
        InfrastructureError: it failed.
    """
    try:
        done = subprocess.run(
            [program, *arguments],
            env={"PATH": _PATH, "LC_ALL": "C"},
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            errors="replace",
            check=False,
        )
    except OSError as error:
        raise InfrastructureError(f"{program} does not run: {error}") from None
    if done.returncode != 0:
        said = " ".join((done.stderr or done.stdout).split())[:200]
        kind = "disk_full" if "No space left" in said else "other"
        raise InfrastructureError(f"{program}: {said or f'status {done.returncode}'}", kind=kind)
    return done.stdout

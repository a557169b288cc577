"""Temporary directories that disappear even if the process is killed: whoever makes the next one removes them.

Every temporary directory of the harness outside of a run directory is one of these. The owner holds a lock on it, which the
kernel releases with the process: an unlocked one has no owner. They lie in TMPDIR as `ptb-scratch-PURPOSE-XXXXXXXX`.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import os
import re
import secrets
import shutil
import stat
import subprocess
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from types import TracebackType

from posttrainbench.errors import ConfigurationError, InfrastructureError

_PREFIX = "ptb-scratch-"
_NEW = ".ptb-scratch-"
# versions before this one named their locked directories so
_OURS = (_PREFIX, "ptb-sandbox-")
_NEW_ONES = (_NEW, ".ptb-sandbox-")
# between making a directory and locking it there are microseconds; a stopped process may need longer
_UNLOCKED_S = 60.0
# what versions before this one, or tools of ours without a lock, left behind; told from a user's by shape and age
_OLD = re.compile(
    r"ptb-(data|probe|grade|judge|agent|vanished|kernel|preflight|cuda|view|redteam|code)-[a-z0-9_]{8}", re.ASCII
)


class Scratch:
    """A temporary directory of this process, mode 0700. Close it, or use it as a context manager, which gives its path.

    Args:
        purpose: a word for its name, of letters and digits.
        parent: where it lies; default TMPDIR.

    Raises:
        InfrastructureError: the directory cannot be made.
    """

    def __init__(self, purpose: str = "sandbox", *, parent: Path | None = None) -> None:
        """Make the directory, and remove those of processes that are dead."""
        base = parent or Path(tempfile.gettempdir())
        for path in dead(base):
            remove_dead(path)
        self._lock: int | None = None
        try:
            # named so that others look at it only once it is locked
            unlocked = Path(tempfile.mkdtemp(prefix=f"{_NEW}{purpose}-", dir=base))
            try:
                self._lock = os.open(unlocked, os.O_RDONLY | os.O_DIRECTORY)
                with contextlib.suppress(
                    OSError
                ):  # some network file systems lock no directories; nobody else can either
                    fcntl.flock(self._lock, fcntl.LOCK_EX)
                self.path = unlocked.rename(base / f"{_PREFIX}{purpose}-{secrets.token_hex(4)}")
            except BaseException:
                unlocked.rmdir()
                raise
        except OSError as error:
            self._unlock()
            full = error.errno in (errno.ENOSPC, errno.EDQUOT)
            raise InfrastructureError(
                f"no room for temporary files in {base}: {error.strerror}; set TMPDIR",
                kind="disk_full" if full else "other",
            ) from error

    def close(self) -> None:
        """Remove the directory. Safe to repeat."""
        if self._lock is not None:
            _remove(self.path)
            self._unlock()

    def _unlock(self) -> None:
        if self._lock is not None:
            os.close(self._lock)
            self._lock = None

    def __enter__(self) -> Path:
        """The directory."""
        return self.path

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Remove it."""
        self.close()


def draft_beside(target: Path, *, within: str = "", variable: str) -> Scratch:
    """A directory beside `target`, to be renamed to it when it is complete; what killed installations left there is removed.

    Args:
        target: what is installed.
        within: words that say what the directory around it is.
        variable: the one that names another place.

    Raises:
        ConfigurationError: the directory around it cannot be written.
    """
    parent = target.parent
    try:
        parent.mkdir(parents=True, exist_ok=True)
        return Scratch("install", parent=parent)
    except (OSError, InfrastructureError) as error:
        why = error.strerror if isinstance(error, OSError) else error
        named = f"{within} {parent}".strip()
        raise ConfigurationError(f"{named} cannot be written: {why}; choose another place with {variable}") from None


def dead(base: Path | None = None) -> Iterator[Path]:
    """Scratch directories of this user whose owner is dead.

    Args:
        base: where to look; default TMPDIR.
    """
    base = base or Path(tempfile.gettempdir())
    try:
        names = [entry.name for entry in os.scandir(base) if entry.name.startswith((*_OURS, *_NEW_ONES))]
    except OSError:
        return
    for name in sorted(names):
        with _dead(base / name) as descriptor:
            if descriptor is None:
                continue
        yield base / name


def remove_dead(path: Path) -> bool:
    """Remove a scratch directory if its owner is dead; whether it is gone."""
    with _dead(path) as descriptor:
        if descriptor is not None:
            _remove(path)
            return not path.exists()
    return False


@contextlib.contextmanager
def _dead(path: Path) -> Iterator[int | None]:
    """A descriptor that holds the lock of a dead process's directory; `None` where it is alive or not ours."""
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW)
    except OSError:
        yield None
        return
    try:
        status = os.fstat(descriptor)
        young = path.name.startswith(_NEW_ONES) and time.time() - status.st_mtime < _UNLOCKED_S
        if status.st_uid != os.geteuid() or young:
            yield None
            return
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            yield None
            return
        yield descriptor
    finally:
        os.close(descriptor)


def unguarded(base: Path | None = None, *, older_s: float) -> Iterator[Path]:
    """Directories of this user that versions without locks left in TMPDIR: of our names, old, and used by no process.

    Args:
        base: where to look; default TMPDIR.
        older_s: seconds since anything in its first level changed.
    """
    base = base or Path(tempfile.gettempdir())
    found = []
    with contextlib.suppress(OSError):
        for entry in os.scandir(base):
            with contextlib.suppress(OSError):
                status = entry.stat(follow_symlinks=False)
                mine = stat.S_ISDIR(status.st_mode) and status.st_uid == os.geteuid()
                if mine and _OLD.fullmatch(entry.name):
                    inner = [each.stat(follow_symlinks=False).st_mtime for each in os.scandir(entry.path)]
                    if time.time() - max([status.st_mtime, *inner]) > older_s:
                        found.append(Path(entry.path))
    if found:
        used = set(in_use())
        yield from sorted(path for path in found if not any(each.is_relative_to(path) for each in used))


def in_use() -> Iterator[Path]:
    """Files and directories that processes have open, work in or have mounted, as far as we may look."""
    mounted: set[tuple[str, Path]] = set()
    for process in Path("/proc").glob("[0-9]*"):
        with contextlib.suppress(OSError):
            yield (process / "cwd").readlink()
        with contextlib.suppress(OSError):
            for entry in os.scandir(process / "fd"):
                with contextlib.suppress(OSError):
                    yield Path(entry.path).readlink()
        with contextlib.suppress(OSError):
            mounted |= {(device, root) for device, root, _ in _mounts(process)}
    # what a process mounted is told as a path within its file system: where that is for us, our own table says
    for device, root, place in _mounts(Path("/proc/self")):
        yield from (
            place / path.relative_to(root) for other, path in mounted if other == device and path.is_relative_to(root)
        )


def _mounts(process: Path) -> Iterator[tuple[str, Path, Path]]:
    """Device, path within its file system, and mount point, of each mount that a process sees."""
    for line in (process / "mountinfo").read_bytes().splitlines():
        _, _, device, root, place = line.split(b" ")[:5]
        yield device.decode(), _unescaped(root), _unescaped(place)


def _unescaped(name: bytes) -> Path:
    # the kernel writes space, tab, newline and backslash as \ooo (fs/proc_namespace.c: mangle)
    return Path(os.fsdecode(re.sub(rb"\\([0-7]{3})", lambda found: bytes([int(found[1], 8)]), name)))


def _remove(path: Path) -> None:
    """Remove a tree whose directories may be closed to us: by the agent, or by overlayfs (its work/work has mode 0)."""
    with contextlib.suppress(RecursionError):
        shutil.rmtree(path, ignore_errors=True)
    if path.exists():
        for directory, names, _ in os.walk(path):
            for name in names:  # before os.walk looks into them
                below = Path(directory, name)
                if not below.is_symlink():
                    with contextlib.suppress(OSError):
                        below.chmod(0o700)
        subprocess.run(["rm", "-rf", "--", str(path)], capture_output=True, check=False)

"""Copies of files that the sandbox's user may not read: one per content on this machine, shared by all runs.

A root harness starts sandboxes as another user, who cannot read files of mode 0600, as safetensors writes them. Such a file
is copied once into `$PTB_CACHE/copies` (default ~/.cache/posttrainbench/copies, closed to other users), and every run binds
that same copy, read-only: the disk holds it once, and so does the page cache. What nobody uses goes, least recently used
first, when the copies come to hold more than `PTB_COPIES_GIB` (default 200), or the disk is full.

An id-mapped mount would need no copy, but network file systems, where models often lie, have none.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import hashlib
import math
import os
import stat
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

from posttrainbench.errors import ConfigurationError, InfrastructureError
from posttrainbench.files import free_lock, harness_cache, read_json, write_json

_DEFAULT_GIB = 200.0
_PIECE = 4 << 20
_FULL = (errno.ENOSPC, errno.EDQUOT)


def limit_bytes() -> int:
    """What the copies may come to hold.

    Raises:
        ConfigurationError: `PTB_COPIES_GIB` is no number.
    """
    text = os.environ.get("PTB_COPIES_GIB", "")
    try:
        gib = float(text) if text else _DEFAULT_GIB
    except ValueError:
        gib = math.nan
    if not (math.isfinite(gib) and gib >= 0):
        raise ConfigurationError(f"PTB_COPIES_GIB={text} cannot be; give GiB >= 0")
    return int(gib * 2**30)


@dataclass(frozen=True)
class Copy:
    """A copy in the store.

    Attributes:
        path: its file; the name is the content's SHA-256.
        size: bytes on disk.
        used: when it was last asked for, seconds since the epoch.
    """

    path: Path
    size: int
    used: float


class Copies:
    """The store.

    Args:
        root: its directory; default `$PTB_CACHE/copies`.
    """

    # path -> descriptor with a shared lock: what this process uses is not evicted. The kernel lets go with the process.
    _held: ClassVar[dict[Path, int]] = {}

    def __init__(self, root: Path | None = None) -> None:
        self.root = root or harness_cache() / "copies"
        self._files, self._index = self.root / "files", self.root / "index"
        # apart from the copies: who can read a file can lock it, and agents read the copies
        self._locks = self.root / "locks"

    def readable(self, source: Path) -> Path:
        """A copy of `source` that everybody could read, in use by this process until it ends.

        Raises:
            OSError: the store cannot be written.
            InfrastructureError: the source changed while it was copied.
            ConfigurationError: see `limit_bytes`.
        """
        limit = limit_bytes()
        with self._alone():
            key = _identity(source)
            found = self._known(key)
            if found is None:
                found = self._copy(source, key)
            self._hold(found)
            os.utime(found)
            self._evict_to(limit)
        return found

    def listed(self) -> list[Copy]:
        """What is there, least recently used first."""
        copies = []
        with contextlib.suppress(OSError):
            for entry in os.scandir(self._files):
                with contextlib.suppress(OSError):
                    status = entry.stat(follow_symlinks=False)
                    copies.append(Copy(Path(entry.path), status.st_blocks * 512, status.st_mtime))
        return sorted(copies, key=lambda copy: copy.used)

    def in_use(self, copy: Path) -> bool:
        """Whether a living process uses it."""
        with free_lock(self._locks / copy.name) as free:
            return not free

    def evict(self, copy: Path) -> bool:
        """Remove a copy unless it is in use; whether it is gone."""
        with self._alone():
            return self._evict(copy)

    @contextlib.contextmanager
    def _alone(self) -> Iterator[None]:
        """Hold the store. Whoever comes while a file is copied waits, and then finds it."""
        for directory in (self.root, self._files, self._index, self._locks):
            # closed: a copy can be read by all, its original could not
            directory.mkdir(mode=0o700, parents=True, exist_ok=True)
            status = directory.lstat()
            if not stat.S_ISDIR(status.st_mode) or status.st_uid != os.geteuid() or status.st_mode & 0o022:
                # somebody else could have put other weights there; the caller goes without
                raise PermissionError(errno.EPERM, "others can write there, or it is a link", str(directory))
        descriptor = os.open(self.root / "lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX)
            for part in self.root.glob("*.part"):  # of killed ones: a living one would hold the lock
                part.unlink(missing_ok=True)
            yield
        finally:
            os.close(descriptor)

    def _known(self, key: str) -> Path | None:
        try:
            entry = read_json(self._index / key)
            path = self._files / str(entry["sha256"])
            return path if path.stat().st_size == entry["bytes"] else None
        except (OSError, ValueError, KeyError, TypeError):
            return None

    def _copy(self, source: Path, key: str) -> Path:
        part = self.root / f"{os.getpid()}.part"
        try:
            try:
                digest, size = _write(source, part)
            except OSError as error:
                if error.errno not in _FULL or not self._evict_to(0):
                    raise
                digest, size = _write(source, part)
            if _identity(source) != key:
                raise InfrastructureError(f"{source} was changed while it was copied for the sandbox; try again")
            target = self._files / digest
            if not (target.is_file() and target.stat().st_size == size):
                part.rename(target)
            self._forget_gone()
            write_json(self._index / key, {"sha256": digest, "bytes": size, "source": str(source)})
            return target
        finally:
            part.unlink(missing_ok=True)

    def _forget_gone(self) -> None:
        """Drop index entries of files that are no more, or have changed."""
        for entry in self._index.iterdir():
            try:
                current = _identity(Path(read_json(entry)["source"])) == entry.name
            except (OSError, ValueError, KeyError, TypeError):
                current = False
            if not current:
                entry.unlink(missing_ok=True)

    def _hold(self, path: Path) -> None:
        held = self._held.get(path)
        if held is not None and os.fstat(held).st_nlink:
            return
        descriptor = os.open(self._locks / path.name, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        with contextlib.suppress(OSError):  # no locks here (some network file systems): then age alone protects it
            # waits for who only looks, an instant
            fcntl.flock(descriptor, fcntl.LOCK_SH)
        if held is not None:
            os.close(held)
        self._held[path] = descriptor

    def _evict_to(self, limit: int) -> int:
        """Remove what is not in use, oldest first, until `limit` bytes are left. Returns the bytes that are free again."""
        copies = self.listed()
        total, freed = sum(copy.size for copy in copies), 0
        for copy in copies:
            if total - freed > limit and self._evict(copy.path):
                freed += copy.size
        return freed

    def _evict(self, copy: Path) -> bool:
        lock = self._locks / copy.name
        with free_lock(lock) as free:
            if free:
                copy.unlink(missing_ok=True)
                lock.unlink(missing_ok=True)
                for entry in self._index.iterdir():
                    if self._known(entry.name) is None:
                        entry.unlink(missing_ok=True)
            return free


def _identity(source: Path) -> str:
    """What changes when a file's content does. A change of ctime cannot be undone, not even by who sets other times."""
    status = source.stat()
    parts = (status.st_dev, status.st_ino, status.st_size, status.st_mtime_ns, status.st_ctime_ns)
    return hashlib.sha256(":".join(map(str, parts)).encode()).hexdigest()[:40]


def _write(source: Path, part: Path) -> tuple[str, int]:
    """Copy to `part`, readable for all and writable for nobody. Returns SHA-256 and bytes."""
    digest = hashlib.sha256()
    size = 0
    with source.open("rb") as reading, part.open("wb") as writing:
        while piece := reading.read(_PIECE):
            digest.update(piece)
            writing.write(piece)
            size += len(piece)
        writing.flush()
        os.fchmod(writing.fileno(), 0o444)
        os.fsync(writing.fileno())
    return digest.hexdigest(), size

"""Small file helpers: atomic writes, JSON, hashes. All state of a run goes through these."""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import json
import os
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any


def write_atomic(path: Path, data: bytes | str, *, mode: int = 0o644) -> None:
    """Write `data` to `path` so that a reader, or a crash at any time, sees the old content or the new, never a part.

    Raises:
        OSError: as the file system reports it (for example a full disk); the old content is then intact.
    """
    # names of files that are no text stay legible in JSON (as \udcff) instead of breaking the write
    raw = data.encode("utf-8", "backslashreplace") if isinstance(data, str) else data
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        descriptor = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, mode)
        try:
            view = memoryview(raw)
            while view:
                view = view[os.write(descriptor, view) :]
            os.fsync(descriptor)
        finally:
            os.close(descriptor)
        temporary.replace(path)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise
    fsync_directory(path.parent)


def fsync_directory(path: Path) -> None:
    """Make renames inside the directory `path` durable."""
    descriptor = os.open(path, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def write_json(path: Path, value: Any) -> None:
    """Write `value` as indented JSON, atomically."""
    write_atomic(path, json.dumps(value, indent=2, ensure_ascii=False, allow_nan=False) + "\n")


def read_json(path: Path) -> Any:
    """Read a JSON file."""
    return json.loads(path.read_text(encoding="utf-8"))


def sha256_file(path: Path) -> str:
    """Hex SHA-256 of a file's content, read in pieces."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


# Deeper than any tree that work leaves; trees made to break a recursion, or a path's length, go on for ever.
_DEEPEST = 64


def user_cache() -> Path:
    """`posttrainbench` in the user's cache directory."""
    cache = os.environ.get("XDG_CACHE_HOME") or os.path.expanduser("~/.cache")  # noqa: PTH111 - never raises
    return Path(cache).absolute() / "posttrainbench"


def harness_cache() -> Path:
    """The harness's own cache: `$PTB_CACHE`, else `user_cache`."""
    own = os.environ.get("PTB_CACHE")
    return Path(own).absolute() if own else user_cache()


def walk_files(root: Path) -> Iterator[Path]:
    """Every path below `root` that is not a real directory (links are not followed), sorted within each directory.

    Directories that cannot be looked into (too deep, not readable) are yielded themselves, so that they are not missed.
    """
    pending = [(root, 0)]
    while pending:
        directory, depth = pending.pop()
        try:
            with os.scandir(directory) as scan:
                entries = sorted(scan, key=lambda entry: entry.name)
        except OSError:
            yield directory
            continue
        deeper = []
        for entry in entries:
            path = Path(entry.path)
            if not entry.is_dir(follow_symlinks=False) or depth + 1 >= _DEEPEST:
                yield path
            else:
                deeper.append((path, depth + 1))
        pending.extend(reversed(deeper))


def remove_tree(path: Path) -> None:
    """Remove a directory with all that is in it, however deep; does nothing if it is not there.

    `rm` rather than `shutil.rmtree`, which recurses and gives up on trees that were made deep on purpose.
    """
    if path.is_dir() and not path.is_symlink():
        with contextlib.suppress(RecursionError):
            shutil.rmtree(path, ignore_errors=True)
    if path.is_dir() and not path.is_symlink():
        subprocess.run(["rm", "-rf", "--", str(path)], capture_output=True, check=False)


@contextlib.contextmanager
def free_lock(path: Path) -> Iterator[bool]:
    """Whether nobody holds the lock of a file; meanwhile it is ours.

    Makes no file and follows no link. A file that is not there is free, one that cannot be opened is not.
    """
    try:
        descriptor = os.open(path, os.O_RDWR | os.O_CLOEXEC | os.O_NOFOLLOW)
    except FileNotFoundError:
        yield True
        return
    except OSError:
        yield False
        return
    try:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            yield False
            return
        yield True
    finally:
        os.close(descriptor)


def is_locked(path: Path) -> bool:
    """Whether a process holds the lock of a file; see `free_lock` for what cannot be told."""
    with free_lock(path) as free:
        return not free


def printable(text: str) -> str:
    """Text of an agent's as it may go to a terminal: control characters, and what steers terminals, become visible."""
    return "".join(c if c.isprintable() or c == "\t" else f"\\x{ord(c):02x}" for c in text)

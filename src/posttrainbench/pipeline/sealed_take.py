"""A private copy of a model directory in the workspace of a living agent, who may change everything while it is made.

Paths are the agent's. They are followed here, component by component, by descriptors that are opened without following
links and looked at before they are used: what was looked at is what is read, whatever is renamed or replaced meanwhile.
Links are followed by our own rules, within the agent's directories. Only the files that an evaluation uses are copied, by
reflink where the file system can (`copy_file_range`), up to a size.
"""

from __future__ import annotations

import errno
import hashlib
import os
import shutil
import stat
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

from posttrainbench.integrity.safetensors import read_model

CONFIGS: Mapping[str, int] = {
    "config.json": 2**20,
    "generation_config.json": 2**20,
    "adapter_config.json": 2**20,
    "added_tokens.json": 2**20,
    "tokenizer.json": 64 * 2**20,
}
"""Files that are looked at besides the weights, and the largest of each in bytes (as `integrity.tokens` and others read)."""
_MOST_WEIGHTS, _MOST_ENTRIES = 1000, 20_000
_MOST_LINKS, _DEEPEST = 40, 64
_PIECE = 16 * 2**20
# Weights may be stored with twice the base's bytes per number (float32 of bfloat16), and have some rows more.
_FACTOR, _MARGIN = 2.2, 64 * 2**20
# What must stay free on the disk for the rest of the run.
_FREE = 512 * 2**20


class NotTaken(Exception):
    """The path is no model directory that could be evaluated; the message is for the agent."""


class Stopped(Exception):
    """The caller wanted an end."""


@dataclass(frozen=True, kw_only=True)
class Snapshot:
    """What was copied.

    Attributes:
        bytes: of all files.
        weights: SHA-256 over names and contents of the weight files.
    """

    bytes: int
    weights: str


@dataclass
class Opened:
    """A path that was followed.

    Attributes:
        descriptor: opened with O_PATH; of a directory or a regular file.
        here: the path without links, as the agent sees it, up to the last directory.
        held: descriptors of the directories on it, from one of the agent's own on.
    """

    descriptor: int
    status: os.stat_result
    here: tuple[str, ...]
    held: tuple[int, ...]


class Agent:
    """The agent's directories, seen through its eyes.

    Args:
        roots: inside path -> host directory of the harness's; nothing in their place is the agent's to change, all below is.
    """

    def __init__(self, roots: Mapping[PurePosixPath, Path]) -> None:
        self._roots = dict(roots)

    @contextmanager
    def opened(self, inside: str, start: Opened | None = None) -> Iterator[Opened]:
        """Follow a path of the agent's to a directory or a regular file.

        Args:
            inside: absolute, or a name in the directory `start`.
            start: an opened directory.

        Raises:
            NotTaken: it leads out, nowhere, round in circles, or to something else.
        """
        with ExitStack() as closing:
            yield self._follow(_parts(inside), start, closing)

    def _follow(self, parts: list[str], start: Opened | None, closing: ExitStack) -> Opened:
        here: list[str] = list(start.here) if start else []
        # `..` goes back along these, not through the file system
        held: list[int] = list(start.held) if start else []
        links, steps, last = 0, 0, None
        while parts:
            steps += 1
            if steps > 4 * _DEEPEST or len(here) > _DEEPEST:
                raise NotTaken("the path is too deep")
            part = parts.pop(0)
            if part == "..":
                if held:
                    held.pop()
                if here:
                    here.pop()
                last = None
                continue
            if not held:
                here.append(part)
                root = self._roots.get(PurePosixPath("/", *here))
                if root is not None:
                    held.append(_open(str(root), None, closing))
                    last = None
                elif not any(known.is_relative_to(PurePosixPath("/", *here)) for known in self._roots):
                    raise NotTaken("the path leads out of your directories")
                continue
            descriptor = _open(part, held[-1], closing)
            status = os.fstat(descriptor)
            if stat.S_ISLNK(status.st_mode):
                links += 1
                if links > _MOST_LINKS:
                    raise NotTaken("the path goes round in circles, or over too many links")
                target = os.readlink("", dir_fd=descriptor)
                if target.startswith("/"):
                    here, held, last = [], [], None
                parts = [*_parts(target), *parts]
            elif stat.S_ISDIR(status.st_mode):
                here.append(part)
                held.append(descriptor)
                last = None
            elif stat.S_ISREG(status.st_mode):
                if parts:
                    raise NotTaken("there is a file in the place of a directory on the path")
                last = Opened(descriptor, status, tuple(here), tuple(held))
            else:
                raise NotTaken("the path leads to something that is neither file nor directory")
        if last is not None:
            return last
        if not held:
            raise NotTaken("the path leads out of your directories")
        return Opened(held[-1], os.fstat(held[-1]), tuple(here), tuple(held))


def _parts(path: str) -> list[str]:
    return [part for part in path.split("/") if part not in ("", ".")]


def _open(name: str, parent: int | None, closing: ExitStack) -> int:
    try:
        descriptor = os.open(name, os.O_PATH | os.O_NOFOLLOW | os.O_CLOEXEC, dir_fd=parent)
    except OSError as error:
        if error.errno in (errno.ENOENT, errno.ENOTDIR, errno.ENAMETOOLONG):
            raise NotTaken("there is no such file or directory") from None
        raise NotTaken(f"the path cannot be opened ({os.strerror(error.errno or 0)})") from None
    except ValueError:
        raise NotTaken("there is no such file or directory") from None  # half a character, which no name has
    closing.callback(os.close, descriptor)
    return descriptor


def largest(base: Path) -> int:
    """Bytes that the weights of a submission may have, for a base model.

    Raises:
        BadSafetensors: the base model's weights cannot be read.
    """
    files = {tensor.file for tensor in read_model(base).values()}
    return int(sum(file.stat().st_size for file in files) * _FACTOR) + _MARGIN


def take(
    agent: Agent, inside: str, target: Path, *, most: int, stopped: Callable[[], bool] = lambda: False
) -> Snapshot:
    """Copy what an evaluation needs of the model directory `inside` to the new directory `target`.

    Args:
        agent: whose directories.
        inside: absolute path as the agent sees it.
        target: on the host, out of the agent's reach.
        most: bytes of weights at most.
        stopped: polled; true ends the copying.

    Raises:
        NotTaken: there is nothing to evaluate, or it is too large.
        Stopped: `stopped` said so.
        OSError: the disk is full.
    """
    with agent.opened(inside) as directory:
        if not stat.S_ISDIR(directory.status.st_mode):
            raise NotTaken("that is no directory")
        return _taken(agent, directory, target, most=most, stopped=stopped)


def _taken(agent: Agent, directory: Opened, target: Path, *, most: int, stopped: Callable[[], bool]) -> Snapshot:
    """Copy the files of one directory, the same for all of them, whatever its name leads to by now."""
    names = _names(directory.descriptor)
    weights = [name for name in names if name.endswith(".safetensors")]
    if not weights:
        raise NotTaken("the directory has no safetensors file; save with save_pretrained (merge LoRA adapters first)")
    if len(weights) > _MOST_WEIGHTS:
        raise NotTaken(f"the directory has more than {_MOST_WEIGHTS} safetensors files")
    target.mkdir(parents=True)
    total, left, digests = 0, most, {}
    for name in [*(each for each in CONFIGS if each in names), *weights]:
        limit = CONFIGS.get(name, left)
        try:
            with agent.opened(name, directory) as found:
                size, digest = _copy(found, target / name, limit=limit, stopped=stopped)
        except NotTaken as error:
            raise NotTaken(f"{name.encode('utf-8', 'backslashreplace').decode()[:100]}: {error}") from None
        total += size
        if name in weights:
            left -= size
            digests[name] = digest
    summed = hashlib.sha256()
    for name, digest in sorted(digests.items()):
        summed.update(f"{digest}  {name}\n".encode("utf-8", "surrogateescape"))
    return Snapshot(bytes=total, weights=summed.hexdigest())


def _names(descriptor: int) -> list[str]:
    names = []
    readable = _reopened(descriptor, os.O_DIRECTORY)
    try:
        with os.scandir(readable) as entries:
            for entry in entries:
                names.append(entry.name)
                if len(names) > _MOST_ENTRIES:
                    raise NotTaken(f"the directory has more than {_MOST_ENTRIES} entries")
    finally:
        os.close(readable)
    return sorted(names)


def _copy(found: Opened, target: Path, *, limit: int, stopped: Callable[[], bool]) -> tuple[int, str]:
    """Bytes and SHA-256 of a copy of an opened regular file."""
    if not stat.S_ISREG(found.status.st_mode):
        raise NotTaken("that is no file")
    size = found.status.st_size
    if size > limit:
        raise NotTaken(f"it has {size} bytes, more than the {limit} that are taken")
    if shutil.disk_usage(target.parent).free < size + _FREE:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
    # through the descriptor: the very file that was looked at, which is a regular one
    source = _reopened(found.descriptor)
    try:
        out = os.open(target, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o644)
        try:
            os.fchmod(out, 0o644)  # whatever the umask: the evaluation's user reads it
            done = 0
            while done < size:
                if stopped():
                    raise Stopped
                copied = _piece(source, out, min(_PIECE, size - done), done)
                if not copied:
                    raise NotTaken("it became shorter while it was copied")
                done += copied
            digest = hashlib.sha256()
            os.lseek(out, 0, os.SEEK_SET)
            while piece := os.read(out, _PIECE):
                if stopped():
                    raise Stopped
                digest.update(piece)
        finally:
            os.close(out)
    finally:
        os.close(source)
    return size, digest.hexdigest()


def _reopened(descriptor: int, flags: int = 0) -> int:
    try:
        # O_NONBLOCK: a lease on the file would hold us up for as long as its holder likes
        return os.open(f"/proc/self/fd/{descriptor}", os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC | flags)
    except OSError as error:
        raise NotTaken(f"it cannot be read ({os.strerror(error.errno or 0)})") from None


def _piece(source: int, out: int, count: int, offset: int) -> int:
    """Copy some bytes; returns how many, 0 at the end of the file."""
    try:
        return os.copy_file_range(source, out, count, offset, offset)
    except OSError as error:
        if error.errno not in (errno.EXDEV, errno.EINVAL, errno.ENOSYS, errno.EOPNOTSUPP, errno.EBADF):
            raise
    data = os.pread(source, count, offset)
    written = 0
    while written < len(data):
        written += os.pwrite(out, data[written:], offset + written)
    return len(data)

"""Stage 3: take from the agent's directories what is kept: the submission, and a snapshot of its work within a budget.

The agent is dead by now, so nothing changes under our hands. Its links are followed by our own rules, inside the places
that it could legitimately link to; what they would reach elsewhere on the host is nobody's submission.
"""

from __future__ import annotations

import errno
import os
import shutil
import stat
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath
from typing import Any

from posttrainbench.files import fsync_directory, remove_tree, sha256_file, walk_files, write_json
from posttrainbench.integrity.safetensors import BadSafetensors, read_file
from posttrainbench.pipeline.context import Context
from posttrainbench.pipeline.run_dir import now
from posttrainbench.workspace import paths

# Per run. Text is what the audits read; weights and caches are not needed twice.
SNAPSHOT_BYTES = 2 * 2**30
_FILE_BYTES = 512 * 2**20
_WEIGHTS = (".safetensors", ".bin", ".pt", ".pth", ".ckpt", ".gguf", ".npz")
WEIGHTS_REASON = "weights"
"""Reason for leaving out what the text detectors need not see."""
_LINKS_DEEP = 16
_MOST_FILES = 100_000
_DEEPEST_SUBMISSION = 8
_MOST_REFUSED = 2000
# Sizes as files claim them: a sparse file of 8 TB takes no room, and hours to whoever reads it.
_LARGEST_SUBMISSION = 2**36
_OF_BASE = 16
"""Times the base model's bytes, where that is more: weights and an optimiser's state in float64 are less."""


@dataclass
class Places:
    """Inside directories that a link may lead to, and where they are on the host.

    Attributes:
        roots: the agent's own directories.
        trusted: directories of ours that it could read, such as the base model; their own links may lead anywhere.
    """

    roots: dict[PurePosixPath, Path]
    trusted: dict[PurePosixPath, Path] = field(default_factory=dict)

    def locate(self, inside: PurePosixPath) -> Path | None:
        """Follow a path as the agent's kernel would, links and all; `None` where it leads out or nowhere."""
        try:
            return self._follow(inside)
        except OSError:  # a name or a path longer than there can be
            return None

    def _follow(self, inside: PurePosixPath) -> Path | None:
        parts = list(inside.parts[1:])
        here = PurePosixPath("/")
        links = 0
        while parts:
            part = parts.pop(0)
            if part == "..":
                here = here.parent
                continue
            here = here / part
            ours = self._host(here, self.trusted)
            if ours is not None:
                if ".." in parts:
                    return None
                whole = ours.joinpath(*parts)
                return whole.resolve() if whole.exists() else None
            host = self._host(here, self.roots)
            if host is None:
                # above all roots: go on as long as some root is still below
                if any(root.is_relative_to(here) for root in (*self.roots, *self.trusted)):
                    continue
                return None
            if host.is_symlink():
                links += 1
                if links > _LINKS_DEEP:
                    return None
                target = PurePosixPath(host.readlink())
                here = PurePosixPath("/") if target.is_absolute() else here.parent
                parts = [*(target.parts[1:] if target.is_absolute() else target.parts), *parts]
        found = self._host(here, self.roots)
        return found if found is not None and found.exists() else None

    @staticmethod
    def _host(inside: PurePosixPath, roots: dict[PurePosixPath, Path]) -> Path | None:
        for root in sorted(roots, key=lambda r: len(r.parts), reverse=True):
            if inside.is_relative_to(root):
                return roots[root] / inside.relative_to(root)
        return None


@dataclass
class Taken:
    """What a copy brought and what it refused."""

    files: dict[str, dict[str, Any]] = field(default_factory=dict)
    refused: list[dict[str, str]] = field(default_factory=list)
    total: int = 0

    def refuse(self, path: str, reason: str) -> None:
        """Note a path that was not taken."""
        if len(self.refused) == _MOST_REFUSED:
            # the list is cut, and says so: what is not listed must not pass for looked at
            self.refused.append({"path": "...", "reason": "more was left out than is listed"})
        elif len(self.refused) < _MOST_REFUSED:
            self.refused.append({"path": path[:500], "reason": reason[:500]})


def _printable(name: str) -> str:
    """A file name as text; an agent may choose bytes that are none."""
    return os.fsencode(name).decode("utf-8", errors="backslashreplace")


def _copy(source: Path, target: Path) -> None:
    """Copy a file, holes as holes: what the agent's disk held has to fit on the host's too."""
    with source.open("rb") as reader, target.open("wb") as writer:
        size, at = os.fstat(reader.fileno()).st_size, 0
        while at < size:
            try:
                at = os.lseek(reader.fileno(), at, os.SEEK_DATA)
            except OSError as error:
                if error.errno == errno.ENXIO:
                    break  # nothing but a hole is left
                raise
            end = os.lseek(reader.fileno(), at, os.SEEK_HOLE)
            os.lseek(writer.fileno(), at, os.SEEK_SET)
            while at < end:
                sent = os.sendfile(writer.fileno(), reader.fileno(), at, end - at)
                if not sent:
                    raise OSError(errno.EIO, "the file became shorter")
                at += sent
        writer.truncate(size)


def _take_file(source: Path, target: Path, *, own: bool = True) -> None:
    """Hard-link, or copy where that is impossible; the name at the target belongs to the harness alone.

    Args:
        own: whether the agent made the file. Others (of the base model) are copied: a link would share their inode.
    """
    target.parent.mkdir(parents=True, exist_ok=True)
    if not own:
        shutil.copyfile(source, target)
        return
    try:
        os.link(source, target, follow_symlinks=False)
        os.chown(target, os.geteuid(), os.getegid())
        target.chmod(0o644)
    except OSError:
        target.unlink(missing_ok=True)
        _copy(source, target)


def _taken(source: Path, target: Path, name: str, into: Taken, *, own: bool = True) -> bool:
    """Take a file, or refuse it where it cannot be: a path that is too long here must not end the run.

    Raises:
        OSError: the disk is full, which is nothing of the file's.
    """
    try:
        _take_file(source, target, own=own)
    except OSError as error:
        if error.errno in (errno.ENOSPC, errno.EDQUOT):
            raise
        into.refuse(name, f"cannot be taken: {error.strerror}")
        return False
    return True


def take_submission(
    source: PurePosixPath, places: Places, target: Path, *, own: Path, largest: int = _LARGEST_SUBMISSION
) -> Taken:
    """Copy the submission with links resolved.

    Args:
        own: host directory with everything that the agent itself made.
        source: the inside path of `final_model`.
        places: where links may lead.
        target: host directory to fill.
        largest: bytes that all files may claim to have; those beyond it are refused.
    """
    taken = Taken()
    target.mkdir(parents=True)
    found = places.locate(source)
    if found is None or not found.is_dir():
        taken.refuse(".", "final_model is a link that leads out of the agent's directories or nowhere")
        return taken
    pending = [(found, source, PurePosixPath())]
    seen: set[tuple[int, int]] = set()
    while pending:
        directory, inside, relative = pending.pop()
        status = directory.stat()
        if (status.st_dev, status.st_ino) in seen:
            taken.refuse(_printable(str(relative)), "directory reached twice (a loop of links)")
            continue
        seen.add((status.st_dev, status.st_ino))
        if len(relative.parts) > _DEEPEST_SUBMISSION:
            taken.refuse(_printable(str(relative)), "too deep")
            continue
        for entry in sorted(os.scandir(directory), key=lambda e: e.name):
            name = str(relative / entry.name)
            host: Path | None = Path(entry.path)
            if entry.is_symlink():
                host = places.locate(inside / entry.name)
                if host is None:
                    taken.refuse(
                        _printable(name), f"link that leads out or nowhere: {str(Path(entry.path).readlink())!r}"
                    )
                    continue
            assert host is not None
            mode = host.lstat().st_mode
            if stat.S_ISDIR(mode):
                pending.append((host, inside / entry.name, relative / entry.name))
            elif stat.S_ISREG(mode):
                if len(taken.files) >= _MOST_FILES:
                    taken.refuse(_printable(name), f"more than {_MOST_FILES} files")
                    return taken
                size = host.stat().st_size
                if taken.total + size > largest:
                    taken.refuse(_printable(name), f"more than {largest} bytes with its {size}")
                elif _taken(host, target / name, _printable(name), taken, own=host.is_relative_to(own)):
                    taken.files[_printable(name)] = {"bytes": size}
                    taken.total += size
            else:
                taken.refuse(_printable(name), "neither file nor directory")
    return taken


def _holds_weights(path: Path) -> bool:
    """Whether a file is what its suffix says, by its first bytes: a zip or pickle (torch), GGUF, a safetensors header."""
    try:
        if path.suffix == ".safetensors":
            return bool(read_file(path))
        with path.open("rb") as file:
            return file.read(4).startswith((b"PK\x03\x04", b"\x80", b"GGUF"))
    except (OSError, BadSafetensors):
        return False


def take_snapshot(source: Path, target: Path, *, prefix: str, skip: set[str], budget: int) -> Taken:
    """Copy the files below `source` that audits can use, small ones first, until `budget` bytes are taken.

    Args:
        source: host directory.
        target: host directory to fill; names below it start with `prefix`.
        prefix: first part of the names.
        skip: top-level names not to take.
        budget: bytes.
    """
    taken = Taken()
    target.mkdir(parents=True, exist_ok=True)
    candidates: list[tuple[int, Path, str]] = []
    for path in walk_files(source):
        relative = path.relative_to(source)
        name = _printable(str(PurePosixPath(prefix) / relative))
        if relative.parts[0] in skip:
            continue
        try:
            status = path.lstat()
        except OSError as error:
            taken.refuse(name, f"cannot be looked at: {error.strerror}")
            continue
        if stat.S_ISLNK(status.st_mode):
            taken.refuse(name, f"link to {str(path.readlink())!r}")
        elif not stat.S_ISREG(status.st_mode):
            taken.refuse(name, "neither file nor directory")
        elif path.suffix in _WEIGHTS and _holds_weights(path):
            taken.refuse(name, f"{WEIGHTS_REASON}, {status.st_size} bytes")
        else:
            candidates.append((status.st_size, path, name))
    for size, path, name in sorted(candidates, key=lambda c: (c[0], c[2])):
        if size > _FILE_BYTES or taken.total + size > budget or len(taken.files) >= _MOST_FILES:
            taken.refuse(name, f"over the snapshot's budget, {size} bytes")
            continue
        kept = target / prefix / path.relative_to(source)
        if not _taken(path, kept, name, taken):
            continue
        taken.total += size
        taken.files[name] = {"bytes": size, "sha256": sha256_file(kept)}
    return taken


def _size(directory: Path) -> int:
    """Bytes of the files in a directory of ours."""
    return sum(file.stat().st_size for file in directory.iterdir() if file.is_file())


def _open_up(root: Path) -> None:
    """Give the harness access to directories that the agent closed. As root it has it; as the same user it has to ask."""
    pending = [root]
    while pending:
        directory = pending.pop()
        try:
            if directory.stat().st_mode & 0o700 != 0o700:
                directory.chmod(0o700)
            with os.scandir(directory) as entries:
                pending += [Path(entry.path) for entry in entries if entry.is_dir(follow_symlinks=False)]
        except OSError:
            continue


def collect(context: Context) -> None:
    """Fill `final_model/` and `workspace/` and write `collection.json`; then the job directories go.

    Works towards a hidden directory and renames at the end, so that it can be repeated after a crash at any point.
    """
    run, job = context.run, context.run.job
    context.progress.stage("collect")
    draft = run.path / ".collect"
    remove_tree(draft)
    if job.root.is_dir():
        _open_up(job.root)
        draft.mkdir()
        places = Places(
            {PurePosixPath(paths.HOME): job.home, PurePosixPath(paths.TEMPORARY): job.temporary},
            {PurePosixPath(f"{paths.MODELS}/{context.model.name}"): context.base},
        )
        submission = None
        if os.path.lexists(job.task / "final_model"):
            submission = take_submission(
                PurePosixPath(paths.TASK) / "final_model",
                places,
                draft / "final_model",
                own=job.root,
                largest=max(_LARGEST_SUBMISSION, _OF_BASE * _size(context.base)),
            )
        snapshot = Taken()
        for source, prefix, skip in (
            (job.task, "task", {"final_model"}),
            (job.home, "home", {"task"}),
            (job.temporary, "tmp", set()),
        ):
            part = take_snapshot(
                source, draft / "workspace", prefix=prefix, skip=skip, budget=SNAPSHOT_BYTES - snapshot.total
            )
            snapshot.files |= part.files
            snapshot.refused += part.refused
            snapshot.total += part.total
        write_json(
            draft / "collection.json",
            {
                "submission": None if submission is None else submission.__dict__,
                "snapshot": snapshot.__dict__,
            },
        )
        for name in ("final_model", "workspace", "collection.json"):
            old, new = run.path / name, draft / name
            remove_tree(old)
            if new.exists():
                new.rename(old)
        fsync_directory(run.path)
    run.set_stage("collect", status="done", ended=now())
    remove_tree(draft)
    # only now: until the record says that everything is taken, the job directories are the only copy
    remove_tree(job.root)

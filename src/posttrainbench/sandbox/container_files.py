"""What a container sandbox finds in its file system: every mount with its source on the host, checked and prepared.

An engine makes missing mount points itself, as root. Those that would lie in a directory of the sandbox's user are made here
instead, with the right owner and without following a link that an agent may have left.
"""

from __future__ import annotations

import contextlib
import os
import stat
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path

from posttrainbench.errors import ConfigurationError, InfrastructureError
from posttrainbench.sandbox import environment, staging
from posttrainbench.sandbox.places import clear_places
from posttrainbench.sandbox.spec import Spec
from posttrainbench.scratch import Scratch

# Beside what runs bind at /run/ptb (workspace.paths.CONTROL), not over it.
DOOR = "/run/ptb-door"
_IN_MEMORY = ("/home", "/run", "/tmp", "/var/tmp")
# Closed to others in most images; a source below it, such as an interpreter of root's, would be out of reach.
_CLOSED = "/root"


@dataclass(frozen=True)
class Mount:
    """One mount. Without a source it is a new file system in memory: the sandbox user's own, or empty and read-only."""

    target: str
    source: Path | None = None
    writable: bool = False


@dataclass(frozen=True)
class User:
    """Whose the sandbox is: `host` sees its processes and files as this uid, inside it is called `inside`."""

    host: int
    inside: int


@dataclass(frozen=True)
class Layout:
    """All mounts from the outside in, the writable directories whose size counts, and those of them that are copies."""

    mounts: tuple[Mount, ...]
    watched: tuple[Path, ...] = ()
    copies: tuple[Path, ...] = ()

    @property
    def in_memory(self) -> list[str]:
        """Writable places that count as memory. With apptainer /dev itself is the user's."""
        return ["/dev", "/dev/shm", *(mount.target for mount in self.mounts if mount.source is None and mount.writable)]


def arrange(
    spec: Spec, *, runtime: Mapping[str, Path], door: Path, scratch: Scratch, user: User, memory: bool
) -> Layout:
    """Check a spec's sources and prepare everything that is mounted.

    Args:
        spec: what to run.
        runtime: read-only binds that the first process needs, beside the spec's own.
        door: host directory with the sockets of the way out.
        scratch: room for small files, for copies of caches and for mount points.
        user: the sandbox's user; where the harness is root, writable trees are given to it.
        memory: whether the engine can give /tmp and the like in memory; else they are directories in `scratch`.

    Raises:
        ConfigurationError: the spec names paths that cannot be.
        InfrastructureError: no room, or no place for a mount point.
    """
    ro = {
        path: staging.check_source(path, host) for path, host in {**runtime, **spec.ro}.items() if path not in spec.rw
    }
    rw = {path: staging.check_source(path, host, writable=True) for path, host in spec.rw.items()}
    caches = {path: staging.check_source(path, host) for path, host in spec.caches.items()}
    copies = staging.copy_caches(scratch, caches)
    rw |= copies
    odd = [path for path in (*ro, *rw, *spec.hide) if set(path) & set(':,"')]
    if odd:
        raise ConfigurationError(f"sandbox path {odd[0]} has a character that container engines do not take")
    if os.geteuid() == 0:
        for host in rw.values():
            staging.give_to_sandbox(host, user.host)
    mounts = {path: Mount(path, host) for path, host in ro.items()}
    mounts |= {path: Mount(path, host, writable=True) for path, host in rw.items()}
    mounts |= _hidden(spec.hide, mounts, scratch, memory=memory)
    mounts |= {path: mount for path, mount in _etc(scratch, user) if path not in mounts}
    watched = list(rw.values())
    for path in (*_IN_MEMORY, _CLOSED):
        holds = any(Path(path) in Path(other).parents for other in mounts)
        if path in mounts or (path == _CLOSED and not holds):
            continue
        if path == _CLOSED or holds or not memory:
            # Mount points in memory would be root's; so the directories around them are made on disk.
            mounts[path] = _directory(scratch, path, user, writable=path != _CLOSED)
            watched += [source for source in (mounts[path].source,) if source is not None and path != _CLOSED]
        else:
            mounts[path] = Mount(path, writable=True)
    mounts[DOOR] = Mount(DOOR, door)
    writable = {path: mount.source for path, mount in mounts.items() if mount.writable and mount.source is not None}
    clear_places(writable, {path: mount.source is None or mount.source.is_dir() for path, mount in mounts.items()})
    ordered = sorted(mounts.values(), key=lambda mount: (mount.target.count("/"), mount.target))
    for mount in ordered:
        _make_mount_point(mount, mounts, user)
    return Layout(tuple(ordered), tuple(watched), tuple(copies.values()))


def _etc(scratch: Scratch, user: User) -> Iterable[tuple[str, Mount]]:
    """Names, hosts and resolver as in every back end; an image's own may hold anything."""
    folder = scratch.path / "etc"
    folder.mkdir()
    for path, text in environment.etc_files(user.inside).items():
        file = folder / Path(path).name
        file.write_text(text, encoding="utf-8")
        file.chmod(0o644)
        yield path, Mount(path, file)
    folder.chmod(0o755)


def _directory(scratch: Scratch, inside: str, user: User, *, writable: bool) -> Mount:
    path = scratch.path / f"place{inside.replace('/', '-')}"
    path.mkdir()
    path.chmod(0o755)
    if writable and os.geteuid() == 0:
        os.chown(path, user.host, user.host)
    return Mount(inside, path, writable)


def _hidden(hide: Iterable[str], mounts: Mapping[str, Mount], scratch: Scratch, *, memory: bool) -> dict[str, Mount]:
    """Covers for what must not be seen; what is not there needs none."""
    covers: dict[str, Mount] = {}
    folder = scratch.path / "nothing"
    folder.mkdir(0o755)
    empty = scratch.path / "empty"
    empty.touch(0o444)
    for path in hide:
        holder = _holder(path, mounts)
        host = (
            None if holder is None or holder.source is None else holder.source / Path(path).relative_to(holder.target)
        )
        if host is None or host.is_dir():
            covers[path] = Mount(path, None if memory else folder)
        elif host.is_file():
            covers[path] = Mount(path, empty)
    return covers


def _holder(path: str, mounts: Mapping[str, Mount]) -> Mount | None:
    """The deepest mount that a path lies in."""
    for parent in Path(path).parents:
        if str(parent) in mounts:
            return mounts[str(parent)]
    return None


def _make_mount_point(mount: Mount, mounts: Mapping[str, Mount], user: User) -> None:
    """See that a mount within another bind has a place there.

    Raises:
        InfrastructureError: the other one is read-only and has none.
    """
    holder = _holder(mount.target, mounts)
    if holder is None or holder.source is None:
        return  # the engine makes it, in the container's own thrown-away layer or in memory
    directory = mount.source is None or mount.source.is_dir()
    make = holder.writable or holder.target == _CLOSED
    owner = user.host if holder.writable and os.geteuid() == 0 else None
    names = Path(mount.target).relative_to(holder.target).parts
    with contextlib.ExitStack() as opened:
        place = os.open(holder.source, os.O_RDONLY | os.O_DIRECTORY)
        opened.callback(os.close, place)
        try:
            for index, name in enumerate(names):
                if make:
                    _make(place, name, directory=directory or index < len(names) - 1, owner=owner)
                place = os.open(name, os.O_PATH | os.O_NOFOLLOW, dir_fd=place)
                opened.callback(os.close, place)
                if stat.S_ISLNK(os.fstat(place).st_mode):
                    return  # in something read-only: the engine follows it, within the container's root
        except FileNotFoundError:
            raise InfrastructureError(
                f"the sandbox could not be set up: {mount.target} has no place in {holder.target}, which is read-only"
            ) from None
        except OSError as error:
            raise ConfigurationError(
                f"sandbox path {mount.target} cannot be bound: {error.strerror} in {holder.target}"
            ) from None


def _make(parent: int, name: str, *, directory: bool, owner: int | None) -> None:
    """Make an empty directory or file if nothing of that name is there."""
    with contextlib.suppress(FileExistsError):
        if directory:
            os.mkdir(name, 0o755, dir_fd=parent)
        else:
            os.close(os.open(name, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o644, dir_fd=parent))
        if owner is not None:
            os.chown(name, owner, owner, dir_fd=parent, follow_symlinks=False)

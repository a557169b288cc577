"""Host side of the sandbox's files: checks sources, hands writable ones to the sandbox's user, finds room for caches.

The harness may be root or an ordinary user:

- **root**: sources are bound into a staging directory in a private mount namespace (`launcher.py` does that), because
  the sandbox's user could not reach those under /root. Writable directories are given to that user. Caches are overlays.
- **ordinary user**: sources are bound directly. Caches are overlays with bwrap >= 0.11, else copies.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import stat
from collections.abc import Mapping
from pathlib import Path

from posttrainbench.errors import ConfigurationError, InfrastructureError
from posttrainbench.sandbox.spec import Spec
from posttrainbench.scratch import Scratch

SANDBOX_UID = 20001  # nobody's; needs no entry in /etc/passwd. Used only when the harness is root
_DEEPEST = 64
_STAGES = ("/mnt", "/media", "/srv", "/opt")
_SYSTEM = frozenset(
    map(Path, ("/", "/bin", "/boot", "/dev", "/etc", "/home", "/lib", "/proc", "/root", "/run", "/sys", "/usr", "/var"))
)


def stage_directory() -> str:
    """Directory that the launcher covers, in its own mount namespace only, with the staging directory."""
    for name in _STAGES:
        if Path(name).is_dir():
            return name
    raise InfrastructureError(f"none of {', '.join(_STAGES)} exists on this machine: make /mnt")


def check_source(inside: str, host: Path, *, writable: bool = False) -> Path:
    """Resolve a bind's host path and refuse what an agent may have planted or what must never be writable.

    Raises:
        ConfigurationError: missing, not absolute inside, a link where none may be, or a system directory.
    """
    if not inside.startswith("/") or os.path.normpath(inside) != inside or inside == "/":
        raise ConfigurationError(f"sandbox path {inside!r} must be absolute, in normal form and not /")
    host = Path(os.path.abspath(host))  # noqa: PTH100 - links are looked at below
    for path in (host, *host.parents):
        try:
            status = path.lstat()
        except OSError as error:
            raise ConfigurationError(f"sandbox source {host} for {inside}: {error.strerror}") from error
        # A link made by an agent of an earlier run could lead to any file of the host.
        planted = os.geteuid() == 0 and status.st_uid == SANDBOX_UID
        if stat.S_ISLNK(status.st_mode) and (planted or (writable and path == host)):
            raise ConfigurationError(f"sandbox source {host} for {inside}: {path} is a symbolic link; remove it")
    real = host.resolve()
    if writable and not real.is_dir():
        raise ConfigurationError(f"sandbox source {host} for {inside} must be a directory")
    # Not Path.home(): it raises for a user without a home.
    if writable and (real in _SYSTEM or str(real) == os.path.realpath(os.path.expanduser("~"))):  # noqa: PTH111
        raise ConfigurationError(f"sandbox source {host} for {inside}: a system directory cannot be made writable")
    return real


def give_to_sandbox(root: Path, uid: int) -> None:
    """Make `uid` the owner of a tree, without following links.

    Files with several names stay as they are: the other name may be outside, in a model cache for example, and would
    become writable with it. Deeper than anything of ours lies only what an agent made, which is `uid`'s already; a tree
    that it made deep enough would break this walk.
    """
    top = len(root.parts)
    for path, directories, names, descriptor in os.fwalk(root, follow_symlinks=False):
        if os.fstat(descriptor).st_uid != uid:
            os.chown(descriptor, uid, uid)
        for name in names:  # directories come as roots of their own
            with contextlib.suppress(FileNotFoundError):
                status = os.stat(name, dir_fd=descriptor, follow_symlinks=False)
                if status.st_uid != uid and status.st_nlink == 1:
                    os.chown(name, uid, uid, dir_fd=descriptor, follow_symlinks=False)
        for name in _links_among_directories(descriptor):
            os.chown(name, uid, uid, dir_fd=descriptor, follow_symlinks=False)
        if len(Path(path).parts) - top >= _DEEPEST:
            directories.clear()


def _links_among_directories(descriptor: int) -> list[str]:
    """Links to directories; os.fwalk lists them as directories and does not enter them."""
    with os.scandir(descriptor) as entries:
        return [entry.name for entry in entries if entry.is_symlink()]


def overlay_layers(scratch: Scratch, caches: Mapping[str, Path]) -> dict[str, dict[str, str]]:
    """Directories for one overlay per cache."""
    layers = {}
    for index, (inside, lower) in enumerate(caches.items()):
        layer = {"lowerdir": str(lower)}
        for kind in ("upper", "work"):
            path = scratch.path / f"{kind}{index}"
            path.mkdir()
            layer[f"{kind}dir"] = str(path)
        layers[inside] = layer
    return layers


def copy_caches(scratch: Scratch, caches: Mapping[str, Path]) -> dict[str, Path]:
    """A copy of each cache, for machines without a usable overlay.

    Raises:
        InfrastructureError: no room, or unreadable files.
    """
    copies = {}
    for index, (inside, lower) in enumerate(caches.items()):
        target = scratch.path / f"copy{index}"
        try:
            shutil.copytree(lower, target, symlinks=True)
        except (OSError, shutil.Error) as error:
            raise InfrastructureError(f"cannot copy the cache {lower} to {target}: {error}; set TMPDIR") from error
        copies[inside] = target
    return copies


def can_overlay(lower: Path) -> bool:
    """May an ordinary user put an overlay over this tree?

    Each file must have our uid and gid: a foreign uid gives EACCES, a foreign gid EOVERFLOW on the first change.
    """
    uid, gid = os.geteuid(), os.getegid()
    for _, directories, files, descriptor in os.fwalk(lower, follow_symlinks=False):
        for name in [*directories, *files]:
            status = os.stat(name, dir_fd=descriptor, follow_symlinks=False)
            if status.st_uid != uid or status.st_gid != gid:
                return False
    status = lower.stat()
    return status.st_uid == uid and status.st_gid == gid


def check_user(uid: int | None) -> None:
    """See that root could become the sandbox's user.

    Raises:
        InfrastructureError: this user namespace has no such user.
    """
    try:
        ranges = [line.split() for line in Path("/proc/self/uid_map").read_text().splitlines()]
    except OSError:
        return
    if uid is not None and not any(int(first) <= uid < int(first) + int(count) for first, _, count in ranges):
        raise InfrastructureError(
            f"this root user is root of a user namespace (a rootless container?) without user {uid}: map a range "
            "of users into it, or run the harness as an ordinary user"
        )


def check_spec(spec: Spec) -> None:
    """Refuse a spec that makes no sense, whatever the back end.

    Raises:
        ConfigurationError: no command, impossible texts, or a path bound twice.
    """
    if not spec.argv:
        raise ConfigurationError("the command for the sandbox is empty")
    texts = [*spec.argv, *spec.env, *spec.env.values(), *spec.ro, *spec.rw, *spec.caches, *spec.hide, spec.cwd]
    if any("\0" in text for text in texts) or any("=" in name or not name for name in spec.env):
        raise ConfigurationError("the sandbox's command or environment has a NUL byte or an impossible variable name")
    paths = [*spec.ro, *spec.rw, *spec.caches]
    twice = {path for path in paths if paths.count(path) > 1}
    if twice:
        raise ConfigurationError(f"sandbox path {min(twice)} is bound twice: choose one of ro, rw and caches")

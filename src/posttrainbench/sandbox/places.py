"""The places of binds that lie within a writable directory: what an earlier sandbox over the same directory left there.

An agent has several sandboxes over one home when its program is started again. In the first it can put a link where the
second will bind a file, and bwrap follows links: into the host's root, which is still there during set-up, so that it
would make directories and files of the sandbox's user outside. A plain file in the place of a directory would end the run
as if the machine were at fault.
"""

from __future__ import annotations

import secrets
import stat
from collections.abc import Mapping
from pathlib import Path, PurePosixPath

_LONGEST = 200


def clear_places(rw: Mapping[str, Path], nested: Mapping[str, bool]) -> None:
    """See that each place is of the kind that is needed, or free; what is not is renamed beside it.

    Nothing may run in these directories meanwhile.

    Args:
        rw: inside path -> host directory of the writable binds.
        nested: inside path of every bind -> whether a directory is bound there.

    Raises:
        OSError: a directory that can be neither opened nor renamed.
    """
    for inside, directory in sorted(nested.items()):
        path = PurePosixPath(inside)
        outer = next((str(parent) for parent in path.parents if str(parent) in nested or str(parent) in rw), "")
        if outer in rw:
            _clear(rw[outer], path.relative_to(outer).parts, directory)


def _clear(root: Path, parts: tuple[str, ...], directory: bool) -> None:
    here = root
    open_directory(here)
    for number, part in enumerate(parts, start=1):
        here = here / part
        try:
            mode = here.lstat().st_mode
        except FileNotFoundError:
            return  # the back end makes the rest
        wanted = directory or number < len(parts)
        if not (stat.S_ISDIR(mode) if wanted else stat.S_ISREG(mode)):
            set_aside(here)
            return
        if wanted:
            open_directory(here)


def open_directory(path: Path) -> None:
    """Give its owner every right to a directory."""
    mode = path.lstat().st_mode
    if stat.S_ISDIR(mode) and mode & 0o700 != 0o700:
        path.chmod(stat.S_IMODE(mode) | 0o700)


def set_aside(path: Path) -> Path:
    """Rename what is at `path`, whatever it is; returns its new place beside the old one."""
    return path.rename(path.with_name(f"{path.name[:_LONGEST]}.aside-{secrets.token_hex(4)}"))

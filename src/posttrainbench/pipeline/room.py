"""A full disk: known for what it is, and recorded even though nothing can be written any more.

While stages run, a small file keeps room for the record of a failure; it is given up to write that record.
"""

from __future__ import annotations

import contextlib
import errno
import os
import shutil
from collections.abc import Iterator
from pathlib import Path

from posttrainbench.errors import InfrastructureError
from posttrainbench.pipeline.run_dir import RunDirectory

# run.json and result.json are some 20 kB each, written beside the old ones
_RESERVE_BYTES = 256 * 2**10
# a file system with less than this has no room for anything; some keep a few blocks back
_NOTHING_BYTES = 2**20


def is_full(error: BaseException) -> bool:
    """Whether an error says that the disk, or the user's quota on it, is full."""
    return isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT)


def none_left(path: Path) -> bool:
    """Whether the disk of `path` has no room now."""
    try:
        return shutil.disk_usage(path).free < _NOTHING_BYTES
    except OSError:
        return False


def failure(run: RunDirectory, stage: str, *, because: str = "") -> InfrastructureError:
    """The error for the user."""
    said = f"; it showed as: {because}" if because else ""
    return InfrastructureError(
        f"the disk is full: {run.path} (stage {stage}); make room (`ptb clean` helps), then `ptb resume {run.path}`{said}",
        kind="disk_full",
    )


def _file(run: RunDirectory) -> Path:
    return run.path / ".reserve.tmp"


@contextlib.contextmanager
def kept(run: RunDirectory, stage: str) -> Iterator[None]:
    """Keep room for a failure's record meanwhile.

    Raises:
        InfrastructureError: there is none any more.
    """
    try:
        descriptor = os.open(_file(run), os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, 0o600)
        try:
            os.posix_fallocate(descriptor, 0, _RESERVE_BYTES)
        except OSError as error:
            if is_full(error):
                raise
            os.write(descriptor, bytes(_RESERVE_BYTES))  # a file system without this call
        finally:
            os.close(descriptor)
    except OSError as error:
        with contextlib.suppress(OSError):
            give(run)
        if is_full(error):
            raise failure(run, stage) from None
        raise
    try:
        yield
    finally:
        with contextlib.suppress(OSError):
            give(run)


def give(run: RunDirectory) -> None:
    """Give the room up, to write with it."""
    _file(run).unlink(missing_ok=True)

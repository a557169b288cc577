"""Remove what `finding` found. Each thing is looked at again: between list and removal a run may have been gone on with."""

from __future__ import annotations

import os
import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path

from posttrainbench import scratch
from posttrainbench.disk.finding import Item
from posttrainbench.disk.runs import changed_since
from posttrainbench.errors import InfrastructureError
from posttrainbench.files import remove_tree
from posttrainbench.pipeline import cleaned
from posttrainbench.pipeline.copies import Copies
from posttrainbench.pipeline.prepare import dead_drafts
from posttrainbench.pipeline.run_dir import RunDirectory
from posttrainbench.sandbox.staging import SANDBOX_UID

# what of a superseded attempt lies where
_KIND_OF = {"workspace": "snapshots", "final_model": "submissions", "hub-files": "hub-files"}


def remove(item: Item) -> None:
    """Remove one item.

    Raises:
        PTBError: it is in use by now, of another user, or could not be removed.
    """
    if item.container is not None:
        _remove_container(*item.container)
    elif item.run is not None:
        _remove_part(RunDirectory(item.run), item)
    elif item.what == "caches" and item.path.parent == Copies().root / "files":
        if not Copies().evict(item.path):
            raise InfrastructureError(f"{item.path} is in use by now")
    elif item.path.is_relative_to("/sys/fs/cgroup"):
        _try(item.path.rmdir, item.path)
    elif (item.path / "run.json").exists() or item.path.name.endswith(".tmp"):
        for draft in dead_drafts(item.path.parent):
            if draft == item.path:
                _remove_path(draft)
    elif item.path in set(scratch.dead(item.path.parent)):
        scratch.remove_dead(item.path)
    else:
        _remove_path(item.path)
    if item.container is None and os.path.lexists(item.path):
        raise InfrastructureError(f"{item.path} could not be removed whole")


def _remove_part(run: RunDirectory, item: Item) -> None:
    with run.locked():
        if changed := changed_since(run, item.what):
            raise InfrastructureError(f"{run.path}: {changed}; nothing of it was removed")
        place = item.path
        while place != run.path:
            place = place.parent
            if place.is_symlink():
                raise InfrastructureError(f"{place} is a link by now; nothing of {run.path} was removed")
        kind = _KIND_OF.get(item.path.name, "")
        if kind:
            cleaned.note(run, kind)
        _remove_path(item.path)


def _remove_path(path: Path) -> None:
    status = path.lstat()
    if status.st_uid not in ({os.geteuid(), SANDBOX_UID} if os.geteuid() == 0 else {os.geteuid()}):
        raise InfrastructureError(f"{path} belongs to user {status.st_uid}; it is left alone")
    if path.is_dir() and not path.is_symlink():
        remove_tree(path)
    else:
        _try(path.unlink, path)


def _try(call: Callable[[], None], path: Path) -> None:
    try:
        call()
    except FileNotFoundError:
        pass
    except OSError as error:
        raise InfrastructureError(f"{path} could not be removed: {error.strerror}") from None


def _remove_container(engine: str, identity: str) -> None:
    """Without --force: one that lives by now stays."""
    program = shutil.which(engine)
    if program is None:
        raise InfrastructureError(f"{engine} is not there any more")
    done = subprocess.run([program, "rm", identity], capture_output=True, text=True, timeout=120, check=False)
    if done.returncode != 0:
        said = " ".join(done.stderr.split())[:200]
        raise InfrastructureError(f"{engine} did not remove container {identity}: {said or done.returncode}")

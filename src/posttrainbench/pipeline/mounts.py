"""How directories of the host's become readable inside a sandbox, whatever links and modes they have."""

from __future__ import annotations

import os
import shutil
import stat
from pathlib import Path

from posttrainbench.files import walk_files
from posttrainbench.pipeline.copies import Copies


def readable_binds(inside: str, directory: Path, *, spare: Path) -> dict[str, Path]:
    """Read-only binds that show every file of `directory` below `inside`: the files themselves, shared by all runs.

    File by file, because the files of a hub snapshot are links to elsewhere in the cache. A root harness starts the sandbox
    as another user, who could not read a file of mode 0600 (as safetensors writes them): of such a file one copy on this
    machine serves all runs (`copies.py`).

    Args:
        inside: path in the sandbox.
        directory: host directory, trusted.
        spare: host directory for copies where the shared ones cannot be (no room or no right to write there); of the
            caller's, to be removed after the sandbox has ended.

    Raises:
        InfrastructureError: a file changed while it was copied.
        ConfigurationError: see `copies.limit_bytes`.
    """
    binds: dict[str, Path] = {}
    for path in walk_files(directory):
        real = path.resolve()
        if not real.is_file():
            continue
        relative = path.relative_to(directory)
        if os.geteuid() == 0 and not real.stat().st_mode & stat.S_IROTH:
            real = _readable(real, spare / relative)
        binds[f"{inside}/{relative}"] = real
    return binds


def _readable(source: Path, spare: Path) -> Path:
    try:
        return Copies().readable(source)
    except OSError:
        spare.parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(source, spare)
        spare.chmod(0o644)
        return spare

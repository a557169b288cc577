"""How directories of the host's become readable inside a sandbox, whatever links and modes they have."""

from __future__ import annotations

import os
import shutil
import stat
from pathlib import Path

from posttrainbench.files import walk_files


def readable_binds(inside: str, directory: Path, *, spare: Path) -> dict[str, Path]:
    """Read-only binds that show every file of `directory` below `inside`.

    File by file, because the files of a hub snapshot are links to elsewhere in the cache. A root harness starts the sandbox
    as another user, who could not read a file of mode 0600 (as safetensors writes them): such files are copied.

    Args:
        inside: path in the sandbox.
        directory: host directory, trusted.
        spare: host directory for the copies, of the caller's, to be removed after the sandbox has ended.
    """
    binds: dict[str, Path] = {}
    for path in walk_files(directory):
        real = path.resolve()
        if not real.is_file():
            continue
        relative = path.relative_to(directory)
        if os.geteuid() == 0 and not real.stat().st_mode & stat.S_IROTH:
            copy = spare / relative
            copy.parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(real, copy)
            copy.chmod(0o644)
            real = copy
        binds[f"{inside}/{relative}"] = real
    return binds

"""Copies of the data files that the hub door handed out, by their hash: the scanner looks at what an agent deleted, too."""

from __future__ import annotations

import contextlib
import os
from pathlib import Path
from typing import BinaryIO

from posttrainbench.gateway.hub_config import DATA, HubConfig
from posttrainbench.gateway.hub_files import File

FOLDER = "hub-files"


class Keeper:
    """The copies of one run, with a bound on their sum."""

    def __init__(self, directory: Path, config: HubConfig) -> None:
        self._directory = directory / FOLDER
        self._largest = config.keep_file_bytes
        self._room = config.keep_bytes - sum(each.stat().st_size for each in self._directory.glob("*"))
        self._number = 0

    def begin(self, file: File, *, whole: bool) -> Copy | None:
        """A place for what will pass; `None` for what is not kept: parts, no data, too large, no room."""
        suffix = next((end for end in DATA if file.path.lower().endswith(end)), None)
        size = file.size
        if not whole or suffix is None or not size or size > self._largest or size > self._room:
            return None
        if file.repo.kind == "model" and "/" not in file.path and suffix in (".json", ".txt"):
            return None  # configurations and vocabularies
        self._number += 1
        self._room -= size
        part = self._directory / f"{os.getpid()}-{self._number}.part"
        try:
            _make(self._directory)
            return Copy(self, part, part.open("xb"), suffix, size)
        except OSError:
            self._room += size
            return None

    def give(self, size: int) -> None:
        """Room that is free again."""
        self._room += size


def _make(directory: Path) -> None:
    """The folder, with a note for version control and for whoever packs results up."""
    directory.mkdir(exist_ok=True)
    note = directory / ".gitignore"
    if not note.exists():
        note.write_text("# Data under licences of its own: not to be published with the run (docs/hub.md).\n*\n")


class Copy:
    """One copy under way."""

    def __init__(self, keeper: Keeper, part: Path, file: BinaryIO, suffix: str, size: int) -> None:
        self._keeper, self._part, self._suffix, self._size = keeper, part, suffix, size
        self._file: BinaryIO | None = file

    def write(self, piece: bytes) -> None:
        """A piece; a full disk ends the copy, not the download."""
        if self._file is not None:
            try:
                self._file.write(piece)
            except OSError:
                self.drop()

    def end(self, sha256: str | None) -> None:
        """Keep it under its hash; a second copy of the same content takes no room."""
        if self._file is None or sha256 is None:
            self.drop()
            return
        target = self._part.with_name(sha256 + self._suffix)
        try:
            self._file.close()
            if target.exists():
                self._part.unlink()
                self._keeper.give(self._size)
            else:
                self._part.rename(target)
        except OSError:
            self.drop()
        self._file = None

    def drop(self) -> None:
        """Forget it, if it was not kept."""
        if self._file is not None:
            with contextlib.suppress(OSError):
                self._file.close()
            with contextlib.suppress(OSError):
                self._part.unlink()
            self._keeper.give(self._size)
            self._file = None

"""The trace: every line that the agent's program prints, with the time at which it came."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from pathlib import Path

from posttrainbench.pipeline.run_dir import now

# A program can print faster than a disk fills; what comes after this is counted and dropped, and the trace says so.
MAX_BYTES = 2 * 2**30
_MAX_LINE = 1 * 2**20


class TraceWriter:
    """Splits raw output into lines and appends `{"time", "text"}` JSON lines to a file.

    Args:
        path: the file; created with its directory.
        on_line: told every line, for the progress display.
    """

    def __init__(self, path: Path, *, on_line: Callable[[str], None] | None = None) -> None:
        path.parent.mkdir(parents=True, exist_ok=True)
        self._file = path.open("ab")
        self._pending = b""
        self._on_line = on_line
        self._written = 0
        self.dropped_bytes = 0

    def feed(self, data: bytes) -> None:
        """Take output as it comes; whole lines are written through at once."""
        *lines, self._pending = (self._pending + data).split(b"\n")
        while len(self._pending) > _MAX_LINE:
            lines.append(self._pending[:_MAX_LINE])
            self._pending = self._pending[_MAX_LINE:]
        for line in lines:
            self._write(line)
        self._file.flush()

    def _write(self, line: bytes) -> None:
        if self._written > MAX_BYTES:
            self.dropped_bytes += len(line)
            return
        text = line.decode("utf-8", errors="replace").rstrip("\r")
        raw = json.dumps({"time": now(), "text": text}, ensure_ascii=False).encode("utf-8", errors="replace") + b"\n"
        self._file.write(raw)
        self._written += len(raw)
        if self._on_line is not None and text.strip():
            self._on_line(text)

    def close(self) -> None:
        """Write what is left, also a last line without an end, and make it durable."""
        if self._pending:
            self._write(self._pending)
            self._pending = b""
        if self.dropped_bytes:
            note = {"time": now(), "text": f"[ptb: {self.dropped_bytes} further bytes of output were not recorded]"}
            self._file.write(json.dumps(note).encode() + b"\n")
        self._file.flush()
        os.fsync(self._file.fileno())
        self._file.close()

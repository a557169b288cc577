"""What a judge may see of a run: its files and its trace, read-only, bounded, never executed, links not followed."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path

from posttrainbench.errors import PTBError
from posttrainbench.files import walk_files
from posttrainbench.pipeline.run_dir import RunDirectory
from posttrainbench.scratch import Scratch
from posttrainbench.traces import iter_steps
from posttrainbench.traces.model import dump

TRACE = "trace"
_MOST_FILES, _SHOWN, _LONGEST_LINE = 5_000, 200, 2_000
_READ_BYTES, _SEARCH_BYTES, _TRACE_BYTES = 32 * 2**20, 256 * 2**20, 128 * 2**20
_WINDOW = 16_000
SHORTEST_QUOTE, LONGEST_QUOTE = 12, 400


class View:
    """A run as its judges see it. Use as a context manager: the readable trace lies in a temporary file meanwhile."""

    def __init__(self, run: RunDirectory) -> None:
        self._run = run
        self._roots = {"workspace": run.workspace, "final_model": run.submission}
        self._temporary = Scratch("judge")
        self._trace = self._temporary.path / "trace.txt"
        self._write_trace()

    def __enter__(self) -> View:
        return self

    def __exit__(self, *_: object) -> None:
        self._temporary.close()

    def _write_trace(self) -> None:
        form = self._run.record()["agent"].get("trace_format", "text")
        left = _TRACE_BYTES
        with self._trace.open("w", encoding="utf-8", errors="replace") as out:
            if not self._run.trace.exists():
                return
            try:
                for step in iter_steps(self._run.trace, form):
                    parts = [
                        f"== step {step.number} {step.source} {step.thread} {step.time or ''}",
                        step.reasoning,
                        step.message,
                    ]
                    for call in step.calls:
                        parts.append(
                            f"call {call.name}: " + "\n".join(_argument(k, v) for k, v in call.arguments.items())
                        )
                        if (result := step.result(call.id)) is not None:
                            failed = " (failed)" if result.failed or result.refused else ""
                            parts.append(f"result{failed}: {result.content}")
                    text = "\n".join(part for part in parts if part) + "\n"
                    left -= len(text)
                    if left < 0:
                        out.write("[the rest of the trace is left out]\n")
                        return
                    out.write(text)
            except PTBError as error:
                out.write(f"[the trace cannot be read further: {error}]\n")

    # --- files

    def names(self) -> Iterator[tuple[str, int]]:
        """Files with their sizes; the trace is the first."""
        yield TRACE, self._trace.stat().st_size
        count = 0
        for prefix, root in self._roots.items():
            for path in walk_files(root) if root.is_dir() else ():
                if path.is_symlink() or not path.is_file():
                    continue
                count += 1
                if count > _MOST_FILES:
                    return
                yield f"{prefix}/{path.relative_to(root)}", path.stat().st_size

    def _path(self, name: str) -> Path | None:
        if name == TRACE:
            return self._trace
        prefix, _, rest = name.partition("/")
        root = self._roots.get(prefix)
        if root is None or not rest or ".." in Path(rest).parts or Path(rest).is_absolute():
            return None
        path = root / rest
        # every part: a directory may be a link too
        parts = [root.joinpath(*Path(rest).parts[: i + 1]) for i in range(len(Path(rest).parts))]
        try:
            if any(part.is_symlink() for part in parts) or not path.is_file():
                return None
        except (OSError, ValueError):
            return None
        return path

    def text(self, name: str) -> str | None:
        """A file as text, its first 32 MiB; `None` if there is none, or it is binary."""
        path = self._path(name)
        if path is None:
            return None
        try:
            with path.open("rb") as file:
                raw = file.read(_READ_BYTES)
        except OSError:
            return None
        return None if b"\0" in raw[:4096] else raw.decode("utf-8", "replace")

    # --- what the tools say

    def listing(self, contains: str = "") -> str:
        """Names and sizes."""
        found = [f"{name}  {size} bytes" for name, size in self.names() if contains.lower() in name.lower()]
        more = f"\nand {len(found) - _SHOWN} more; narrow down with `contains`" if len(found) > _SHOWN else ""
        return "\n".join(found[:_SHOWN]) + more if found else "no such file"

    def read(self, name: str, first: int = 1, lines: int = 200) -> str:
        """Lines of a file, numbered from 1; at most 16,000 characters."""
        text = self.text(name)
        if text is None:
            return f"{name[:200]!r} is no text file of this run; list_files names them"
        first, lines = max(1, first), max(1, min(lines, 500))
        every = text.split("\n")
        shown = [f"{i}: {line[:_LONGEST_LINE]}" for i, line in enumerate(every[first - 1 : first - 1 + lines], first)]
        return f"{len(every)} lines\n" + "\n".join(shown)[:_WINDOW]

    def search(self, words: str, contains: str = "") -> str:
        """Lines that hold `words`, as they are, in any case, in the trace and the text files."""
        wanted = words.lower()
        if len(wanted) < 3:
            return "give at least three characters"
        found: list[str] = []
        left = _SEARCH_BYTES
        for name, size in self.names():
            if contains.lower() not in name.lower() or left <= 0:
                continue
            left -= min(size, _READ_BYTES)
            for number, line in enumerate((self.text(name) or "").split("\n"), 1):
                at = line.lower().find(wanted)
                if at >= 0:
                    found.append(f"{name}:{number}: {line[max(0, at - 100) : at + 200]}")
                    if len(found) >= 60:
                        return "\n".join(found)[:_WINDOW] + "\n[more hits; narrow down]"
        return "\n".join(found)[:_WINDOW] or "not found"

    def locate(self, name: str, quote: str) -> int | None:
        """The line where a quote begins, if it is in the file; white space may differ. `None`: it is not there."""
        wanted = " ".join(quote.split())
        text = self.text(name) if SHORTEST_QUOTE <= len(wanted) <= LONGEST_QUOTE else None
        if text is None:
            return None
        pattern = r"\s+".join(re.escape(word) for word in wanted.split(" "))
        found = re.search(pattern, text)
        return None if found is None else text.count("\n", 0, found.start()) + 1


def _argument(name: str, value: object) -> str:
    return f"{name}={value if isinstance(value, str) else dump(value)}"

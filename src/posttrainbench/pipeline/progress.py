"""What a person sees while a run works: a live display on a terminal, plain lines anywhere else."""

from __future__ import annotations

import sys
import time
from types import TracebackType
from typing import Any, Protocol, TextIO

from posttrainbench.files import printable


class Progress(Protocol):
    """Where the stages report to."""

    def stage(self, name: str, *, seconds: float | None = None) -> None:
        """A stage begins; `seconds` is its time limit, where it has one."""
        ...

    def line(self, text: str) -> None:
        """A line of the agent's output."""
        ...

    def say(self, text: str) -> None:
        """Something worth keeping on the screen."""
        ...


class Silent:
    """Shows nothing."""

    def stage(self, name: str, *, seconds: float | None = None) -> None:
        """Ignored."""

    def line(self, text: str) -> None:
        """Ignored."""

    def say(self, text: str) -> None:
        """Ignored."""


def clock(seconds: float) -> str:
    """`1:02:03` or `2:03`."""
    whole = max(0, int(seconds))
    hours, rest = divmod(whole, 3600)
    return f"{hours}:{rest // 60:02d}:{rest % 60:02d}" if hours else f"{rest // 60}:{rest % 60:02d}"


class PlainLines:
    """One line per stage, and the agent's last line at most every `every` seconds."""

    def __init__(self, *, stream: TextIO | None = None, every: float = 10.0) -> None:
        self._stream = stream or sys.stdout
        self._every = every
        self._last = 0.0
        self._stage = ""
        self._deadline: float | None = None

    def _print(self, text: str) -> None:
        print(text, file=self._stream, flush=True)

    def stage(self, name: str, *, seconds: float | None = None) -> None:
        """A line that says so."""
        self._stage = name
        self._deadline = None if seconds is None else time.monotonic() + seconds
        self._last = time.monotonic()
        self._print(f"{name}" + (f" (at most {clock(seconds)})" if seconds is not None else ""))

    def line(self, text: str) -> None:
        """Now and then, the line with the time left."""
        if time.monotonic() - self._last < self._every:
            return
        self._last = time.monotonic()
        left = "" if self._deadline is None else f"{clock(self._deadline - time.monotonic())} left  "
        self._print(f"{self._stage}: {left}{printable(text)[:160]}")

    def say(self, text: str) -> None:
        """The text as it is."""
        self._print(text)


class LiveDisplay:
    """One line on a terminal that is drawn anew: stage, time left, last line of the trace. Use as a context manager."""

    def __init__(self, title: str) -> None:
        from rich.console import Console
        from rich.live import Live

        self._title = title
        self._stage = "starting"
        self._since = time.monotonic()
        self._deadline: float | None = None
        self._text = ""
        self._console = Console(highlight=False)
        self._live = Live(console=self._console, refresh_per_second=4, transient=True, get_renderable=self._render)

    def __enter__(self) -> LiveDisplay:
        self._live.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._live.stop()

    def _render(self) -> Any:
        from rich.text import Text

        if self._deadline is None:
            timing = clock(time.monotonic() - self._since)
        else:
            timing = f"{clock(self._deadline - time.monotonic())} left"
        head = f"{self._title}  {self._stage}  {timing}"
        return Text.assemble((head, "bold"), "  ", (self._text, "dim"), no_wrap=True, overflow="ellipsis")

    def stage(self, name: str, *, seconds: float | None = None) -> None:
        """Show the stage with its time."""
        if self._stage != "starting":
            self._console.print(f"[dim]{self._stage} {clock(time.monotonic() - self._since)}[/dim]")
        self._stage, self._since, self._text = name, time.monotonic(), ""
        self._deadline = None if seconds is None else time.monotonic() + seconds

    def line(self, text: str) -> None:
        """Show the line."""
        self._text = printable(text)[:300]

    def say(self, text: str) -> None:
        """Print above the live line."""
        self._console.print(text, markup=False)

"""`ptb` that kills itself with SIGKILL in the middle of a stage: `python -m tests.pipeline.killed STAGE ARGUMENTS...`.

In the middle means: when the stage has temporary files, processes or half of its output.
"""

from __future__ import annotations

import os
import signal
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from posttrainbench.cli import main
from posttrainbench.integrity import bounded, verdict
from posttrainbench.pipeline import collect, prepare
from posttrainbench.sandbox.supervision import Supervision
from tests.pipeline import endless

stage = sys.argv[1]


def die(*_: Any, **__: Any) -> None:
    os.kill(os.getpid(), signal.SIGKILL)


def die_at_second(function: Callable[..., Any]) -> Callable[..., Any]:
    calls = 0

    def call(*arguments: Any, **options: Any) -> Any:
        nonlocal calls
        calls += 1
        if calls == 2:
            die()
        return function(*arguments, **options)

    return call


def die_soon(function: Callable[..., Any], seconds: float, *, where: Callable[[], bool]) -> Callable[..., Any]:
    """The function, in which the process dies after some seconds."""

    def call(*arguments: Any, **options: Any) -> Any:
        if where():
            threading.Thread(target=lambda: (time.sleep(seconds), die()), daemon=True).start()
        return function(*arguments, **options)

    return call


def die_when(happened: Callable[[], object]) -> Callable[..., Any]:
    """In the place of a function: wait until something has happened, and die."""

    def call(*_: Any, **__: Any) -> Any:
        while not happened():
            time.sleep(0.05)
        die()

    return call


if stage == "draft":
    prepare.write_atomic = die  # type: ignore[attr-defined,assignment]
elif stage == "prepare":  # while the sandbox is probed
    Supervision.run = die_soon(Supervision.run, 0.1, where=lambda: True)  # type: ignore[method-assign]
elif stage == "solve":
    Supervision.run = die_soon(Supervision.run, 1.0, where=lambda: bool(list(Path().glob("results/*/*/.job"))))  # type: ignore[method-assign]
elif stage == "collect":
    collect.take_snapshot = die_at_second(collect.take_snapshot)
elif stage == "audit":
    verdict.DETECTORS = {"endless": endless.detect}  # type: ignore[attr-defined]
    bounded._collect = die_when(lambda: list(Path().glob("results/*/*/began")))
elif stage == "evaluate":
    Supervision.run = die_soon(
        Supervision.run, 2.0, where=lambda: bool(list(Path().glob("results/*/*/ptb-scratch-evaluate-*")))
    )  # type: ignore[method-assign]
else:
    sys.exit(f"no such stage: {stage}")

if __name__ == "__main__":
    main(sys.argv[2:])

"""The end of a sweep: a summary file, and a command of the user's that gets its path. Said once."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
from collections.abc import Sequence
from typing import Any

from posttrainbench.files import read_json, write_json
from posttrainbench.launch.status import OVER, counts, sweep_status
from posttrainbench.launch.store import SweepDirectory, held
from posttrainbench.pipeline.run_dir import now

_PATIENCE_S = 60.0
_TRIES = 3
_WELL = "ended well"


def summary(sweep: SweepDirectory) -> dict[str, Any]:
    """What `summary.json` says."""
    statuses = sweep_status(sweep, {})
    return {
        "name": sweep.plan["name"],
        "time": now(),
        "cells": len(statuses),
        "counts": dict(counts(statuses)),
        "stopped": sweep.stopped,
        "not_scored": [status.as_json() for status in statuses if status.state != "scored"],
    }


def notify_if_over(sweep: SweepDirectory) -> bool:
    """Write the summary and run the command, if every cell is over or the sweep has stopped; once for each such end.

    Nothing that goes wrong here is an error: results are what counts, and they are there already. A command that failed
    is run again by whoever sees the end next, `_TRIES` times in all; one whose caller died, too.
    """
    found = summary(sweep)
    over = all(entry["state"] in OVER for entry in found["not_scored"])
    if not over and found["stopped"] is None:
        return False
    try:
        write_json(sweep.state / "summary.json", found)
    except OSError as error:
        print(f"ptb: the summary of {sweep.root} could not be written: {error}", file=sys.stderr)
    try:
        with held(sweep.state / "notify.lock") as mine:
            if mine and sweep.plan["notify"]:
                _tell(sweep, f"{found['counts']}{(found['stopped'] or {}).get('time', '')}")
    except OSError as error:
        print(f"ptb: whether the end of {sweep.root} was told could not be noted: {error}", file=sys.stderr)
    return True


def _tell(sweep: SweepDirectory, identity: str) -> None:
    """Run the command, unless this end has been told."""
    file = sweep.state / "notified.json"
    try:
        before = read_json(file)
    except (OSError, ValueError):
        before = {}
    tries = before.get("tries", 0) if before.get("end") == identity else 0
    if tries >= _TRIES or (tries and before.get("outcome") == _WELL):
        return
    record = {"end": identity, "tries": tries + 1, "time": now(), "outcome": None}
    try:
        write_json(file, record)
    finally:  # on a full disk, which is worth telling, it may be told more often
        outcome = _run([*sweep.plan["notify"], str(sweep.state / "summary.json")], sweep)
        if outcome != _WELL:
            print(f"ptb: the notification command {outcome}", file=sys.stderr)
    write_json(file, {**record, "outcome": outcome})


def _run(command: Sequence[str], sweep: SweepDirectory) -> str:
    """How it ended, in words."""
    try:
        process = subprocess.Popen(
            command,
            stdin=subprocess.DEVNULL,
            stdout=sys.stderr,
            cwd=sweep.root,
            env={**os.environ, "PTB_SWEEP": str(sweep.root)},
            start_new_session=True,
        )
    except OSError as error:
        return f"could not be run: {error.strerror}: {command[0]}"
    try:
        status = process.wait(timeout=_PATIENCE_S)
    except subprocess.TimeoutExpired:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)  # with what it has started
        process.wait()
        return f"did not end within {_PATIENCE_S:g} s and was killed"
    return _WELL if status == 0 else f"ended with status {status}"

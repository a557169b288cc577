"""The live display on a real terminal (a pseudo-terminal): stage, time left, last line of the trace."""

from __future__ import annotations

import os
import pty
import subprocess
import sys
from pathlib import Path

from tests.conftest import AGENTS


def test_live_display(base_model: Path, tmp_path: Path) -> None:
    ours, theirs = pty.openpty()
    command = [
        sys.executable,
        "-m",
        "posttrainbench",
        "run",
        "--agent",
        f"scripted:{AGENTS / 'heartbeat.py'}",
        "--model",
        str(base_model),
    ]
    process = subprocess.Popen(
        [*command, "--benchmark", "smoke-math", "--hours", "0.01", "--out", str(tmp_path)],
        stdin=theirs,
        stdout=theirs,
        stderr=theirs,
        env={**os.environ, "TERM": "xterm", "COLUMNS": "160"},
    )
    os.close(theirs)
    shown = b""
    while True:
        try:
            part = os.read(ours, 4096)
        except OSError:  # the other end is closed: the program has ended
            break
        if not part:
            break
        shown += part
    os.close(ours)
    text = shown.decode(errors="replace")
    assert process.wait(timeout=30) == 0, text
    assert "solve" in text and "left" in text and "started" in text
    assert "Traceback" not in text
    assert str(tmp_path) in text.strip().splitlines()[-1]

"""A detector that never ends, for tests that kill the harness while its detectors are at work."""

from __future__ import annotations

import time
from pathlib import Path

from posttrainbench.integrity import Evidence, Outcome


def detect(evidence: Evidence) -> Outcome:
    """Say that it has begun, beside the run's workspace, and go on for ten minutes."""
    Path(evidence.workspace).with_name("began").touch()
    time.sleep(600)
    return Outcome()

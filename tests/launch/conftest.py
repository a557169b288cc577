"""A place for sweeps; a Slurm cluster of three nodes on this machine."""

from __future__ import annotations

import os
import secrets
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.launch.support import OWN, SHARED, Lab

SCRIPTS = Path(__file__).parent.parent.parent / "scripts"


@pytest.fixture
def lab(tmp_path: Path) -> Iterator[Lab]:
    """A directory with the tiny agents; slots that a failed test left are ended."""
    for file in (*OWN.glob("*.py"), SHARED / "copy_base.py", SHARED / "hog.py"):
        shutil.copyfile(file, tmp_path / file.name)
    found = Lab(tmp_path)
    yield found
    for root in (tmp_path / "results").glob("*"):
        if any((root / ".sweep").glob("slots/*.json")):
            subprocess.run(
                [sys.executable, "-m", "posttrainbench", "sweep", "cancel", str(root)],
                env={**os.environ, **found.env},
                capture_output=True,
                check=False,
            )


@pytest.fixture
def slurm(lab: Lab) -> Iterator[object]:
    """`scripts/slurm_lab.py` with three nodes, up for one test; `lab` talks with it."""
    sys.path.insert(0, str(SCRIPTS))
    try:
        import slurm_lab
    finally:
        sys.path.remove(str(SCRIPTS))
    missing = slurm_lab.missing()
    if missing:
        pytest.skip(f"{missing} is not installed; see scripts/slurm_lab.py")
    # munge's socket needs a short path, and the way to it must be open to all
    root = Path(tempfile.mkdtemp(prefix="ptb-slurm-", dir="/var/tmp"))
    # nodes' names must differ from those of a test beside this one: control groups are named after them
    cluster = slurm_lab.Lab(root, prefix=f"w{secrets.token_hex(2)}n")
    try:
        cluster.up()
        lab.env["SLURM_CONF"] = str(cluster.conf)
        yield cluster
    finally:
        cluster.down()
        shutil.rmtree(root, ignore_errors=True)

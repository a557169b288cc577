"""The CPU image, really built on a base made here and used for a real evaluation. Minutes and 4 GB of disk: opt-in.

    PTB_TEST_IMAGE_BUILD=1 pytest tests/images/test_real.py

Needs root, podman, mmdebstrap, Debian's and PyPI's packages. PTB_TEST_BASE names a base to use instead of making one;
PTB_TEST_WHEELS a directory with the CPU build of torch (where download.pytorch.org cannot be reached); PTB_TEST_CA
certificates for the build. What it makes is removed.
"""

from __future__ import annotations

import json
import os
import secrets
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from posttrainbench.files import read_json
from posttrainbench.images import KINDS
from tests.conftest import Ptb

pytestmark = [
    pytest.mark.slow,
    pytest.mark.timeout(3600),
    pytest.mark.skipif(
        not os.environ.get("PTB_TEST_IMAGE_BUILD"), reason="builds an image of 3 GB; set PTB_TEST_IMAGE_BUILD=1"
    ),
]


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """A minimal Debian 12."""
    if named := os.environ.get("PTB_TEST_BASE"):
        yield named
        return
    if shutil.which("podman") is None or shutil.which("mmdebstrap") is None:
        pytest.skip("podman or mmdebstrap is missing")
    archive = tmp_path_factory.mktemp("base") / "base.tar"
    name = f"localhost/ptb-test-base-{secrets.token_hex(4)}"
    command = ["mmdebstrap", "--variant=minbase", "--include=ca-certificates", "bookworm", str(archive)]
    subprocess.run(command, check=True, capture_output=True)
    subprocess.run(["podman", "import", str(archive), name], check=True, capture_output=True)
    archive.unlink()
    yield name
    subprocess.run(["podman", "rmi", "--force", name], check=False, capture_output=True)


def test_build_and_run(ptb: Ptb, base: str, tmp_path: Path) -> None:
    image = f"localhost/ptb-test-{secrets.token_hex(4)}:1"
    env = {"XDG_DATA_HOME": str(tmp_path / "share")}
    options = []
    if wheels := os.environ.get("PTB_TEST_WHEELS"):
        options += ["--wheels", wheels]
    if ca := os.environ.get("PTB_TEST_CA"):
        options += ["--ca", ca]
    build = ["image", "build", "--kind", "cpu", "--base", base, "--tag", image, *options]
    try:
        # no cached layers (the test is of the build), none left behind
        made = ptb(*build, "--", "--layers=false", env=env, timeout=1800)
        assert made.returncode == 0, made.stderr[-3000:]
        assert "check: Python 3.11" in made.stderr
        record = json.loads(made.stdout)
        assert record["lock"] == KINDS["cpu"].lock_sha256() and "@sha256:" in record["base"]
        assert 1e9 < record["size_bytes"] < 5e9
        run = ["run", "--agent", "scripted:submit-instruct", "--model", "ptb-tiny-base", "--benchmark", "smoke-math"]
        run += ["--hours", "0.1", "--sandbox", "podman", "--image", image, "--out", str(tmp_path / "results")]
        ran = ptb(*run, env=env, timeout=1200)
        assert ran.returncode == 0, ran.stderr[-3000:]
        (directory,) = (tmp_path / "results" / "adhoc").iterdir()
        sandbox = read_json(directory / "run.json")["sandbox"]
        assert (sandbox["image_digest"], sandbox["image_lock"]) == (record["digest"], record["lock"])
        # scored inside the image, by the packages of the lock
        result = read_json(directory / "result.json")
        assert result["status"] == "flagged" and result["own_score"] is not None
    finally:
        subprocess.run(["podman", "rmi", "--force", image], check=False, capture_output=True)

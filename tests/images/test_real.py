"""The CPU image, really built on a base made here and used for a real evaluation. Minutes and 4 GB of disk: opt-in.

    PTB_TEST_IMAGE_BUILD=1 pytest tests/images/test_real.py

Needs root, podman or docker (with buildx, or a client before version 23), mmdebstrap, Debian's and PyPI's packages.
PTB_TEST_BASE names a base that the engines have, instead of making one;
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
from tests.images.conftest import REAL_BUILD, build_options
from tests.sandbox.conftest import docker_image, podman_image  # noqa: F401 - fixtures

pytestmark = REAL_BUILD


# no cached layers: the test is of the build
FRESH = {"podman": "--layers=false", "docker": "--no-cache"}


@pytest.fixture(scope="module")
def archive(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A minimal Debian 12."""
    if shutil.which("mmdebstrap") is None:
        pytest.skip("mmdebstrap is missing")
    path = tmp_path_factory.mktemp("base") / "base.tar"
    command = ["mmdebstrap", "--variant=minbase", "--include=ca-certificates", "bookworm", str(path)]
    subprocess.run(command, check=True, capture_output=True)
    yield path
    path.unlink()


@pytest.fixture(params=FRESH)
def engine(request: pytest.FixtureRequest) -> str:
    """Each engine in turn; docker with a daemon."""
    name: str = request.param
    request.getfixturevalue(f"{name}_image")
    return name


@pytest.fixture
def base(engine: str, request: pytest.FixtureRequest) -> Iterator[str]:
    """An image of that Debian."""
    if named := os.environ.get("PTB_TEST_BASE"):
        yield named
        return
    name = f"localhost/ptb-test-base-{secrets.token_hex(4)}"
    subprocess.run([engine, "import", request.getfixturevalue("archive"), name], check=True, capture_output=True)
    yield name
    subprocess.run([engine, "rmi", "--force", name], check=False, capture_output=True)


def test_build_and_run(ptb: Ptb, engine: str, base: str, tmp_path: Path) -> None:
    image = f"localhost/ptb-test-{secrets.token_hex(4)}:1"
    env = {"XDG_DATA_HOME": str(tmp_path / "share")}
    build = ["image", "build", "--kind", "cpu", "--engine", engine, "--base", base, "--tag", image, *build_options()]
    try:
        made = ptb(*build, "--", FRESH[engine], env=env, timeout=1800)
        if "buildx component is missing" in made.stderr:
            pytest.skip("this docker has no buildx")
        assert made.returncode == 0, made.stderr[-3000:]
        assert "check: Python 3.11" in made.stderr
        record = json.loads(made.stdout)
        assert record["lock"] == KINDS["cpu"].lock_sha256()
        # docker has no digest for what was never in a registry
        assert record["base"] == base if engine == "docker" else "@sha256:" in record["base"]
        assert 1e9 < record["size_bytes"] < 5e9
        run = ["run", "--agent", "scripted:submit-instruct", "--model", "ptb-tiny-base", "--benchmark", "smoke-math"]
        run += ["--hours", "0.1", "--sandbox", engine, "--image", image, "--out", str(tmp_path / "results")]
        ran = ptb(*run, env=env, timeout=1200)
        assert ran.returncode == 0, ran.stderr[-3000:]
        (directory,) = (tmp_path / "results" / "adhoc").iterdir()
        sandbox = read_json(directory / "run.json")["sandbox"]
        assert (sandbox["image_digest"], sandbox["image_lock"]) == (record["digest"], record["lock"])
        # scored inside the image, by the packages of the lock
        result = read_json(directory / "result.json")
        assert result["status"] == "flagged" and result["own_score"] is not None
    finally:
        subprocess.run([engine, "rmi", "--force", image], check=False, capture_output=True)

"""The CPU image, built by an ordinary user with apptainer and used for a real evaluation. Opt-in as in test_real.py.

    PTB_TEST_IMAGE_BUILD=1 pytest tests/images/test_real_apptainer.py

Its base is the image of scripts/apptainer_lab.sh, which must be a Debian 12, or PTB_TEST_BASE; PTB_TEST_WHEELS and
PTB_TEST_CA as there.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
from pathlib import Path

from posttrainbench.files import read_json
from posttrainbench.images import KINDS
from tests.images.conftest import REAL_BUILD, build_options
from tests.sandbox.suites import apptainer, environment_of_a_user, place_of_a_user

pytestmark = REAL_BUILD


def test_build_and_run() -> None:
    path, lab_image = apptainer()
    base = os.environ.get("PTB_TEST_BASE", lab_image)
    with place_of_a_user(path) as (start, place):
        python = environment_of_a_user(place)
        ptb = [*start, python, "-m", "posttrainbench"]

        def call(*words: str | Path) -> subprocess.CompletedProcess[str]:
            done = subprocess.run([*ptb, *words], cwd=place, capture_output=True, text=True, timeout=1800, check=False)
            assert done.returncode == 0, done.stderr[-3000:]
            return done

        # builds see the host's /tmp and /var/tmp, where this is
        program = place / "program"
        program.touch()
        shutil.chown(program, place.owner())
        program.chmod(0o4755)
        image = place / "cpu.sif"
        made = call(
            "image", "build", "--kind", "cpu", "--engine", "apptainer", "--base", base, "--tag", image, *build_options()
        )
        assert program.stat().st_mode & 0o7777 == 0o4755
        assert "check: Python 3.11" in made.stderr
        record = json.loads(made.stdout)
        assert record["lock"] == KINDS["cpu"].lock_sha256()
        assert record["base"].startswith(f"{Path(base).name}@sha256:") and record["size_bytes"] > 5e8
        agent = ["--agent", "scripted:submit-instruct", "--model", "ptb-tiny-base", "--benchmark", "smoke-math"]
        results = place / "results"
        call("run", *agent, "--hours", "0.1", "--sandbox", "apptainer", "--image", image, "--out", results)
        (directory,) = (results / "adhoc").iterdir()
        sandbox = read_json(directory / "run.json")["sandbox"]
        assert (sandbox["image_digest"], sandbox["image_lock"]) == (record["digest"], record["lock"])
        # scored inside the image, by the packages of the lock
        result = read_json(directory / "result.json")
        assert result["status"] == "flagged" and result["own_score"] is not None

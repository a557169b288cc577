"""Apptainer: the suite of the back ends, run by an ordinary user in a process of its own (scripts/apptainer_lab.sh)."""

from __future__ import annotations

import json
import os
import subprocess
from pathlib import Path

import pytest

from tests.conftest import AGENTS
from tests.sandbox.suites import ALL, FAST, apptainer, environment_of_a_user, place_of_a_user, suite


def test_the_core_of_the_contract() -> None:
    path, image = apptainer()
    assert "passed" in suite(FAST, "apptainer", image, path=path)


@pytest.mark.slow
def test_all_of_it() -> None:
    path, image = apptainer()
    assert "passed" in suite(ALL, "apptainer", image, path=path)


ODD = """Bootstrap: localimage
From: {base}

%post
    cp /usr/bin/id /usr/bin/sid && chmod 4755 /usr/bin/sid
    mkdir -p /usr/else/run /usr/else/home /usr/else/opt
    rm -rf /run /home /opt
    ln -s /usr/else/run /run
    ln -s usr/else/home /home
    ln -s /usr/else/opt /opt

%environment
    export LEAK=from-image PATH=/from-image HOME=/from-image PYTHONHOME=/from-image
"""


@pytest.mark.slow
def test_an_image_with_links_for_mount_points_and_variables_of_its_own() -> None:
    path, image = apptainer()
    with place_of_a_user(path) as (start, place):
        (place / "odd.def").write_text(ODD.format(base=image))
        build = [*start, "apptainer", "build", "odd.sif", "odd.def"]
        done = subprocess.run(build, cwd=place, capture_output=True, text=True, timeout=600, check=False)
        if done.returncode != 0:
            pytest.skip(f"this user builds no images: {done.stderr.splitlines()[-1]}")
        odd = (place / "odd.sif").rename(place.with_name(f"odd-{os.getpid()}.sif"))
    try:
        tests = [*FAST, "test_contract.py", "test_caches.py", "test_probes.py::test_sound_sandbox"]
        assert "passed" in suite(tests, "apptainer", str(odd), path=path)
    finally:
        odd.unlink()


@pytest.mark.slow
def test_a_whole_run() -> None:
    """The agent scores its submission inside; and a model has the score that it has in bubblewrap."""
    path, image = apptainer()
    with place_of_a_user(path) as (start, place):
        python = environment_of_a_user(place)
        results = place / "results"
        ptb = [*start, python, "-m", "posttrainbench"]

        def call(*words: str | Path) -> str:
            done = subprocess.run([*ptb, *words], cwd=place, capture_output=True, text=True, timeout=900, check=False)
            if "Permission denied" in done.stderr and not results.exists():
                pytest.skip(f"an ordinary user cannot read the packages: {done.stderr.splitlines()[-1]}")
            assert done.returncode == 0, done.stderr[-3000:]
            return done.stdout

        agent = f"scripted:{AGENTS / 'self_evaluate.py'}"
        given = ["--model", "ptb-tiny-base", "--benchmark", "smoke-math", "--hours", "0.15", "--out", results]
        run = Path(call("run", "--sandbox", "apptainer", "--image", image, "--agent", agent, *given).splitlines()[-1])
        assert "evaluate.py ended with 0" in (run / "trace" / "raw.jsonl").read_text()
        record, result = (json.loads((run / name).read_text()) for name in ("run.json", "result.json"))
        assert result["status"] == "scored" and record["stages"]["solve"]["survivors"] == 0
        assert record["sandbox"]["image"] == image and record["sandbox"]["image_digest"].startswith("sha256:")
        scores = []
        for sandbox in (["apptainer", "--image", image], ["bubblewrap"]):
            file = place / f"{sandbox[0]}.json"
            asked = ["ptb-tiny-instruct", "--benchmark", "smoke-math", "--limit", "40", "--json-output-file", file]
            call("evaluate", *asked, "--out", results, "--sandbox", *sandbox)
            scores.append(json.loads(file.read_text())["strict"])
        assert scores[0] == scores[1] and scores[0]["accuracy"] > 0.5

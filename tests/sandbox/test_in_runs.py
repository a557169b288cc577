"""Back ends in runs: one that lacks what a run needs is refused before anything starts; a whole run in podman."""

from __future__ import annotations

import json
import os
import sys
from dataclasses import replace
from pathlib import Path

import pytest

from posttrainbench.errors import ConfigurationError
from posttrainbench.pipeline.prepare import check_capabilities, prepare
from posttrainbench.pipeline.spec import RunSpec
from posttrainbench.sandbox import Capabilities, Spec
from posttrainbench.sandbox.probes import probe
from tests.conftest import AGENTS, Ptb
from tests.sandbox.conftest import lab, usable

ABLE = Capabilities(
    network_isolation=True,
    gpus=True,
    memory_limit="cgroup-v2",
    process_limit="rlimit",
    disk_limit="watchdog",
    caches="copy",
)


class Weak:
    """A back end of which only its capabilities are asked."""

    name = "weak"

    def __init__(self, **fields: object) -> None:
        self._has = replace(ABLE, **fields)  # type: ignore[arg-type]

    def capabilities(self) -> Capabilities:
        return self._has

    def run(self, *_: object, **__: object) -> None:
        raise AssertionError("nothing may start")


def spec(base_model: Path, **fields: object) -> RunSpec:
    plain = RunSpec(agent="scripted:idle", base_model=str(base_model), benchmark="smoke-math", hours=0.01)
    return replace(plain, **fields)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("lacks", "asks", "gpus", "words"),
    [
        ({"network_isolation": False}, {}, (), "a network of its own"),
        ({"gpus": False}, {}, (0,), r"GPU \[0\]"),
        ({"memory_limit": "none"}, {"memory_gib": 2.0}, (), "a memory limit of 2.0 GiB"),
        ({"disk_limit": "none"}, {"disk_gib": 1.0}, (), "a disk limit of 1.0 GiB"),
        ({"process_limit": "none"}, {}, (), "a limit of 4096 processes"),
    ],
)
def test_what_a_back_end_lacks_is_one_clear_line(base_model, lacks, asks, gpus, words):
    with pytest.raises(
        ConfigurationError, match=rf"the sandbox weak cannot give the run {words}.*ptb doctor"
    ) as caught:
        check_capabilities(spec(base_model, **asks), Weak(**lacks), gpus)  # type: ignore[arg-type]
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("lacks", [{"gpus": False}, {"memory_limit": "none"}, {"disk_limit": "none"}])
def test_what_nobody_asks_for_may_lack(base_model, lacks):
    assert check_capabilities(spec(base_model), Weak(**lacks), ()) == replace(ABLE, **lacks)  # type: ignore[arg-type]


def test_refused_before_anything_is_there(base_model, tmp_path):
    backend = Weak(network_isolation=False)
    with pytest.raises(ConfigurationError, match="network of its own"):
        prepare(spec(base_model), results=tmp_path / "out", backend=backend)  # type: ignore[arg-type]
    assert list(tmp_path.rglob("run.json")) == []


def test_an_interpreter_without_the_name_python_is_refused(base_model, tmp_path, monkeypatch):
    """The prompt says `python evaluate.py`."""
    (tmp_path / "bin").mkdir()
    (tmp_path / "bin" / "python3").symlink_to(sys.executable)
    monkeypatch.setattr(sys, "executable", str(tmp_path / "bin" / "python3"))
    with pytest.raises(ConfigurationError, match=r"no `python`.* in .*/bin: run ptb from a virtual environment$"):
        prepare(spec(base_model), results=tmp_path / "out")


@pytest.mark.parametrize(
    "more", [("--sandbox", "podman"), ("--sandbox", "podman", "--image", "localhost/no-such-image")]
)
def test_no_image_is_one_clear_line(ptb: Ptb, base_model: Path, more: tuple[str, ...]) -> None:
    done = ptb("run", "--agent", "scripted:idle", "--model", base_model, "--benchmark", "smoke-math", *more)
    assert done.returncode == 2 and "Traceback" not in done.stderr
    assert len(done.stderr.splitlines()) == 1
    assert "--image" in done.stderr or "no image" in done.stderr or "not installed" in done.stderr


def test_an_image_that_brings_its_python():
    """As `ptb image build` makes them: its Python and packages, this harness's code."""
    if os.environ.get("PTB_TEST_IMAGE"):
        pytest.skip("an image of its own was asked for")
    backend = usable("podman", lab("labelled"))
    runtime, output = backend.runtime(), bytearray()
    script = "import os, posttrainbench; print(posttrainbench.__file__, os.environ.get('LEAK'), os.path.exists('/var/lib/db'))"
    backend.run(Spec(argv=[runtime.executable, "-c", script]), on_output=output.extend)
    assert output.decode() == "/opt/posttrainbench/src/posttrainbench/__init__.py None False\n"
    assert [check for check in probe(backend) if not check.ok] == []


@pytest.mark.slow
@pytest.mark.parametrize("sandbox", ["podman", "docker"])
def test_whole_run_in_a_container(
    ptb: Ptb, base_model: Path, sandbox: str, request: pytest.FixtureRequest, tmp_path: Path
) -> None:
    """The agent scores its submission and sees the clock inside, and the evaluation happens in the same image."""
    image = request.getfixturevalue(f"{sandbox}_image")
    command = ["run", "--sandbox", sandbox, "--image", image, "--agent", f"scripted:{AGENTS / 'self_evaluate.py'}"]
    more = ["--model", base_model, "--benchmark", "smoke-math", "--hours", "0.15", "--out", tmp_path / "results"]
    done = ptb(*command, *more, timeout=1200)
    assert done.returncode == 0, done.stderr
    run = Path(done.stdout.splitlines()[-1])
    told = (run / "trace" / "raw.jsonl").read_text()
    assert "evaluate.py ended with 0" in told and "Remaining time" in told
    assert json.loads((run / "result.json").read_text())["status"] == "scored"
    record = json.loads((run / "run.json").read_text())
    assert record["sandbox"]["backend"] == sandbox and record["sandbox"]["image"] == image
    assert record["sandbox"]["image_digest"].startswith("sha256:")
    assert all(check["ok"] for check in record["sandbox"]["checks"])
    assert record["stages"]["solve"]["survivors"] == 0
    assert record["stages"]["solve"]["peak_memory_bytes"] is None or record["stages"]["solve"]["peak_memory_bytes"] > 0

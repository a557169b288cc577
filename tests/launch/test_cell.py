"""One cell in this process: what is gone on with, what starts afresh; the checks of a node."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from posttrainbench.errors import ConfigurationError, InfrastructureError
from posttrainbench.launch import cell as cells
from posttrainbench.launch import driver
from posttrainbench.launch.cell import Outcome, Place, run_cell
from posttrainbench.launch.gpus import given_gpus
from posttrainbench.launch.launcher import Part
from posttrainbench.launch.node import examine, preflight
from posttrainbench.launch.status import cell_status
from posttrainbench.launch.store import SweepDirectory
from posttrainbench.launch.sweepfile import load
from posttrainbench.pipeline import run as pipeline
from posttrainbench.pipeline.context import Context
from posttrainbench.pipeline.run_dir import RunDirectory
from posttrainbench.sandbox.gpu import device_minors
from tests.launch.support import SHARED, Lab, text_of


@pytest.fixture
def sweep(lab: Lab, monkeypatch: pytest.MonkeyPatch) -> SweepDirectory:
    """A sweep of one cell that was never started, without waits."""
    monkeypatch.setattr(cells, "wait_before", lambda policy, failed: 0.0)
    lab.write(text_of({"brief.py": 1}))
    return SweepDirectory.create(load(lab.place / "s.toml"))


def fail(monkeypatch: pytest.MonkeyPatch, stage: str, *, times: int, error: Exception) -> None:
    """Let a stage fail so often before it works."""
    real: Callable[[Context], None] = pipeline._STAGES[stage]
    left = [times]

    def work(context: Context) -> None:
        if left[0]:
            left[0] -= 1
            raise error
        real(context)

    monkeypatch.setattr(pipeline, "_STAGES", {**pipeline._STAGES, stage: work})


def record(sweep: SweepDirectory, key: str) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((sweep.root / key / "run.json").read_text())
    return found


def test_a_failed_evaluation_does_not_cost_the_agents_hours_again(
    sweep: SweepDirectory, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Two tries fail, the cell is given up as infra_error; `retry` goes on from the agent's end, in the same run."""
    [key] = sweep.cells
    fail(monkeypatch, "evaluate", times=2, error=InfrastructureError("the grader is away"))
    assert run_cell(sweep, key, Place()) is Outcome.FAILED
    assert json.loads((sweep.root / key / "result.json").read_text())["status"] == "infra_error"
    first = record(sweep, key)
    assert sweep.cell(key).failed is not None
    assert driver.retry(sweep, [], states=["infra_error"]) == [key]
    assert run_cell(sweep, key, Place(engine={"node": "other"})) is Outcome.DONE
    assert json.loads((sweep.root / key / "result.json").read_text())["status"] == "no_submission"
    last = record(sweep, key)
    assert last["id"] == first["id"]
    assert last["stages"]["solve"] == first["stages"]["solve"]
    assert last["engine"]["node"] == "other"
    assert len(last["engines_before"]) == 2


def test_an_interrupted_agent_gets_a_new_run(sweep: SweepDirectory, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its record tells the node and the GPUs that it really had; nothing bulky is left of the first attempt."""
    [key] = sweep.cells
    fail(monkeypatch, "solve", times=1, error=InfrastructureError("the sandbox broke", kind="sandbox"))
    assert run_cell(sweep, key, Place(engine={"node": "a"})) is Outcome.ELSEWHERE
    assert run_cell(sweep, key, Place(engine={"node": "b"})) is Outcome.DONE
    last = record(sweep, key)
    assert (last["engine"]["node"], last["engines_before"], last["sweep"]["attempt"]) == ("b", [], 2)
    assert run_cell(sweep, key, Place()) is Outcome.DONE
    assert sum(event["event"] == "started" for event in sweep.cell(key).events()) == 2


def test_a_cell_in_two_parts(lab: Lab, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each part may be started at any time, and again: it does what is its own to do, once."""
    monkeypatch.setattr(cells, "wait_before", lambda policy, failed: 0.0)
    monkeypatch.setattr(cells, "LAG_S", 0.0)
    shutil.copyfile(SHARED / "half_model.py", lab.place / "half_model.py")
    lab.write(text_of({"half_model.py": 1}))
    sweep = SweepDirectory.create(load(lab.place / "s.toml"))
    [key] = sweep.cells
    cell = sweep.cell(key)
    agent = Place(part=Part.AGENT, engine={"node": "a"}, memory_bytes=4 * 2**30)
    evaluation = Place(part=Part.EVALUATION, engine={"node": "b"}, memory_bytes=2**30)
    assert run_cell(sweep, key, evaluation) is Outcome.NOTHING
    fail(monkeypatch, "collect", times=1, error=InfrastructureError("a hiccup"))
    assert run_cell(sweep, key, agent) is Outcome.COLLECTED
    assert cell_status(cell, None).stage == "evaluation"
    told = [event["event"] for event in cell.events()]
    assert told == ["started", "failed", "started", "collected"]
    assert run_cell(sweep, key, agent) is Outcome.COLLECTED
    assert len(cell.events()) == 4
    fail(monkeypatch, "audit", times=2, error=InfrastructureError("a hiccup"))
    assert run_cell(sweep, key, evaluation) is Outcome.FAILED
    assert driver.retry(sweep, [], states=["infra_error"]) == [key]
    assert run_cell(sweep, key, agent) is Outcome.COLLECTED
    assert run_cell(sweep, key, evaluation) is Outcome.DONE
    assert run_cell(sweep, key, evaluation) is Outcome.DONE
    assert run_cell(sweep, key, agent) is Outcome.DONE
    assert json.loads((cell.result / "result.json").read_text())["status"] == "unloadable"
    last = record(sweep, key)
    assert [engine["node"] for engine in (*last["engines_before"], last["engine"])] == ["a", "a", "b", "b", "b"]
    assert last["limits"]["memory_bytes"] == int(2.6 * 2**30)  # of 4 GiB, less what the harness needs
    assert Context(run=RunDirectory(cell.result), memory_here=evaluation.share).memory_bytes == 2**29


def test_a_cell_with_nothing_to_evaluate_ends_where_its_agent_was(sweep: SweepDirectory) -> None:
    """Why there is no submission may be a reason to let the agent work again, and that needs its GPUs."""
    [key] = sweep.cells
    assert run_cell(sweep, key, Place(part=Part.AGENT)) is Outcome.DONE
    assert run_cell(sweep, key, Place(part=Part.EVALUATION)) is Outcome.DONE
    assert json.loads((sweep.root / key / "result.json").read_text())["status"] == "no_submission"
    assert record(sweep, key)["engines_before"] == []


@pytest.mark.parametrize(
    ("kind", "outcome", "stopped"),
    [("auth", Outcome.STOPPED, True), ("quota", Outcome.STOPPED, True), ("disk_full", Outcome.STOPPED, True),
     ("out_of_memory", Outcome.ELSEWHERE, False), ("sandbox", Outcome.ELSEWHERE, False)],
)  # fmt: skip
def test_the_table_of_failures(sweep: SweepDirectory, kind: str, outcome: Outcome, stopped: bool) -> None:
    """What a node's check finds decides: every decision is in the history."""
    [key] = sweep.cells

    def look() -> list[dict[str, Any]]:
        raise InfrastructureError("it does not do", kind=kind)

    assert run_cell(sweep, key, Place(preflight=look)) is outcome
    assert (sweep.stopped is not None) == stopped
    event = sweep.cell(key).events()[-1]
    assert (event["event"], event["failure"]) == ("failed", kind)
    assert not sweep.cell(key).attempts.exists()


def test_a_cell_that_takes_every_process_down_is_given_up(sweep: SweepDirectory) -> None:
    """An attempt that began and never ended counts, whoever notices."""
    [key] = sweep.cells
    for _ in range(3):
        sweep.cell(key).note("started", node="n1")
        cells.note_death(sweep, sweep.cell(key), cells.Failure.LOST, "gone")
    sweep.cell(key).note("started", node="n1")
    assert run_cell(sweep, key, Place()) is Outcome.FAILED
    assert sweep.cell(key).failed is not None


NVIDIA_SMI = """#!/bin/sh
case "$1" in
  *memory.used*) echo "0, 17"; echo "1, 40536" ;;
  *) echo "0, NVIDIA H100, 81559, 570.1"; echo "1, NVIDIA H100, 81559, 570.1" ;;
esac
"""


def test_gpus_of_a_node(sweep: SweepDirectory, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A stand-in for nvidia-smi: used GPUs, GPUs that are not there, and a sandbox in which CUDA does not start."""
    program = tmp_path / "bin" / "nvidia-smi"
    program.parent.mkdir()
    program.write_text(NVIDIA_SMI)
    program.chmod(0o755)
    monkeypatch.setenv("PATH", f"{program.parent}:/usr/local/bin:/usr/bin:/bin")
    [cell] = sweep.cells.values()

    def wrong(*gpus: int) -> list[tuple[str, str]]:
        return [(check.name, check.detail) for check in examine(cell, gpus=gpus, place=tmp_path) if not check.ok]

    assert wrong() == []
    assert wrong(1)[0] == ("gpu idle", "GPU 1 has 40536 MiB in use")
    assert wrong(7)[0] == ("gpu", "GPU 7 is not listed by nvidia-smi")
    if not Path("/dev/nvidia0").exists():
        [(name, detail)] = wrong(0)
        assert name == "gpu"
        assert "1 x NVIDIA H100 with 80 GiB, driver 570.1; GPU 0 is not on this machine" in detail
        with pytest.raises(InfrastructureError) as caught:
            preflight(sweep, cell.key, gpus=[0], node="n1")
        assert caught.value.kind == "sandbox"
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "1")
    assert given_gpus("count:1") == (1,)
    with pytest.raises(InfrastructureError, match="needs 2 GPUs and has 1"):
        given_gpus("count:2")
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "GPU-8932f937")
    with pytest.raises(ConfigurationError, match="without an index"):
        given_gpus("count:1")
    assert given_gpus("count:0") == ()


def test_device_nodes_of_a_job_that_sees_only_its_own_gpus(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """nvidia-smi counts from 0, the driver knows the device: GPU 0 of this job is /dev/nvidia3."""
    program = tmp_path / "nvidia-smi"
    program.write_text('#!/bin/sh\necho "0, 00000000:3B:00.0"\necho "1, 00000000:5E:00.0"\n')
    program.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:/usr/bin:/bin")
    card = tmp_path / "proc" / "0000:3b:00.0"
    card.mkdir(parents=True)
    (card / "information").write_text("Model: \t\t NVIDIA H100\nDevice Minor: \t 3\nGPU Excluded:\t No\n")
    assert device_minors(tmp_path / "proc") == {0: 3}
    monkeypatch.setenv("PATH", "/nonexistent")
    assert device_minors(tmp_path / "proc") == {}


def test_what_held_is_asked_once_for_each_boot(sweep: SweepDirectory) -> None:
    """Only what is cheap is looked at again; a new boot asks everything."""
    [key] = sweep.cells
    preflight(sweep, key, gpus=(), node="n1")
    file = sweep.state / "nodes" / "n1.json"
    held = json.loads(file.read_text())
    held["known"]["clock"]["checked"]["detail"] = "remembered"
    file.write_text(json.dumps(held))
    details = {check["name"]: check["detail"] for check in preflight(sweep, key, gpus=(), node="n1")}
    assert details["clock"] == "remembered"
    file.write_text(json.dumps({**held, "host": "n1/another boot"}))
    details = {check["name"]: check["detail"] for check in preflight(sweep, key, gpus=(), node="n1")}
    assert details["clock"] != "remembered"

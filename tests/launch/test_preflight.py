"""What is asked before GPU hours are spent: models, graders and judges of a scripted server, and this machine."""

from __future__ import annotations

import errno
import json
import os
import shutil
import socket
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from posttrainbench.errors import InfrastructureError
from posttrainbench.launch import judging, node, service
from posttrainbench.launch.checks import Checked
from posttrainbench.launch.failures import POLICY, Failure
from posttrainbench.launch.node import examine, preflight
from posttrainbench.launch.store import SweepDirectory
from posttrainbench.launch.sweepfile import Cell, load
from tests.launch.support import Lab, results, text_of
from tests.support.model_server import Fault, ModelServer, Script

KEY = "sk-ant-api03-preflight-0123456789"
CLI = 'name = "lab"\ncommand = ["/bin/sh", "-c", "echo done"]\nwire = "anthropic"\n'
AGENT = 'agents = [{agent = "lab.toml", model = "m"}]'


@pytest.fixture
def keys(lab: Lab, monkeypatch: pytest.MonkeyPatch) -> Callable[[str], None]:
    """Keys and addresses of the services, for this process and for `lab`'s."""
    (lab.place / "lab.toml").write_text(CLI)

    def use(url: str) -> None:
        values = {
            "ANTHROPIC_API_KEY": KEY,
            "OPENAI_API_KEY": "sk-preflight-0123456789",
            "OPENAI_BASE_URL": f"{url}/openai/v1",
            "PTB_UPSTREAM_ANTHROPIC": url,
            "HTTPS_PROXY": "",
            "https_proxy": "",
        }
        lab.env |= values
        for name, value in values.items():
            monkeypatch.setenv(name, value)

    return use


def cell_of(lab: Lab, text: str) -> Cell:
    lab.write(text)
    return load(lab.place / "s.toml").cells[0]


def unused() -> str:
    """An address at which nobody listens."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        return f"http://127.0.0.1:{listener.getsockname()[1]}"


ANSWERS = [
    (401, "invalid x-api-key", Failure.AUTH),
    (403, "this key may not", Failure.AUTH),
    (402, "payment required", Failure.QUOTA),
    (400, "Your credit balance is too low to access the API", Failure.QUOTA),
    (404, "model: m is not known", Failure.CONFIGURATION),
]


@pytest.mark.parametrize(("status", "message", "kind"), ANSWERS)
def test_what_the_agents_model_answers(
    lab: Lab, keys: Callable[[str], None], status: int, message: str, kind: Failure
) -> None:
    """Each refusal has its kind, and with it what follows."""
    fault = Fault(status=status, message=message)
    with ModelServer(Script.of("hello"), faults=lambda number: fault) as server:
        keys(server.url)
        found = service.model_api(cell_of(lab, text_of({}, top=AGENT)))
    assert (found.ok, found.kind) == (False, kind), found
    assert KEY not in found.detail


def test_a_limit_of_rate_passes_and_a_service_that_is_away_does_not(
    lab: Lab, keys: Callable[[str], None], monkeypatch: pytest.MonkeyPatch
) -> None:
    """429 is waited for; nobody at the address is the network's, after some patience."""
    cell = cell_of(lab, text_of({}, top=AGENT))
    busy = Fault(status=429, message="slow down", retry_after=0)
    with ModelServer(Script.of("hello"), faults=lambda number: busy if number == 1 else None) as server:
        keys(server.url)
        assert service.model_api(cell).ok
        assert server.calls == 2
        assert [ask.model for ask in server.asked] == ["m", "m"]
    monkeypatch.setenv("PTB_GATEWAY_LIMITS", "patience_s=1")
    keys(unused())
    found = service.model_api(cell)
    assert (found.ok, found.kind) == (False, "network"), found


GRADED = {
    401: Failure.AUTH, 402: Failure.QUOTA, 404: Failure.CONFIGURATION, 503: Failure.NETWORK, 200: None,
}  # fmt: skip


@pytest.mark.parametrize(("status", "kind"), GRADED.items())
def test_grader_and_judge(lab: Lab, keys: Callable[[str], None], status: int, kind: Failure | None) -> None:
    """Both are models that the harness itself asks; a judge may be missing."""
    cell = cell_of(lab, text_of({"brief.py": 1}))
    cell = replace(cell, spec=replace(cell.spec, benchmark="healthbench", grader="openai/gpt-5-mini"))
    fault = None if kind is None else Fault(status=status, message="no")
    with ModelServer(Script.of("hello"), faults=lambda number: fault) as server:
        keys(server.url)
        grader = service.grader(cell)
        [judge] = judging.judge_check({"model": "openai/gpt-5-mini", "required": False})
        assert server.calls <= 4  # Inspect shows a key that was refused once more
    for found, needed in ((grader, True), (judge, False)):
        assert (found.ok, found.needed) == (kind is None, needed), found
        assert found.stops == (needed and kind is not None)
        assert kind is None or found.kind == kind
    assert service.grader(cell_of(lab, text_of({"brief.py": 1}))).detail == "none needed"


def test_a_graders_key_may_stand_in_the_file(
    lab: Lab, keys: Callable[[str], None], monkeypatch: pytest.MonkeyPatch
) -> None:
    """As on an HTCondor pool, where a job's environment is no place for keys; the final evaluation asks in this way too."""
    cell = cell_of(lab, text_of({"brief.py": 1}))
    cell = replace(cell, spec=replace(cell.spec, benchmark="healthbench", grader="openai/gpt-5-mini"))
    file = lab.place / "keys"
    file.write_text("OPENAI_API_KEY=sk-of-the-file-0123456789\n")
    file.chmod(0o600)
    with ModelServer(Script.of("hello")) as server:
        keys(server.url)
        monkeypatch.delenv("OPENAI_API_KEY")
        found = service.grader(cell)
        assert (found.ok, found.kind) == (False, "configuration")
        assert "OPENAI_API_KEY" in found.detail
        monkeypatch.setenv("PTB_KEYS_FILE", str(file))
        assert service.grader(cell).ok
        headers = {name.lower(): value for name, value in server.requests[-1].headers.items()}
        assert headers["authorization"] == "Bearer sk-of-the-file-0123456789"


@pytest.mark.slow
def test_a_judge_of_the_sweep_file(lab: Lab, keys: Callable[[str], None]) -> None:
    """One that is required stops the start; else it is a warning, and the runs go on."""
    judge = '[judge]\nmodel = "openai/gpt-5-mini"\n'
    text = text_of({"brief.py": 1})
    keys(unused())
    root = lab.write(f"{text}\n{judge}required = true\n")
    said = lab.sweep("start", "s.toml", code=2)
    assert "FAIL  judge: openai/gpt-5-mini: APIConnectionError: " in said
    assert said.splitlines()[-1].startswith("ptb: judge: openai/gpt-5-mini: ")
    assert not root.exists()
    assert lab.sweep("plan", "s.toml", code=1).count("FAIL") == 1
    root = lab.write(f"{text}\n{judge}")
    said = lab.sweep("start", "s.toml", "--wait")
    assert "warn  judge: openai/gpt-5-mini: " in said
    assert len(results(root)) == 1
    assert json.loads((root / ".sweep" / "plan.json").read_text())["judge"]["model"] == "openai/gpt-5-mini"
    lab.write(f'{text}\n[judge]\nmodel = "gpt"\n')
    assert "s.toml:18: judge.model: is to be PROVIDER/MODEL" in lab.sweep("plan", "s.toml", code=2)


def test_what_plan_and_dry_run_and_smoke_show(lab: Lab, keys: Callable[[str], None]) -> None:
    """A dead key stops all three before anything starts; a live one is shown as such."""
    root = lab.write(text_of({}, top=AGENT, hours=1))
    refuse = Fault(status=401, message="invalid x-api-key")
    with ModelServer(Script.of("hello"), faults=lambda number: refuse if number <= 3 else None) as server:
        keys(server.url)
        said = lab.sweep("plan", "s.toml", code=1)
        assert "FAIL  lab-m--ptb-tiny-base--smoke-math--r1  model API: " in said
        assert "invalid x-api-key" in lab.sweep("start", "s.toml", "--dry-run", code=2).splitlines()[-1]
        assert "invalid x-api-key" in lab.sweep("start", "s.toml", "--smoke", "--wait", code=2).splitlines()[-1]
        assert not root.parent.exists() or not list(root.parent.iterdir())
        assert server.calls == 3
        checks = {check["name"]: check for check in json.loads(lab.sweep("plan", "s.toml", "--json"))["checks"]}
        assert {"disk", "clock", "sandbox", "gpu", "agent, model and data", "model API", "grader"} == set(checks)
        assert all(check["ok"] for check in checks.values())
        assert checks["model API"]["detail"] == "anthropic/m answers: HTTP 200"
        assert "properties hold" in checks["sandbox"]["detail"]
        said = lab.sweep("start", "s.toml", "--smoke", "--wait")
        assert "ok    lab-m--ptb-tiny-base--smoke-math--r1  model API: anthropic/m answers" in said
        assert list(results(root.with_name("s-smoke")).values()) == ["no_submission"]


def failed(checks: list[Checked]) -> tuple[str, str, str]:
    """The one that does not hold, which is the last: nothing is asked after it."""
    [found] = [check for check in checks if not check.ok]
    assert checks[-1] == found
    return found.name, found.kind, found.detail


def test_a_machine_that_does_not_do(lab: Lab, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A full disk, one that cannot be written, a clock that is wrong: before any call is made."""
    cell = cell_of(lab, text_of({"brief.py": 1}))
    # /proc has no free space, really
    name, kind, detail = failed(examine(cell, gpus=(), place=Path("/proc")))
    assert (name, kind, detail) == ("disk", "disk_full", "0.0 GiB free in /proc")
    monkeypatch.setattr(shutil, "disk_usage", lambda place: SimpleNamespace(free=2**40))
    name, _, detail = failed(examine(cell, gpus=(), place=Path("/proc")))
    assert (name, detail[:23]) == ("clock", "/proc cannot be written")
    real = time.time
    monkeypatch.setattr(node.time, "time", lambda: real() - 300)
    name, kind, detail = failed(examine(cell, gpus=(), place=tmp_path))
    assert (name, kind) == ("clock", "sandbox")
    assert detail.startswith("-300")

    def full(descriptor: int) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(node.os, "fsync", full)
    assert failed(examine(cell, gpus=(), place=tmp_path))[:2] == ("clock", "disk_full")
    assert POLICY[Failure.DISK_FULL].stops


def test_what_is_not_here(lab: Lab, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A model and data that are not in the cache of a machine without hub, a CLI in another version."""
    monkeypatch.setenv("HF_HOME", str(tmp_path / "hub"))
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    monkeypatch.setenv("HF_HUB_CACHE", str(tmp_path / "hub"))
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "hub"))
    cell = cell_of(lab, text_of({"brief.py": 1}))
    away = replace(cell, spec=replace(cell.spec, base_model="some-one/nothing"))
    name, kind, detail = failed(examine(away, gpus=(), place=tmp_path))
    assert (name, kind) == ("agent, model and data", "other")
    assert "'some-one/nothing' is not in the local cache" in detail
    monkeypatch.setenv("PTB_CACHE", str(tmp_path / "cache"))
    away = replace(cell, spec=replace(cell.spec, benchmark="gsm8k", data_dir=str(tmp_path)))
    name, kind, detail = failed(examine(away, gpus=(), place=tmp_path))
    assert (name, kind) == ("agent, model and data", "configuration")
    # a version that this harness does not know is no installation
    old = tmp_path / "agents" / "codex-cli" / "0.0.1-linux-x64"
    old.mkdir(parents=True)
    (old / "installation.json").write_text("{}")
    monkeypatch.setenv("PTB_AGENTS_DIR", str(tmp_path / "agents"))
    away = replace(cell, spec=replace(cell.spec, agent="codex-cli:gpt-5.5"))
    name, kind, detail = failed(examine(away, gpus=(), place=tmp_path))
    assert (name, kind) == ("agent, model and data", "configuration")
    assert "is not installed; run `ptb agents install codex-cli`" in detail


def test_each_sandbox_is_probed(lab: Lab, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """One that does not start on this node is left for another node; its name is known before anything is submitted."""
    cell = cell_of(lab, text_of({"brief.py": 1}))
    known: dict[str, Any] = {}
    assert all(check.ok for check in examine(cell, gpus=(), place=tmp_path, known=known))
    assert [question for question in known if question.startswith("sandbox")] == ["sandbox bubblewrap"]
    monkeypatch.setenv("PATH", str(tmp_path))
    name, kind, _ = failed(examine(cell, gpus=(), place=tmp_path))
    assert (name, kind) == ("sandbox", "sandbox")
    root = lab.write(text_of({"brief.py": 1}, launcher='kind = "slurm"', run='sandbox = "chroot"'))
    assert "unknown sandbox 'chroot'" in lab.sweep("plan", "s.toml", code=1)
    assert not root.exists()


def test_a_busy_gpu_is_looked_at_every_time(lab: Lab, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A stand-in for nvidia-smi, first idle, then busy: the day's memory does not cover it, and no call is made."""
    sweep = SweepDirectory.create(load(lab.place / "s.toml")) if lab.write(text_of({"brief.py": 1})) else None
    assert sweep is not None
    [key] = sweep.cells
    program = tmp_path / "bin" / "nvidia-smi"
    program.parent.mkdir()
    used = tmp_path / "used"
    program.write_text(f'#!/bin/sh\ncase "$1" in *memory.used*) echo "0, $(cat {used})";; *) exit 9;; esac\n')
    program.chmod(0o755)
    monkeypatch.setenv("PATH", f"{program.parent}:{os.environ['PATH']}")
    used.write_text("17")
    with pytest.raises(InfrastructureError, match="gpu: GPU 0 is not listed by nvidia-smi") as caught:
        preflight(sweep, key, gpus=[0], node="n")
    assert caught.value.kind == "sandbox"
    used.write_text("40000")
    with pytest.raises(InfrastructureError, match="gpu idle: GPU 0 has 40000 MiB in use"):
        preflight(sweep, key, gpus=[0], node="n")
    program.write_text("#!/bin/sh\nexit 9\n")
    with pytest.raises(InfrastructureError, match="gpu idle: nvidia-smi does not answer"):
        preflight(sweep, key, gpus=[0], node="n")

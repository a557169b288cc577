"""`ptb clean` and the containers that harnesses killed with their engine left behind."""

from __future__ import annotations

import json
import os
import subprocess
from pathlib import Path

import pytest

from posttrainbench.sandbox.containers import RUN_LABEL
from tests.cli.test_clean import clean
from tests.sandbox.conftest import docker_image  # noqa: F401 - a fixture


@pytest.fixture(autouse=True)
def nothing_else(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Control groups, temporary directories and installed CLIs of this machine are no matter here."""
    monkeypatch.setattr("posttrainbench.disk.machine.stale_groups", lambda: iter(()))
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    monkeypatch.setenv("PTB_AGENTS_DIR", str(tmp_path / "agents"))


def engine(folder: Path, printed: str) -> None:
    """A podman and a docker that print what the real ones do, and note what they are told to remove."""
    folder.mkdir()
    for name in ("podman", "docker"):
        program = folder / name
        program.write_text(
            f"#!/bin/sh\nif [ $1 = ps ]; then echo {name} >>{folder}/asked; [ {name} = {printed} ] && "
            f"cat {folder}/rows; exit 0; fi\necho {name} $* >>{folder}/told\n"
        )
        program.chmod(0o755)


@pytest.mark.parametrize("name", ["podman", "docker"])
def test_containers(
    name: str, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Ended ones of dead harnesses; rows as podman 4.3 (an array) and docker (a line each) print them."""
    engine(tmp_path / "bin", name)
    monkeypatch.setenv("PATH", f"{tmp_path / 'bin'}:/usr/bin:/bin")
    rows = [
        ("aa", "created", 4199999),
        ("bb", "exited", 4199998),
        ("cc", "running", 4199997),
        ("dd", "exited", os.getpid()),
    ]
    if name == "podman":
        text = json.dumps([{"Id": i, "State": s, "Names": [f"ptb-{p}-00"]} for i, s, p in rows], indent=2)
    else:
        text = "".join(json.dumps({"ID": i, "State": s, "Names": f"ptb-{p}-00"}) + "\n" for i, s, p in rows)
    (tmp_path / "bin/rows").write_text(text)
    code, report = clean(capsys, "--results", tmp_path, "--what", "leftovers", "--yes")
    assert code == 0, report
    assert [row["path"] for row in report["items"]] == [f"{name}:aa", f"{name}:bb"]
    assert (tmp_path / "bin/told").read_text().splitlines() == [f"{name} rm aa", f"{name} rm bb"]


def test_containers_of_a_real_docker(
    docker_image: str,  # noqa: F811
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """Created or ended ones of dead harnesses go, though their daemon did not remove them; others' and running ones stay."""

    def docker(*arguments: str) -> str:
        return subprocess.run(["docker", *arguments], capture_output=True, text=True, check=True).stdout.strip()

    label = f"{RUN_LABEL}=x"
    dead, mine = "ptb-4199999", f"ptb-{os.getpid()}"
    plan = {
        f"{dead}-created": ("create", "true"),
        f"{dead}-exited": ("run --detach", "true"),
        f"{dead}-running": ("run --detach", "sleep 60"),
        f"{mine}-created": ("create", "true"),
    }
    made = {}
    try:
        for name, (verb, command) in plan.items():
            options = [*verb.split(), "--name", name, "--label", label, "--network", "none"]
            made[name] = docker(*options, docker_image, *command.split())[:12]
        docker("wait", f"{dead}-exited")
        code, report = clean(capsys, "--results", tmp_path, "--what", "leftovers", "--yes")
        assert code == 0, report
        listed = {row["path"] for row in report["items"]} & {f"docker:{identity}" for identity in made.values()}
        assert listed == {f"docker:{made[f'{dead}-{state}']}" for state in ("created", "exited")}
        left = docker("ps", "--all", "--filter", f"label={label}", "--format", "{{.Names}}").split()
        assert set(left) == {f"{dead}-running", f"{mine}-created"}
    finally:
        subprocess.run(["docker", "rm", "--force", *made], capture_output=True, check=False)

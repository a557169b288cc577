"""The negative suite finds a sound sandbox sound and a broken one broken; `ptb doctor` prints it."""

from __future__ import annotations

import json
import time

import pytest
from click.testing import CliRunner

from posttrainbench.cli.doctor import doctor
from posttrainbench.errors import InfrastructureError
from posttrainbench.sandbox import Backend, Check, Result
from posttrainbench.sandbox import command as command_module
from posttrainbench.sandbox.probes import _checks, probe

NAMES = {
    "inherited files",
    "direct TCP v4",
    "direct TCP v6",
    "direct UDP",
    "DNS",
    "ICMP",
    "host loopback",
    "host abstract socket",
    "AF_VSOCK",
    "own loopback",
    "host secrets in /proc",
    "write outside",
    "remount /usr",
    "nested user namespace",
    "privileges",
    "surviving daemon",
    "process limit bites",
    "memory limit bites",
    "uid on the host",
}


def broken(checks: list[Check]) -> set[str]:
    return {check.name for check in checks if not check.ok}


def test_sound_sandbox(backend: Backend):
    started = time.monotonic()
    checks = probe(backend)
    assert broken(checks) == set(), checks
    assert {check.name for check in checks} == NAMES
    if backend.name == "bubblewrap":
        assert time.monotonic() - started < 20  # 0.4 s alone; other jobs share the machine


@pytest.mark.parametrize(
    ("removed", "found"),
    [
        ("--seccomp", {"AF_VSOCK", "privileges"}),
        ("--disable-userns", {"nested user namespace"}),
    ],
)
def test_probes_notice_a_missing_wall(bwrap: Backend, monkeypatch, removed, found):
    """Walls are taken away in turn; but never the network namespace, for then the probe would really send."""
    real = command_module.bwrap_arguments

    def without(*args, **kwargs):  # type: ignore[no-untyped-def]
        arguments = real(*args, **kwargs)
        at = arguments.index(removed)
        return arguments[:at] + arguments[at + (2 if removed == "--seccomp" else 1) :]

    monkeypatch.setattr(command_module, "bwrap_arguments", without)
    assert found <= broken(probe(bwrap))


def test_connection_seen_by_the_host_counts_more_than_what_the_inside_says(tmp_path):
    (tmp_path / "work").mkdir()
    result = Result(returncode=0, reason="exit", wall_s=1, teardown_s=0, survivors=0)
    said = {"host loopback": [True, "refused"], "surviving daemon": [False, "could not be started"]}
    checks = _checks(json.dumps(said).encode(), result, tmp_path, came_through=True)
    assert broken(checks) == {"host loopback", "surviving daemon", "uid on the host"}


def test_probe_reports_a_sandbox_that_cannot_start(backend: Backend, monkeypatch):
    def fail(*_: object, **__: object) -> None:
        raise InfrastructureError("no user namespaces")

    monkeypatch.setattr(backend, "run", fail)
    (check,) = probe(backend)
    assert (check.ok, check.required, check.detail) == (False, True, "no user namespaces")


def test_doctor_prints_one_line_per_check(bwrap: Backend):
    answer = CliRunner().invoke(doctor)
    assert answer.exit_code == 0, answer.output
    lines = answer.output.splitlines()
    assert all(line.split()[0] in ("ok", "note") for line in lines[:-1])
    assert len(lines) > len(NAMES)


def test_doctor_json(bwrap: Backend):
    answer = CliRunner().invoke(doctor, ["--json"])
    report = json.loads(answer.output)
    assert (answer.exit_code, report["ok"], report["backend"]) == (0, True, "bubblewrap")
    assert report["capabilities"]["network_isolation"] is True
    assert set(report["checks"][0]) == {"name", "ok", "required", "detail", "fix"}
    assert {check["name"] for check in report["checks"]} >= NAMES


def test_doctor_without_bwrap_names_the_fix(monkeypatch):
    monkeypatch.setenv("PATH", "/nonexistent")
    answer = CliRunner().invoke(doctor)
    assert answer.exit_code == 2
    assert "FAIL  bubblewrap" in answer.output
    assert "apt-get install bubblewrap" in answer.output


def test_doctor_with_unknown_sandbox():
    answer = CliRunner().invoke(doctor, ["--sandbox", "jail"])
    assert answer.exit_code == 2
    assert "unknown sandbox" in answer.output

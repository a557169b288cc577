"""The submit description for HTCondor, and what is read from its answers; a real pool is in test_htcondor_pool.py."""

from __future__ import annotations

import json
import shutil
import sys
from pathlib import Path
from typing import Any

import pytest

from posttrainbench.errors import ConfigurationError
from posttrainbench.launch import htcondor
from posttrainbench.launch.failures import Failure
from posttrainbench.launch.store import SweepDirectory
from tests.launch.support import Lab, text_of

GOLDEN = """\
universe = vanilla
executable = PYTHON
arguments = "'-m' 'posttrainbench' 'sweep' 'run-cell' 'ROOT' '$(cell)' '--gpus' 'count:1'"
transfer_executable = False
should_transfer_files = NO
getenv = HOME, HTTPS_MARK
initialdir = ROOT
output = ROOT/.sweep/cells/$(cell)/condor.out
error = ROOT/.sweep/cells/$(cell)/condor.err
log = ROOT/.sweep/cells/$(cell)/condor.log
request_cpus = 8
request_memory = 65536M
request_disk = 102400M
allowed_job_duration = 50400
kill_sig = SIGTERM
job_max_vacate_time = 120
stream_output = True
on_exit_remove = ExitCode =!= 75
periodic_remove = JobStatus == 5 && HoldReasonCode =!= 1
+PtbSweep = "ROOT"
+PtbCell = "$(cell)"
request_gpus = 1
requirements = (TARGET.CUDACapability >= 9.0) && ANOTHER
accounting_group = lab
queue cell in (one, two)
"""
HERE = 'regexps("^[^@]*@(.*)$", TARGET.Name, "\\1")'
BEFORE = f"(MY.LastRemoteHost =?= undefined || {HERE} =!= {HERE.replace('TARGET.Name', 'MY.LastRemoteHost')})"
ANOTHER = f"(({BEFORE}) || time() - MY.EnteredCurrentStatus > 600)"
SETTINGS: dict[str, Any] = {
    "kind": "htcondor", "cpus": 8, "memory_gib": 64, "disk_gib": 100, "requirements": "TARGET.CUDACapability >= 9.0",
    "options": ("accounting_group = lab",),
}  # fmt: skip


def test_the_description(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Word for word; the environment is checked below."""
    launcher = htcondor.HTCondor(SweepDirectory(tmp_path), SETTINGS)
    monkeypatch.setattr(htcondor, "_environment", lambda: ["HOME", "HTTPS_MARK"])
    text = launcher.description(["one", "two"], gpus=1, hours=10)
    golden = GOLDEN.replace("PYTHON", sys.executable).replace("ROOT", str(tmp_path)).replace("ANOTHER", ANOTHER)
    assert text == golden
    text = launcher.description(["one"], gpus=0, hours=10, avoid=["slot1_1@n1@host", "slot1_2@n1@host", "slot1@b"])
    assert f'{BEFORE} && {HERE} =!= "b" && {HERE} =!= "n1@host") || ' in text


def test_keys_stay_out_of_the_pool(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Everybody can read a job's environment with `condor_q -long`; the path of a key file may be there."""
    for name in ("ANTHROPIC_API_KEY", "PTB_HUB_TOKEN", "HF_HUB_TOKEN", "PTB_KEYS_FILE", "HF_HOME", "PTB_DATA"):
        monkeypatch.setenv(name, "x")
    text = htcondor.HTCondor(SweepDirectory(tmp_path), SETTINGS).description(["one"], gpus=0, hours=1)
    [line] = [line for line in text.splitlines() if line.startswith("getenv")]
    names = line.partition(" = ")[2].split(", ")
    assert {"PTB_KEYS_FILE", "HF_HOME", "PTB_DATA", "PATH"} <= set(names)
    assert not {"ANTHROPIC_API_KEY", "PTB_HUB_TOKEN", "HF_HUB_TOKEN"} & set(names)
    assert "request_gpus" not in text


def test_a_setup_line_goes_before(tmp_path: Path) -> None:
    """Quotes of a shell are doubled as HTCondor wants them; what cannot be written is refused."""
    settings = {"kind": "htcondor", "setup": "module load cuda && export A='b c'"}
    text = htcondor.HTCondor(SweepDirectory(tmp_path), settings).description(["one"], gpus=0, hours=1)
    assert "executable = /bin/bash" in text
    assert "'-c' 'module load cuda && export A=''b c'' && exec " in text
    bad = htcondor.HTCondor(SweepDirectory(tmp_path), {"kind": "htcondor", "setup": 'echo "x"'})
    with pytest.raises(ConfigurationError, match="quotes"):
        bad.description(["one"], gpus=0, hours=1)


def test_answers_are_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A living job counts more than one that ended; of those the newest; holds say why. Rows are those of a 23.9 pool."""
    base = {"NumJobStarts": 1, "RemoteWallClockTime": 4.0}
    history = [
        {**base, "PtbCell": "a", "ClusterId": 9, "ProcId": 0, "JobStatus": 4, "ExitCode": 0, "LastRemoteHost": "slot1_1@n1"},
        {**base, "PtbCell": "a", "ClusterId": 10, "ProcId": 0, "JobStatus": 4, "ExitCode": 1, "LastRemoteHost": "slot1_1@n2"},
        {**base, "PtbCell": "b", "ClusterId": 10, "ProcId": 1, "JobStatus": 3, "ExitSignal": 15},
        {**base, "PtbCell": "c", "ClusterId": 10, "ProcId": 2, "JobStatus": 3, "LastHoldReason": "too long", "LastHoldReasonCode": 47},
    ]  # fmt: skip
    queue = [{**base, "PtbCell": "b", "ClusterId": 11, "ProcId": 0, "JobStatus": 2, "RemoteHost": "slot1_2@n3"}]
    rows = {"condor_history": history, "condor_q": queue}

    def answer(command: list[str], **_: object) -> str:
        assert f'PtbSweep == "{tmp_path}"' in command
        return json.dumps(rows[command[0]]) if rows[command[0]] else ""

    monkeypatch.setattr(htcondor, "call", answer)
    jobs = htcondor.HTCondor(SweepDirectory(tmp_path), SETTINGS).jobs()
    assert (jobs["a"].state, jobs["a"].id, jobs["a"].node) == ("ended", "10.0", "slot1_1@n2")
    assert jobs["a"].booked == {"state": "completed", "exit": 1, "starts": 1, "elapsed_s": 4.0}
    assert (jobs["b"].state, jobs["b"].node) == ("running", "slot1_2@n3")
    assert (jobs["c"].failure, jobs["c"].detail) == (Failure.TIME_LIMIT, "removed: too long")


@pytest.mark.skipif(shutil.which("condor_status") is not None, reason="HTCondor is installed here")
def test_no_pool_is_one_line(lab: Lab) -> None:
    """Nothing is started half where the programs are missing."""
    root = lab.write(text_of({"brief.py": 1}, launcher='kind = "htcondor"'))
    said = lab.sweep("start", "s.toml", code=2)
    assert said == "ptb: HTCondor: condor_status is not installed here; run this on a node that may submit jobs\n"
    assert not root.exists()

"""Ends: by itself, by deadline, by order, by limit, by the harness's own death. Nothing may survive any of them."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest

from posttrainbench.sandbox import Backend, Limits, Spec, command, launcher
from posttrainbench.sandbox.containers import ContainerBackend

DAEMON = """
import os, signal, sys, time
if os.fork() == 0:
    os.setsid()
    if os.fork() == 0:
        for n in set(signal.Signals) - {signal.SIGKILL, signal.SIGSTOP}: signal.signal(n, signal.SIG_IGN)
        while True:
            open('beat', 'a').write('.'); time.sleep(0.01)
    os._exit(0)
while not os.path.exists('beat'): time.sleep(0.01)
"""


@pytest.fixture
def soon(backend: Backend) -> float:
    """Seconds in which a command ends that is told to. An engine's own start and removal wait for its other work."""
    return 120.0 if isinstance(backend, ContainerBackend) else 10.0


def silent(heartbeat: Path) -> bool:
    before = heartbeat.stat().st_size
    time.sleep(0.1)
    return before > 0 and heartbeat.stat().st_size == before


@pytest.fixture
def work(tmp_path: Path) -> dict[str, object]:
    (tmp_path / "work").mkdir()
    return {"rw": {"/w": tmp_path / "work"}, "cwd": "/w"}


def test_daemon_dies_with_the_command(run, work, tmp_path, soon):
    result, output = run(argv=["/usr/bin/python3", "-c", DAEMON + "print('end'); sys.exit(4)"], **work)
    assert (result.returncode, result.reason, output) == (4, "exit", "end\n")
    assert silent(tmp_path / "work" / "beat")
    assert result.wall_s < 2 * soon  # the daemon held the output pipe open


def test_deadline_lets_the_agent_save(run, work, tmp_path, soon):
    script = "trap 'echo saved >saved; exit 3' TERM; while :; do sleep 0.05; done"
    result, _ = run(script, limits=Limits(wall_s=1, grace_s=20), **work)
    assert (result.returncode, result.reason) == (3, "deadline")
    assert (tmp_path / "work" / "saved").exists()
    assert result.wall_s < soon


def test_deadline_kills_what_ignores_it(run, work, tmp_path, soon):
    script = DAEMON + "signal.signal(signal.SIGTERM, signal.SIG_IGN)\nwhile True: time.sleep(1)"
    result, _ = run(argv=["/usr/bin/python3", "-c", script], limits=Limits(wall_s=2, grace_s=0.3), **work)
    assert (result.returncode, result.reason) == (137, "deadline")
    assert 2.3 <= result.wall_s < soon
    assert silent(tmp_path / "work" / "beat")


def test_many_processes_are_gone_at_once(run, work):
    script = "trap '' TERM; i=0; while [ $i -lt 200 ]; do sleep 100 & i=$((i+1)); done; echo up; wait; sleep 100"
    result, output = run(script, limits=Limits(wall_s=3, grace_s=0.1), **work)
    assert output == "up\n"
    assert result.teardown_s < 5  # 20 ms on a quiet machine


def test_cancelled(run, work, soon):
    result, _ = run("sleep 100", cancelled=lambda: True, **work)
    assert (result.reason, result.returncode) == ("cancelled", 143)
    assert result.wall_s < soon


def test_endless_output_does_not_hold_up_the_deadline(run, soon):
    result, output = run("yes", limits=Limits(wall_s=1, grace_s=0))
    assert result.reason == "deadline"
    assert len(output) > 100_000
    assert result.wall_s < soon


def test_exception_in_on_output_leaves_nothing(backend, work, tmp_path):
    def fail(_: bytes) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        backend.run(
            Spec(argv=["/usr/bin/python3", "-uc", DAEMON + "print(1); time.sleep(100)"], **work), on_output=fail
        )
    assert silent(tmp_path / "work" / "beat")


def test_harness_killed(backend, work, tmp_path):
    """SIGKILL gives the harness no chance to tidy up; the kernel has to do it."""
    harness = (
        "import sys; from pathlib import Path; from posttrainbench.sandbox import *\n"
        f"get_backend({backend.name!r}, image={getattr(backend, '_name', None)!r}).run(Spec(argv=['/usr/bin/python3', '-c', {DAEMON + 'time.sleep(100)'!r}],"
        f" rw={{'/w': Path({str(tmp_path / 'work')!r})}}, cwd='/w'))"
    )
    process = subprocess.Popen([sys.executable, "-c", harness])
    heartbeat = tmp_path / "work" / "beat"
    for _ in range(1500):
        if heartbeat.exists():
            break
        time.sleep(0.02)
    process.kill()
    process.wait()
    time.sleep(0.2)
    assert silent(heartbeat)
    if isinstance(backend, ContainerBackend):  # the engine tidies up by itself
        assert _vanishes(backend, process.pid)
    from posttrainbench import scratch

    for path in list(scratch.dead()):
        assert scratch.remove_dead(path)


def _vanishes(backend: ContainerBackend, harness: int) -> bool:
    """Whether the engine's record of a dead harness's container goes; of apptainer, which has none, its own processes."""
    if backend.name == "apptainer":
        asked, none = ["pgrep", "-u", str(os.geteuid()), "-f", "squashfuse|Apptainer runtime"], 1
    else:
        asked, none = [backend.program, "ps", "--all", "--quiet", "--filter", f"name=ptb-{harness}-"], 0
    for _ in range(300):
        done = subprocess.run(asked, capture_output=True, text=True, check=False)
        assert done.returncode in (0, none), done.stderr
        if done.stdout == "":
            return True
        time.sleep(0.1)
    return False


def test_launcher_stops_if_the_harness_is_gone(tmp_path):
    """The harness may die before the kernel knows that the launcher should die with it."""
    plan = command.memory_file(json.dumps({"parent": os.getppid(), "command": ["/bin/echo", "ran"]}).encode())
    try:
        answer = subprocess.run(
            [sys.executable, "-I", "-S", launcher.__file__, str(plan)],
            pass_fds=[plan],
            capture_output=True,
            check=False,
        )
    finally:
        os.close(plan)
    assert (answer.returncode, answer.stdout) == (launcher.FAILED, b"")


def test_gate_stays_shut_without_the_harness():
    """End of file at the gate means a dead harness: the command must not run."""
    ours, theirs = socket.socketpair()
    move = f"import os,sys;os.dup2({theirs.fileno()},{launcher.GATE});os.execv(sys.argv[1],sys.argv[1:])"
    process = subprocess.Popen(
        [sys.executable, "-I", "-S", "-c", move, *command.gated(Spec(argv=["echo", "ran"]))],
        pass_fds=[theirs.fileno()],
        stdout=subprocess.PIPE,
    )
    theirs.close()
    assert ours.recv(1) == b"\n"
    ours.close()
    assert process.communicate()[0] == b""
    assert process.returncode == 1


def test_stopped_processes_are_no_survivors(run):
    result, _ = run("kill -STOP $$", limits=Limits(wall_s=1, grace_s=0.1))
    assert result.reason == "deadline"
    assert result.returncode == 128 + signal.SIGKILL

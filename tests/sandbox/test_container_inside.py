"""The first process of a container: the agent can neither harm nor use it, and its forwarder comes back."""

from __future__ import annotations

import contextlib
import socket
import threading
from pathlib import Path

import pytest

from posttrainbench.sandbox import Backend
from posttrainbench.sandbox.containers import ContainerBackend

ATTACKS = """
import ctypes, os, signal, socket
libc = ctypes.CDLL(None, use_errno=True)
PTRACE_ATTACH, PIDFD_GETFD = 16, 438
def attempt(name, act):
    try: result = act()
    except OSError as error: print(name, "refused:", error.strerror)
    else: print(name, "SUCCEEDED", result)
def call(*arguments):
    if libc.syscall(*arguments) < 0: raise OSError(ctypes.get_errno(), os.strerror(ctypes.get_errno()))
attempt("ptrace", lambda: call(101, PTRACE_ATTACH, 1, 0, 0))
attempt("memory", lambda: open("/proc/1/mem", "r+b"))
attempt("environment", lambda: open("/proc/1/environ").read())
attempt("descriptors", lambda: os.listdir("/proc/1/fd"))
attempt("take descriptor", lambda: call(PIDFD_GETFD, os.pidfd_open(1), 3, 0))
attempt("root", lambda: os.listdir("/proc/1/root"))
control = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
attempt("control", lambda: control.connect("/run/ptb-door/control"))
attempt("replace", lambda: open("/run/ptb-door/container_inside.py", "w"))
for number in range(1, 65):
    if number not in (32, 33): os.kill(1, number)
print("alive:", os.path.exists("/proc/1"))
"""

ASK = """
import os, signal, socket, time
def ask():
    with socket.create_connection(("127.0.0.1", 3128), timeout=20) as s:
        s.sendall(b"x" * 300_000); s.shutdown(socket.SHUT_WR)
        return sum(len(piece) for piece in iter(lambda: s.recv(65536), b""))
def others():
    return [int(p) for p in os.listdir("/proc") if p.isdigit() and int(p) not in (1, os.getpid())]
print(ask())
for pid in others(): os.kill(pid, signal.SIGKILL)
while any(open(f"/proc/{pid}/stat").read().split()[2] != "Z" for pid in others() if os.path.exists(f"/proc/{pid}")):
    time.sleep(0.01)
print(ask())
taken = socket.socket()
try: taken.bind(("127.0.0.1", 3128)); print("TOOK THE PORT")
except OSError as error: print(error.strerror)
"""


@pytest.fixture(autouse=True)
def containers_only(backend: Backend) -> None:
    if not isinstance(backend, ContainerBackend):
        pytest.skip("bubblewrap has no program of ours inside")


def test_the_first_process_is_out_of_reach(run):
    result, output = run(argv=["/usr/bin/python3", "-c", ATTACKS])
    assert (result.returncode, result.reason) == (0, "exit")
    assert "SUCCEEDED" not in output, output
    assert output.endswith("alive: True\n") and output.count(" refused: ") == 8


def echo(listener: socket.socket) -> None:
    def serve() -> None:
        while True:
            try:
                connection, _ = listener.accept()
            except OSError:
                return
            with connection:
                while data := connection.recv(65536):
                    connection.sendall(data)

    threading.Thread(target=serve, daemon=True).start()


def test_a_killed_forwarder_comes_back_and_keeps_its_port(run):
    kept: list[socket.socket] = []

    def receive(listener: socket.socket) -> None:
        kept.append(listener)
        echo(listener)

    _, output = run(argv=["/usr/bin/python3", "-c", ASK], listeners={3128: receive})
    assert output.splitlines() == ["300000", "300000", "Address already in use"]
    kept[0].shutdown(socket.SHUT_RDWR)
    kept[0].close()


def test_the_way_out_works_until_the_grace_is_over(run, limits):
    """SIGTERM goes to every process; the forwarder stays, so that an agent can still save its work."""
    script = (
        "import signal, socket, time\n"
        "def end(*_):\n"
        "    s = socket.create_connection(('127.0.0.1', 3128), timeout=10); s.sendall(b'last'); s.shutdown(1)\n"
        "    print(s.recv(9).decode()); raise SystemExit(3)\n"
        "signal.signal(signal.SIGTERM, end)\n"
        "while True: time.sleep(0.05)"
    )
    kept: list[socket.socket] = []
    result, output = run(
        argv=["/usr/bin/python3", "-c", script],
        listeners={3128: lambda listener: (kept.append(listener), echo(listener))},
        limits=limits(wall_s=2, grace_s=30),
    )
    assert (output, result.reason, result.returncode) == ("last\n", "deadline", 3)
    kept[0].shutdown(socket.SHUT_RDWR)
    kept[0].close()


def test_odd_host_paths(run, tmp_path):
    """Engines take binds as one text with colons and commas."""
    place = tmp_path / 'a:b, c=d "e"\n'
    place.mkdir()
    (place / "f").write_text("read")
    assert run("cat /data/f", ro={"/data": place})[1] == "read"


def test_a_link_that_an_agent_left_in_the_place_of_a_bind(run, tmp_path):
    work = tmp_path / "work"
    work.mkdir()
    (tmp_path / "fixed").mkdir()
    (tmp_path / "fixed" / "f").write_text("ours")
    (work / "data").symlink_to("/etc")
    _, output = run("cat /w/data/f; ls /etc/f", rw={"/w": work}, ro={"/w/data": tmp_path / "fixed"})
    assert output.startswith("ours") and "No such file" in output


def test_mount_points_belong_to_the_agent(run, tmp_path):
    """Else a home with something bound deep inside would hold directories that its owner cannot write to."""
    (tmp_path / "deep").mkdir()
    result, _ = run(
        "touch /home/agent/.cache/x /home/agent/.cache/a/x /home/agent/x",
        ro={"/home/agent/.cache/a/b": tmp_path / "deep"},
    )
    assert result.returncode == 0


def test_what_others_see_in_command_lines(run, tmp_path):
    """Everybody on this machine can read them: no environment, no prompt, no path of the run."""
    (tmp_path / "work").mkdir()
    seen: list[str] = []

    def look() -> bool:
        for file in Path("/proc").glob("[0-9]*/cmdline"):
            with contextlib.suppress(OSError):
                seen.append(file.read_text(errors="replace"))
        return False

    run("sleep 1", rw={"/w": tmp_path / "work"}, env={"TOKEN": "s3cr3t-t0k3n"}, stdin="pr0mpt-t3xt", cancelled=look)
    everything = "".join(seen)
    assert "container_inside.py" in everything or "sleep" in everything
    for needle in ("s3cr3t-t0k3n", "pr0mpt-t3xt", str(tmp_path / "work")):
        assert needle not in everything

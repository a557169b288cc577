"""Attempts that end their sandbox, need a second one, or aim at the harness that watches. The list is in docs/security.md."""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from pathlib import Path, PurePosixPath

import pytest

from posttrainbench.errors import ConfigurationError
from posttrainbench.pipeline import trace
from posttrainbench.pipeline.collect import Places, take_snapshot, take_submission
from posttrainbench.pipeline.reopen import reopen
from posttrainbench.sandbox import Backend, Limits, Spec, python_runtime
from posttrainbench.sandbox.watchdog import disk_usage
from posttrainbench.workspace.build import Job

SECURITY = Path(__file__).parent.parent.parent / "docs" / "security.md"
PYTHON = "/usr/bin/python3"
BIND = "/home/agent/.cache/huggingface/hub/config.json"
BEAT = """
import os, time
def beat():
    if os.fork() == 0:
        os.setsid()
        while True:
            open('/home/agent/beat', 'a').write('.'); time.sleep(0.01)
    while not os.path.exists('/home/agent/beat'): time.sleep(0.01)
"""

LISTED = (
    "a fork bomb",
    "filling the memory, /dev/shm included",
    "filling the disk",
    "filling the disk out of sight (descriptors on their way)",
    "filling the disk with empty files",
    "leading the disk watch out by links",
    "using up descriptors",
    "flooding the trace",
    "killing all it can (kill -9 -1)",
    "telling bwrap a false end by its counter",
    "breaking process 1 by its memory",
    "a link where the next session's sandbox binds",
    "working directory removed, closed or replaced before the next session",
    "a tree too deep for the next session",
    "another run at the same time (signals, files, sockets, memory)",
    "secrets beside the interpreter's links",
    "a path too long to be collected",
    "a sparse giant where collection has to copy",
)


@pytest.fixture
def job(tmp_path: Path) -> Iterator[Job]:
    """A run's directories; removed at the end, because pytest itself breaks on the trees that some tests make."""
    found = Job(root=tmp_path / "job")
    for directory in (found.task, found.temporary, found.control):
        directory.mkdir(parents=True)
    (found.control / "config.json").write_text("ours")
    yield found
    subprocess.run(["rm", "-rf", str(found.root)], check=True)


def session(run, job: Job, script: str, **fields):  # type: ignore[no-untyped-def]
    """One sandbox over a run's home, as `pipeline.solve` starts it."""
    reopen(job)
    given = {
        "argv": [PYTHON, "-c", BEAT + script],
        "cwd": "/home/agent/task",
        "ro": {BIND: job.control / "config.json"},
        "rw": {"/home/agent": job.home, "/tmp": job.temporary},
        "limits": Limits(wall_s=40, grace_s=0.5, processes=200, memory_bytes=1 << 30, disk_bytes=1 << 30),
    }
    return run(**{**given, **fields})


def silent(job: Job) -> bool:
    beat = job.home / "beat"
    before = beat.stat().st_size
    time.sleep(0.1)
    return before > 0 and beat.stat().st_size == before


def test_all_are_listed() -> None:
    text = SECURITY.read_text()
    assert [name for name in LISTED if f"| {name} |" not in text] == []


# resources: the contract's tests try these with every back end


@pytest.mark.parametrize("backend", ["bubblewrap"], indirect=True)
def test_fork_bomb(run, job: Job) -> None:
    # stopped by: pids limit of the control group; all die with process 1
    script = "import os\nprint('begun', flush=True)\nwhile True:\n  try: os.fork()\n  except OSError: pass"
    result, output = session(
        run, job, script, limits=Limits(wall_s=2, grace_s=0.2, processes=100, memory_bytes=1 << 30)
    )
    assert result.reason == "deadline" and result.wall_s < 20 and "begun" in output
    assert subprocess.run(["/bin/true"], check=False).returncode == 0


@pytest.mark.parametrize("backend", ["bubblewrap"], indirect=True)
def test_memory_and_shared_memory(run, job: Job) -> None:
    # stopped by: memory limit of the control group, which counts files in memory
    script = "f = open('/dev/shm/x', 'wb')\nwhile True: f.write(b'x' * 1048576); f.flush()"
    result, _ = session(run, job, script, limits=Limits(wall_s=30, grace_s=0.2, memory_bytes=80 << 20))
    assert result.memory_kills >= 1 and (result.reason == "memory" or result.returncode != 0)


@pytest.mark.parametrize("backend", ["bubblewrap"], indirect=True)
def test_disk(run, job: Job) -> None:
    # stopped by: the disk watch
    script = "f = open('x', 'wb')\nimport time\nwhile True: f.write(b'x' * 1048576); f.flush(); time.sleep(0.005)"
    result, _ = session(run, job, script, limits=Limits(wall_s=30, grace_s=0.2, disk_bytes=20 << 20))
    assert result.reason == "disk"


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of 64 MB and 4,000 files."""
    if os.geteuid() != 0:
        pytest.skip("only root can mount a small file system")
    place = tmp_path / "small"
    place.mkdir()
    command = ["mount", "-t", "tmpfs", "-o", "size=64m,nr_inodes=4000,mode=755", "ptb-test", str(place)]
    if subprocess.run(command, capture_output=True, check=False).returncode != 0:
        pytest.skip("no file system can be mounted here")
    yield place
    subprocess.run(["umount", "-l", str(place)], check=True)


def test_disk_out_of_sight(run, small_disk: Path) -> None:
    # stopped by: the floor, which asks the file system and not the files
    script = """
import os, socket, time
a, b = socket.socketpair()
with open('/home/agent/x', 'w+b') as f:
    os.unlink('/home/agent/x')
    socket.send_fds(a, [b'x'], [f.fileno()])
while True:
    data = socket.recv_fds(b, 1, 1)[1][0]
    try: os.write(data, b'x' * 4194304)
    except OSError: pass
    socket.send_fds(a, [b'x'], [data]); os.close(data); time.sleep(0.4)
"""
    result, output = run(argv=[PYTHON, "-c", script], rw={"/home/agent": small_disk}, cwd="/home/agent",
                         limits=Limits(wall_s=30, grace_s=0.2, disk_bytes=60 << 20))  # fmt: skip
    assert result.reason == "disk", output


def test_empty_files(run, small_disk: Path) -> None:
    # stopped by: the floor, which counts free files too
    script = "import time\nfor i in range(3990): open(f'/home/agent/{i}', 'w').close()\ntime.sleep(60)"
    result, output = run(argv=[PYTHON, "-c", script], rw={"/home/agent": small_disk}, cwd="/home/agent",
                         limits=Limits(wall_s=30, grace_s=0.2, disk_bytes=60 << 20))  # fmt: skip
    assert result.reason == "disk", output


def test_disk_watch_follows_no_link(tmp_path: Path) -> None:
    # stopped by: du goes from descriptor to descriptor. A walk by path was led out in 39 of 60 looks
    (tmp_path / "root").mkdir()
    (tmp_path / "big").mkdir()
    (tmp_path / "big" / "file").write_bytes(b"x" * (40 << 20))
    for number in range(10):
        folder = tmp_path / "root" / f"a{number}"
        folder.mkdir()
        for name in range(300):
            (folder / str(name)).touch()
        (tmp_path / "root" / f"z{number}").mkdir()
    swapping = (
        "import os, sys\nroot, big = sys.argv[1:]\nwhile True:\n"
        " for a, b in ((os.rmdir, lambda p: os.symlink(big, p)), (os.unlink, os.mkdir)):\n"
        "  for n in range(10):\n   p = f'{root}/z{n}'\n   try: a(p); b(p)\n   except OSError: pass\n"
    )
    process = subprocess.Popen([sys.executable, "-c", swapping, str(tmp_path / "root"), str(tmp_path / "big")])
    try:
        time.sleep(0.3)
        assert all(disk_usage([tmp_path / "root"]) < 20 << 20 for _ in range(40))
    finally:
        process.kill()
        process.wait()


@pytest.mark.parametrize("backend", ["bubblewrap"], indirect=True)
def test_descriptors(run, job: Job) -> None:
    # stopped by: limits per process, and the memory limit
    script = """
import os
for _ in range(20):
    if os.fork() == 0: break
kept = []
try:
    while len(kept) < 100_000: kept.append(os.open('/dev/null', os.O_RDONLY))
except OSError as error: print(error.strerror, flush=True)
import time; time.sleep(2); os._exit(0)
"""
    result, output = session(run, job, script)
    assert result.reason in ("exit", "memory") and ("Too many open files" in output or result.memory_kills)
    with Path("/etc/passwd").open() as file:
        assert file.readline()


@pytest.mark.parametrize("backend", ["bubblewrap"], indirect=True)
def test_flood(run, job: Job, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, backend: Backend) -> None:
    # stopped by: the trace has a largest size, says what it dropped, and does not hold up the deadline
    monkeypatch.setattr(trace, "MAX_BYTES", 1 << 20)
    writer = trace.TraceWriter(tmp_path / "raw.jsonl")
    spec = Spec(argv=["/usr/bin/yes", "{" * 1000], limits=Limits(wall_s=1.5, grace_s=0.2))
    result = backend.run(spec, on_output=writer.feed)
    writer.close()
    assert result.reason == "deadline" and result.wall_s < 15
    assert (tmp_path / "raw.jsonl").stat().st_size < 4 << 20 and writer.dropped_bytes > 1 << 20


# processes


def test_kill_all(run, job: Job) -> None:
    # stopped by: a process namespace of its own. It hits itself, and nobody else
    result, _ = session(run, job, "beat()\nimport os\nif os.fork() == 0: os.kill(-1, 9)\nos.wait()")
    assert result.reason == "exit" and result.returncode in (0, 137) and silent(job)


def test_false_end(run, job: Job) -> None:
    # stopped by: whatever bwrap says, the harness kills process 1 by a handle of its own and waits for its end
    script = """
import ctypes, os, struct
beat()
libc = ctypes.CDLL(None, use_errno=True)
handle = os.pidfd_open(1)
for number in range(3, 12):
    copy = libc.syscall(438, handle, number, 0)
    if copy >= 0 and 'eventfd' in os.readlink(f'/proc/self/fd/{copy}'):
        os.write(copy, struct.pack('=Q', 43)); print('told', flush=True); time.sleep(30)
print('no counter to be had', flush=True)
"""
    result, output = session(run, job, script)
    assert ("told" in output) != ("no counter" in output) and result.reason == "exit" and result.wall_s < 20
    assert result.survivors == 0 and silent(job)


def test_breaking_process_1(run, job: Job) -> None:
    # stopped by: with process 1 the kernel kills all others
    script = """
beat()
with open('/proc/1/maps') as maps:
    places = [line.split() for line in maps]
for place in places:
    if 'x' in place[1] and '/' in place[-1]:
        first, last = (int(part, 16) for part in place[0].split('-'))
        with open('/proc/1/mem', 'r+b', buffering=0) as memory:
            memory.seek(first); memory.write(b'\\xcc' * (last - first))
print('broken', flush=True)
os.kill(1, 15)
if os.fork() == 0: os._exit(0)
if os.fork() == 0:
    if os.fork() == 0: os._exit(0)
    os._exit(0)
time.sleep(3)
"""
    result, output = session(run, job, script)
    # a container's process 1 cannot be reached at all
    assert ("broken" in output or "Permission denied" in output) and result.survivors == 0 and silent(job)


def test_another_run(run, backend: Backend, tmp_path: Path) -> None:
    # stopped by: namespaces. With a root harness both are the same user of the host, 20001
    first, second = (Job(root=tmp_path / name) for name in ("first", "second"))
    for job in (first, second):
        for directory in (job.task, job.temporary, job.control):
            directory.mkdir(parents=True)
        (job.control / "config.json").write_text("ours")
    hold = """
import socket, mmap
a = socket.socket(socket.AF_UNIX); a.bind('\\0ptb-other-run'); a.listen()
t = socket.create_server(('127.0.0.1', 47111)); open('/tmp/other', 'w').write('secret'); open('/dev/shm/other', 'w')
import ctypes; ctypes.CDLL(None).shmget(0x777, 4096, 0o1666)
beat(); time.sleep(25)
"""
    attack = """
import ctypes, socket
def no(what):
    try: what()
    except OSError: return True
    return False
def connect(family, address):
    with socket.socket(family) as s: s.settimeout(2); s.connect(address)
print([
    no(lambda: connect(socket.AF_UNIX, '\\0ptb-other-run')), no(lambda: connect(socket.AF_INET, ('127.0.0.1', 47111))),
    not os.path.exists('/tmp/other'), not os.path.exists('/dev/shm/other'),
    ctypes.CDLL(None).shmget(0x777, 4096, 0) < 0,
    all(no(lambda: os.kill(pid, 9)) for pid in range(2, 70000) if pid != os.getpid()),
])
"""
    ended: list[object] = []
    spec = {"limits": Limits(wall_s=3, grace_s=0.2, memory_bytes=1 << 30)}
    thread = threading.Thread(target=lambda: ended.append(session(run, first, hold, **spec)))
    thread.start()
    beat = first.home / "beat"
    for _ in range(1000):
        if beat.exists():
            break
        time.sleep(0.01)
    try:
        _, output = session(run, second, attack)
        alive = beat.stat().st_size
    finally:
        thread.join()
    assert output.strip() == str([True] * 6), output
    assert beat.stat().st_size > alive or ended[0][0].reason == "deadline"  # type: ignore[index]


# the next session


@pytest.fixture
def prey() -> Iterator[Path]:
    """A directory that everyone can reach, as with an ordinary user's harness: not below pytest's, which stay closed."""
    with tempfile.TemporaryDirectory(prefix="prey-") as made:
        Path(made).chmod(0o777)
        yield Path(made)


@pytest.mark.parametrize("to", ["/oldroot{prey}", "/newroot/tmp", "../../tmp", "/nowhere"])
def test_link_where_the_next_sandbox_binds(run, job: Job, prey: Path, to: str) -> None:
    # stopped by: `clear_places`. bwrap follows links while the host's root is still there, and made directories in it
    link = to.format(prey=prey)
    plant = f"os.rename('/home/agent/.cache', '/home/agent/old'); os.symlink({link!r}, '/home/agent/.cache')"
    session(run, job, plant)
    assert (job.home / ".cache").is_symlink()
    result, output = session(run, job, f"print(open({BIND!r}).read())")
    assert (result.returncode, output) == (0, "ours\n")
    assert list(prey.iterdir()) == [], "written outside of the sandbox"


@pytest.mark.parametrize(
    "plant",
    [
        "os.rename('/home/agent/.cache', '/home/agent/old'); open('/home/agent/.cache', 'w').close()",
        f"os.rename('/home/agent/.cache', '/home/agent/old'); os.makedirs({BIND!r})",
        "os.rename('/home/agent/.cache', '/home/agent/old'); os.mkfifo('/home/agent/.cache')",
    ],
)
def test_something_else_where_the_next_sandbox_binds(run, job: Job, plant: str) -> None:
    session(run, job, plant)
    result, output = session(run, job, f"print(open({BIND!r}).read())")
    assert (result.returncode, output) == (0, "ours\n")


@pytest.mark.parametrize(
    "plant",
    [
        "os.rename('/home/agent/task', '/home/agent/gone')",
        "os.chmod('/home/agent/task', 0); os.chmod('/home/agent', 0); os.chmod('/tmp', 0)",
        "os.rename('/home/agent/task', '/home/agent/gone'); open('/home/agent/task', 'w').close()",
        "os.rename('/home/agent/task', '/home/agent/gone'); os.symlink('/nowhere', '/home/agent/task')",
        "os.rename('/home/agent/task', '/home/agent/gone'); os.symlink('/etc', '/home/agent/task')",
        "os.rename('/home/agent/task', '/home/agent/gone'); os.symlink('task', '/home/agent/task')",
        "os.mkdir('/home/agent/a'); os.rename('/home/agent/task', '/home/agent/a/task');"
        "os.symlink('/home/agent/a/task', '/home/agent/task'); os.chmod('/home/agent/a', 0)",
    ],
)
def test_working_directory_before_the_next_session(run, job: Job, plant: str) -> None:
    # stopped by: `reopen`. It made an infrastructure error, which no agent may have in the place of a score
    session(run, job, plant)
    result, output = session(run, job, "open('made', 'w').close(); print(os.path.realpath('made'))")
    assert result.returncode == 0 and output.startswith("/home/agent/"), output


@pytest.mark.parametrize("backend", ["bubblewrap"], indirect=True)
def test_tree_too_deep_for_the_next_session(run, job: Job) -> None:
    # stopped by: directories are handed over only as deep as ours go
    session(run, job, "for _ in range(2500): os.mkdir('d'); os.chdir('d')\nopen('f', 'w').close()")
    assert session(run, job, "print('again')")[1] == "again\n"


# the harness's own eyes


@pytest.mark.parametrize("backend", ["bubblewrap"], indirect=True)
def test_path_too_long_to_be_collected(run, job: Job, tmp_path: Path) -> None:
    # stopped by: what cannot be taken is refused and noted; it ended the run
    names = "os.chdir('/tmp')\nfor _ in range(15): os.mkdir('n' * 250); os.chdir('n' * 250)\n"
    names += "for n in range(1, 250, 3):\n  try: open('f' * n, 'w').close()\n  except OSError: break"
    session(run, job, names)
    taken = take_snapshot(job.temporary, tmp_path / ("longer" * 4) / "kept", prefix="tmp", skip=set(), budget=1 << 20)
    assert any("too long" in entry["reason"] for entry in taken.refused)
    subprocess.run(["rm", "-rf", str(tmp_path / ("longer" * 4))], check=True)


def test_sparse_giant_that_is_copied(tmp_path: Path) -> None:
    # stopped by: holes stay holes. With a disk of its own for the agent nothing can be linked
    with tempfile.TemporaryDirectory(dir="/dev/shm") as other:
        source = Path(other, "home", "final_model")
        source.mkdir(parents=True)
        with (source / "giant.bin").open("wb") as file:
            file.write(b"begin")
            file.seek(3 << 30)
            file.write(b"middle")
            file.truncate(40 << 30)
        places = Places({PurePosixPath("/home/agent"): Path(other, "home")})
        inside = PurePosixPath("/home/agent/final_model")
        taken = take_submission(inside, places, tmp_path / "final_model", own=Path(other))
    copy = tmp_path / "final_model" / "giant.bin"
    assert taken.total == copy.stat().st_size == 40 << 30 and copy.stat().st_blocks * 512 < 1 << 20
    with copy.open("rb") as file:
        assert file.read(5) == b"begin"
        file.seek(3 << 30)
        assert file.read(6) == b"middle"


def test_secrets_beside_the_interpreters_links(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    # stopped by: only installations are bound whole. ~/.local has keyrings and the logins of CLIs
    home = tmp_path / "user"
    (home / ".local/bin").mkdir(parents=True)
    (home / ".local/share").mkdir()
    (home / ".local/share/auth.json").write_text("secret")
    (home / "venv/bin").mkdir(parents=True)
    (home / ".local/bin/python3").symlink_to(Path(sys.executable).resolve())
    (home / "venv/bin/python").symlink_to(home / ".local/bin/python3")
    (home / "venv/pyvenv.cfg").write_text("")
    monkeypatch.setattr(sys, "executable", str(home / "venv/bin/python"))
    binds = python_runtime()
    assert str(home / ".local/bin") in binds and str(home / "venv") in binds
    assert not any((home / ".local/share").is_relative_to(path) for path in binds.values())
    monkeypatch.setenv("HOME", str(home))
    monkeypatch.setattr(sys, "prefix", str(home))
    with pytest.raises(ConfigurationError, match="your home"):
        python_runtime()

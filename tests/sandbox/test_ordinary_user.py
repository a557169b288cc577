"""The harness as an ordinary user: the usual case on a researcher's machine, tried from a root test by a child process.

Uses the system's Python, because the one that runs the tests may lie where only root can go.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

import posttrainbench

UID = 20077  # needs no account
PYTHON = "/usr/bin/python3"

SCRIPT = """
import json, sys, tempfile, threading
from pathlib import Path
from posttrainbench.sandbox import Limits, Spec, get_backend, python_runtime
from posttrainbench.sandbox.probes import probe
base = Path(sys.argv[1])
for name in ("work", "cache"): (base / name).mkdir()
(base / "cache" / "f").write_text("cached")
backend = get_backend()
output = bytearray()
def answer(listener):
    threading.Thread(target=lambda: listener.accept()[0].sendall(b"from outside"), daemon=True).start()
result = backend.run(
    Spec(
        argv=[sys.executable, "-c", "import os,posttrainbench;print(os.getuid());open('f','a').write('!');"
              "print(open('f').read());open('/w/made','w').write('x');import socket;"
              "print(socket.create_connection(('127.0.0.1', 3128)).recv(99).decode());raise SystemExit(5)"],
        cwd="/c", env={"PYTHONPATH": sys.path[1]}, ro=python_runtime(),
        rw={"/w": base / "work"}, caches={"/c": base / "cache"},
        limits=Limits(wall_s=20, memory_bytes=300 << 20),
        listeners={3128: answer},
    ),
    on_output=output.extend,
)
print(json.dumps({
    "returncode": result.returncode, "reason": result.reason, "survivors": result.survivors, "output": output.decode(),
    "cache": (base / "cache" / "f").read_text(), "owner": (base / "work" / "made").stat().st_uid,
    "broken": [check.name + ": " + check.detail for check in probe(backend) if not check.ok],
    "left": [p.name for p in Path(tempfile.gettempdir()).iterdir()],
}))
"""


@pytest.fixture
def place() -> Iterator[Path]:
    """A directory of the user's; pytest's own ones are for root only."""
    path = Path(tempfile.mkdtemp(prefix="ptb-test-", dir="/tmp"))
    path.chmod(0o755)
    for name in ("tmp", "base"):
        (path / name).mkdir()
        if os.geteuid() == 0:
            os.chown(path / name, UID, UID)
    yield path
    shutil.rmtree(path)


@pytest.fixture
def as_user(place: Path) -> list[str]:
    if os.geteuid() != 0:
        pytest.skip("all other tests ran as an ordinary user already")
    source = Path(posttrainbench.__file__).parent.parent
    prefix = ["setpriv", "--reuid", str(UID), "--regid", str(UID), "--clear-groups", "env", "-i"]
    prefix += ["PATH=/usr/bin:/bin", f"PYTHONPATH={source}", f"TMPDIR={place}/tmp", PYTHON]
    check = "import sys, posttrainbench.sandbox; raise SystemExit(sys.version_info < (3, 11))"
    if subprocess.run([*prefix, "-c", check], capture_output=True, check=False).returncode != 0:
        pytest.skip(f"{PYTHON} is too old, or an ordinary user cannot read {source}")
    return prefix


def test_whole_contract(as_user: list[str], place: Path, bwrap: object) -> None:
    answer = subprocess.run(
        [*as_user, "-c", SCRIPT, str(place / "base")], capture_output=True, text=True, check=False, timeout=60
    )
    assert answer.returncode == 0, answer.stderr
    assert json.loads(answer.stdout) == {
        "returncode": 5,
        "reason": "exit",
        "survivors": 0,
        "output": "1000\ncached!\nfrom outside\n",
        "cache": "cached",
        "owner": UID,
        "broken": [],
        "left": [],
    }


def test_no_user_namespaces_is_one_clear_line(as_user: list[str], bwrap: object) -> None:
    """A sandbox in which bwrap forbids further user namespaces is like a machine that has none."""
    inner = [*as_user[:6], "bwrap", "--dev-bind", "/", "/", "--unshare-user", "--disable-userns", "--uid", "1234", "--"]
    script = (
        "from posttrainbench.sandbox import *\n"
        "from posttrainbench.errors import InfrastructureError\n"
        "try: get_backend().run(Spec(argv=['true']))\n"
        "except InfrastructureError as error: print(error)\n"
        "print([check.name for check in get_backend().preflight() if not check.ok])"
    )
    answer = subprocess.run(
        [*inner, *as_user[6:], "-c", script], capture_output=True, text=True, check=True, timeout=60
    )
    message, failed = answer.stdout.splitlines()
    assert message.startswith("no user namespaces for the sandbox (bwrap: ")
    assert failed == "['user namespaces']"


def test_closed_directories_are_removed(as_user: list[str], place: Path) -> None:
    """overlayfs leaves a directory of mode 0; root does not notice, an ordinary user does."""
    script = (
        "from pathlib import Path; from posttrainbench.sandbox import staging\n"
        "s = staging.Scratch(); (s.path / 'work' / 'work').mkdir(parents=True); (s.path / 'work' / 'work').chmod(0)\n"
        "(s.path / 'link').symlink_to('/'); s.close(); print(s.path.exists())"
    )
    answer = subprocess.run([*as_user, "-c", script], capture_output=True, text=True, check=True)
    assert answer.stdout == "False\n"

"""The suite of the back ends in a pytest of its own, for engines that need another user or a daemon."""

from __future__ import annotations

import os
import pwd
import shutil
import subprocess
import sys
import sysconfig
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import pytest

import posttrainbench
from tests.sandbox.conftest import ROOT, lab

# An ordinary user's interpreter: the one that runs these tests may lie where only root can go.
PYTHON = "/usr/bin/python3"
SYSTEM = "/usr/sbin:/usr/bin:/sbin:/bin"
FAST = (
    "test_contract.py::test_output_and_status_come_back",
    "test_contract.py::test_own_namespaces",
    "test_contract.py::test_rw_files_belong_to_a_user_who_is_not_root",
    "test_container_inside.py::test_the_first_process_is_out_of_reach",
    "test_container_inside.py::test_mount_points_belong_to_the_agent",
    "test_limits.py::test_memory_limit_ends_the_command",
    "test_limits.py::test_process_limit",
    "test_listener.py::test_the_harness_answers_inside",
    "test_probes.py::test_sound_sandbox",
    "test_teardown.py::test_deadline_kills_what_ignores_it",
    "test_teardown.py::test_harness_killed",
)
ALL = (
    "test_contract.py",
    "test_container_inside.py",
    "test_limits.py",
    "test_listener.py",
    "test_caches.py",
    "test_teardown.py",
    "test_probes.py::test_sound_sandbox",
)


def apptainer() -> tuple[str, str]:
    """The variable PATH with apptainer in it, and its image; skips where there is none."""
    programs, image = script("apptainer_lab.sh")
    return f"{programs}:{SYSTEM}", image


def script(name: str, *what: str) -> list[str]:
    """The words that a script of scripts/ prints; skips where it cannot do its work."""
    if os.environ.get("PTB_TEST_IMAGE"):
        pytest.skip("PTB_TEST_IMAGE is for the back end that was asked for")
    command = [ROOT / "scripts" / name, *what]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=900, check=False)
    except subprocess.TimeoutExpired:
        pytest.skip(f"{name} has not done its work in 15 minutes")
    if done.returncode != 0:
        pytest.skip((done.stderr.strip().splitlines() or [f"{name} failed without a word"])[-1])
    return done.stdout.split()


@contextmanager
def place_of_a_user(path: str = SYSTEM) -> Iterator[tuple[list[str], Path]]:
    """A command's beginning that runs it as the user of scripts/podman_lab.sh, and a short path that is theirs, with TMPDIR.

    Args:
        path: the variable PATH of the command.
    """
    if os.geteuid() != 0:
        pytest.skip("all other tests ran as an ordinary user already")
    user = lab("user")
    if user.startswith("localhost/"):
        pytest.skip("PTB_TEST_IMAGE is for the back end that was asked for")
    home = Path(pwd.getpwnam(user).pw_dir)
    place = home / f"t{os.getpid()}"  # sockets' paths must be short
    start = ["setpriv", "--reuid", user, "--regid", user, "--init-groups", "env", "-i", f"HOME={home}"]
    start += [f"PATH={path}", f"TMPDIR={place}"]
    place.mkdir()
    try:
        shutil.chown(place, user, user)
        yield start, place
    finally:
        shutil.rmtree(place, ignore_errors=True)


def environment_of_a_user(place: Path) -> Path:
    """A virtual environment with the packages of this one; gives its Python."""
    subprocess.run([PYTHON, "-m", "venv", "--without-pip", place / "venv"], check=True)
    (packages,) = (place / "venv" / "lib").glob("python*/site-packages")
    if packages.parent.name != f"python{sys.version_info[0]}.{sys.version_info[1]}":
        pytest.skip(f"{PYTHON} is not of the version that has the packages")
    try:
        shutil.copytree(sysconfig.get_paths()["purelib"], packages, copy_function=os.link, dirs_exist_ok=True)
    except shutil.Error:
        pytest.skip(f"the packages are not on the disk that {place} is on")
    return place / "venv" / "bin" / "python"


def suite(tests: Sequence[str], sandbox: str, image: str, *, path: str = SYSTEM) -> str:
    """Run tests of this directory as an ordinary user; gives pytest's last line."""
    with place_of_a_user(path) as (start, place):
        copy = place.with_name(f"tests-{os.getpid()}")  # pytest wants it outside of its own directories
        packages = f"{Path(posttrainbench.__file__).parent.parent}:{sysconfig.get_paths()['purelib']}"
        try:
            shutil.copytree(Path(__file__).parent, copy / "tests" / "sandbox")
            (copy / "tests" / "__init__.py").touch()
            return run([*start, f"PYTHONPATH={packages}"], copy, place, tests, sandbox, image)
        finally:
            shutil.rmtree(copy, ignore_errors=True)


def run(
    start: Sequence[str],
    root: Path,
    temporary: Path,
    tests: Sequence[str],
    sandbox: str,
    image: str,
    *,
    python: str = PYTHON,
) -> str:
    """One pytest; gives its last line."""
    options = ["-q", "-p", "no:cacheprovider", "-p", "no:xdist", "-o", "addopts=", "--rootdir", str(root)]
    done = subprocess.run(
        [
            *(start or ["env"]),
            f"PTB_TEST_SANDBOX={sandbox}",
            f"PTB_TEST_IMAGE={image}",
            "PYTHONDONTWRITEBYTECODE=1",
            *(python, "-m", "pytest", *options, "--basetemp", str(temporary / "bt")),
            *(str(root / "tests" / "sandbox" / test) for test in tests),
        ],
        cwd=root,
        capture_output=True,
        text=True,
        timeout=1500,
        check=False,
    )
    if "No module named" in done.stderr or "Permission denied" in done.stderr:
        pytest.skip(f"an ordinary user cannot read the packages: {done.stderr.splitlines()[-1]}")
    assert done.returncode == 0, done.stdout[-6000:] + done.stderr[-2000:]
    return done.stdout.splitlines()[-1]

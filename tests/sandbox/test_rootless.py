"""Rootless podman: the suite of the back ends once more, run by an ordinary user in a process of its own."""

from __future__ import annotations

import os
import pwd
import shutil
import subprocess
import sysconfig
from pathlib import Path

import pytest

import posttrainbench
from tests.sandbox.conftest import ROOT, lab

PYTHON = "/usr/bin/python3"  # the one that runs these tests may lie where only root can go
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
ALL = ("test_contract.py", "test_container_inside.py", "test_limits.py", "test_listener.py", "test_caches.py")
SLOW = (*ALL, "test_teardown.py", "test_probes.py::test_sound_sandbox")


def suite(tests: tuple[str, ...], tmp_path: Path) -> str:
    """Run tests as the user of scripts/podman_lab.sh; gives pytest's last line."""
    if os.geteuid() != 0:
        pytest.skip("all other tests ran as an ordinary user already")
    user = lab("user")
    if user.startswith("localhost/"):
        pytest.skip("PTB_TEST_IMAGE is for the back end that was asked for")
    home = Path(pwd.getpwnam(user).pw_dir)
    copy, temporary = home / f"tests-{os.getpid()}", home / f"t{os.getpid()}"  # sockets' paths must be short
    packages = sysconfig.get_paths()["purelib"]
    command = f"""
        setpriv --reuid {user} --regid {user} --init-groups env -i HOME={home} PATH=/usr/sbin:/usr/bin:/sbin:/bin
        PTB_TEST_SANDBOX=podman PTB_TEST_IMAGE=localhost/ptb-contract TMPDIR={temporary} PYTHONDONTWRITEBYTECODE=1
        PYTHONPATH={Path(posttrainbench.__file__).parent.parent}:{packages}
        {PYTHON} -m pytest -q -p no:cacheprovider -p no:xdist -o addopts= --rootdir {copy} --basetemp {temporary}/bt
    """
    try:
        shutil.copytree(Path(__file__).parent, copy / "tests" / "sandbox")
        (copy / "tests" / "__init__.py").touch()
        temporary.mkdir()
        shutil.chown(temporary, user, user)
        done = subprocess.run(
            [*command.split(), *(str(copy / "tests" / "sandbox" / test) for test in tests)],
            cwd=copy,
            capture_output=True,
            text=True,
            timeout=1500,
            check=False,
        )
    finally:
        for folder in (copy, temporary):
            shutil.rmtree(folder, ignore_errors=True)
    if "No module named" in done.stderr or "Permission denied" in done.stderr:
        pytest.skip(f"an ordinary user cannot read the packages: {done.stderr.splitlines()[-1]}")
    assert done.returncode == 0, done.stdout[-6000:] + done.stderr[-2000:]
    return done.stdout.splitlines()[-1]


def test_the_core_of_the_contract(tmp_path: Path) -> None:
    assert "passed" in suite(FAST, tmp_path)


@pytest.mark.slow
def test_all_of_it(tmp_path: Path) -> None:
    assert "passed" in suite(SLOW, tmp_path)


def test_the_lab_is_part_of_the_repository() -> None:
    assert os.access(ROOT / "scripts" / "podman_lab.sh", os.X_OK)

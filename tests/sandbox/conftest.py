"""Real sandboxes in tests, one back end after the other: skipped where one is missing, checked to leave nothing behind.

`PTB_TEST_SANDBOX` names other back ends than bubblewrap and podman, `PTB_TEST_IMAGE` their image (scripts/contract.sh).
"""

from __future__ import annotations

import contextlib
import fcntl
import functools
import os
import shutil
import subprocess
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from posttrainbench.sandbox import Backend, Limits, Result, Spec, get_backend
from posttrainbench.sandbox.containers import ContainerBackend
from posttrainbench.sandbox.environment import INSIDE_UID

Run = Callable[..., tuple[Result, str]]


ROOT = Path(__file__).parent.parent.parent
KINDS = os.environ.get("PTB_TEST_SANDBOX", "bubblewrap podman").split()


@pytest.fixture(scope="session")
def podman_image() -> str:
    """A small image for the user who runs the tests, made once (scripts/podman_lab.sh)."""
    return lab()


def lab(*what: str) -> str:
    """What scripts/podman_lab.sh prints; skips where it cannot do its work."""
    if given := os.environ.get("PTB_TEST_IMAGE"):
        return given
    if shutil.which("podman") is None:
        pytest.skip("podman is not installed (scripts/test_tools.sh)")
    try:
        done = subprocess.run(
            [ROOT / "scripts" / "podman_lab.sh", *what], capture_output=True, text=True, timeout=900, check=False
        )
    except subprocess.TimeoutExpired:
        pytest.skip("no image for podman after 15 minutes")
    if done.returncode != 0:
        pytest.skip(f"no image for podman: {(done.stderr.strip().splitlines() or ['no reason given'])[-1]}")
    return done.stdout.split()[-1]


@pytest.fixture(scope="session")
def docker_image() -> Iterator[str]:
    """A docker daemon, named by DOCKER_HOST if it is not the machine's own, and the same image in it."""
    from tests.sandbox.suites import script

    place = Path("/run/ptb-docker")
    with contextlib.ExitStack() as stack:
        if os.geteuid() == 0:
            place.mkdir(mode=0o700, exist_ok=True)
            # whoever comes last ends the daemon
            fcntl.flock(stack.enter_context((place / "used").open("a")), fcntl.LOCK_SH)
        *host, image = script("docker_lab.sh", "start")
        with pytest.MonkeyPatch.context() as patch:
            if host:
                patch.setenv("DOCKER_HOST", host[0])
            yield image
    script("docker_lab.sh", "stop")


@pytest.fixture(params=KINDS)
def backend(request: pytest.FixtureRequest) -> Backend:
    """Each back end in turn."""
    image = None if request.param == "bubblewrap" else request.getfixturevalue("podman_image")
    return usable(request.param, image)


@pytest.fixture
def bwrap() -> Backend:
    """For tests of what only bubblewrap does."""
    if "bubblewrap" not in KINDS:
        pytest.skip("of bubblewrap only")
    return usable("bubblewrap", None)


@functools.cache
def _problem(name: str, image: str | None) -> str:
    checks = get_backend(name, image=image).preflight()
    return next((check.detail for check in checks if check.required and not check.ok), "")


def usable(name: str, image: str | None) -> Backend:
    """The back end, fresh; skips where it does not work."""
    if problem := _problem(name, image):
        pytest.skip(f"no {name} on this machine: {problem}")
    return get_backend(name, image=image)


@pytest.fixture
def agent(backend: Backend) -> int:
    """The uid that the sandbox's user has inside."""
    return backend.user.inside if isinstance(backend, ContainerBackend) else INSIDE_UID


@pytest.fixture
def run(backend: Backend) -> Iterator[Run]:
    """Run a shell script, or `argv`; gives the result and all output."""

    def call(script: str = "", *, on: Backend | None = None, cancelled: Callable[[], bool] | None = None, **fields):  # type: ignore[no-untyped-def]
        output = bytearray()
        spec = Spec(**{"argv": ["sh", "-c", script], "limits": Limits(wall_s=60, grace_s=1), **fields})
        result = (on or backend).run(spec, on_output=output.extend, cancelled=cancelled)
        assert result.survivors == 0
        return result, output.decode(errors="replace")

    yield call
    if backend.name in ("podman", "docker"):
        asked = [backend.name, "ps", "--all", "--quiet", "--filter", f"name=ptb-{os.getpid()}-"]
        assert subprocess.run(asked, capture_output=True, text=True, check=True).stdout == ""


@pytest.fixture
def limits() -> Callable[..., Limits]:
    return lambda **fields: replace(Limits(wall_s=60, grace_s=1), **fields)


@pytest.fixture(autouse=True)
def nothing_left(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """After each test: no temporary file, control group, mount or process of ours."""
    scratch = tmp_path / "scratch-of-test"
    scratch.mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(scratch))
    before = _children()
    yield
    assert list(scratch.iterdir()) == []
    assert _mounts(tmp_path) == set()
    groups = [name for _, names, _ in os.walk("/sys/fs/cgroup") for name in names]
    assert [name for name in groups if name.startswith(f"ptb-{os.getpid()}-")] == []
    assert _children() <= before


def _mounts(own: Path) -> set[str]:
    """What is mounted below the test's directory, where temporary files are; elsewhere other programs mount things."""
    return {line for line in Path("/proc/self/mounts").read_text().splitlines() if f" {own}/" in line}


def _children() -> set[str]:
    """Processes that this one started; tests before may have left a helper of multiprocessing's."""
    children = Path(f"/proc/self/task/{os.getpid()}/children")
    return set(children.read_text().split()) if children.exists() else set()

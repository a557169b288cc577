"""Installations of the CLIs: npm packages of exact versions in a cache outside of every sandbox.

    $PTB_AGENTS_DIR/SCAFFOLD/VERSION-linux-ARCH/       (default ~/.cache/posttrainbench/agents)

Installed without lifecycle scripts, into a draft that is renamed when the CLI has answered to `--version`: what is in the
cache works, and nothing else is. Sandboxes mount a directory as it is, so all of it is made readable for everyone.
"""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import platform
import shutil
import stat
import subprocess
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from posttrainbench import catalog
from posttrainbench.errors import ConfigurationError, InfrastructureError
from posttrainbench.files import fsync_directory, read_json, remove_tree, user_cache, write_json
from posttrainbench.scaffolds.base import INSTALLATION, Installation
from posttrainbench.scratch import Scratch, draft_beside

_RECORD = "installation.json"
_NPM_S = 900
_VERSION_S = 60
_ARCHITECTURES = {"x86_64": "x64", "aarch64": "arm64"}


def agents_dir() -> Path:
    """The cache of installations."""
    if chosen := os.environ.get("PTB_AGENTS_DIR"):
        return Path(chosen).absolute()
    return user_cache() / "agents"


def entry(name: str) -> catalog.Scaffold:
    """The catalogue's entry of a scaffold that is installed from npm.

    Raises:
        ConfigurationError: unknown, or nothing to install.
    """
    known = {each.name: each for each in catalog.scaffolds() if each.packages}
    if name not in known:
        raise catalog.unknown("agent CLI", name, known)
    return known[name]


def _architecture() -> str:
    machine = platform.machine()
    if machine not in _ARCHITECTURES:
        raise ConfigurationError(f"the agent CLIs are built for {' and '.join(_ARCHITECTURES)}, not for {machine}")
    return _ARCHITECTURES[machine]


def packages(scaffold: catalog.Scaffold) -> tuple[str, ...]:
    """`NAME@VERSION` of every package, for this machine."""
    return tuple(package.format(arch=_architecture()) for package in scaffold.packages)


def pinned(scaffold: catalog.Scaffold) -> tuple[str, str]:
    """Name and version of the CLI's package."""
    name, _, version = packages(scaffold)[0].rpartition("@")
    return name, version


def place(scaffold: catalog.Scaffold) -> Path:
    """Directory of the pinned version in the cache."""
    return agents_dir() / scaffold.name / f"{pinned(scaffold)[1]}-linux-{_architecture()}"


def is_installed(name: str) -> bool:
    """Whether the pinned version is in the cache."""
    return installed(name) is not None


def installed(name: str) -> Installation | None:
    """The pinned version of a CLI, if it is in the cache."""
    scaffold = entry(name)
    path = place(scaffold)
    try:
        record = read_json(path / _RECORD)
        return Installation(
            scaffold=name,
            package=record["package"],
            version=record["version"],
            path=path,
            integrity=record["integrity"],
        )
    except (OSError, ValueError, KeyError):
        return None


def require(name: str) -> Installation:
    """The pinned version of a CLI.

    Raises:
        ConfigurationError: not installed.
    """
    found = installed(name)
    if found is None:
        version = pinned(entry(name))[1]
        raise ConfigurationError(f"{name} {version} is not installed; run `ptb agents install {name}`")
    return found


def program(installation: Installation) -> tuple[str, ...]:
    """The command inside a sandbox that starts the CLI, without arguments.

    Raises:
        ConfigurationError: the installation is damaged.
    """
    return tuple(f"{INSTALLATION}/{installation.scaffold}/{part}" for part in _program(installation))


def mounts(installation: Installation) -> dict[str, Path]:
    """The read-only mount that goes with `program`."""
    return {f"{INSTALLATION}/{installation.scaffold}": installation.path}


def _program(installation: Installation) -> tuple[str, ...]:
    """The CLI's executable, relative to the installation, after the runtime that it needs."""
    scaffold = entry(installation.scaffold)
    for pattern in scaffold.executables:
        if pattern == scaffold.executables[0] and len(scaffold.executables) > 1 and not _modern():
            continue
        for path in sorted(installation.path.glob(pattern.format(arch=_architecture()))):
            runtime = scaffold.runtime and scaffold.runtime.format(arch=_architecture())
            return tuple(filter(None, (runtime, str(path.relative_to(installation.path)))))
    raise ConfigurationError(
        f"the installation of {installation.scaffold} in {installation.path} is damaged; "
        f"run `ptb agents remove {installation.scaffold}` and install it again"
    )


def _modern() -> bool:
    """Whether the processor has AVX2, which builds for current processors use; others need the `baseline` build."""
    with contextlib.suppress(OSError):
        return platform.machine() != "x86_64" or " avx2 " in Path("/proc/cpuinfo").read_text()
    return True


@contextlib.contextmanager
def _alone(parent: Path) -> Iterator[None]:
    """Wait until no other process installs this CLI: it could take away what runs already use."""
    descriptor = os.open(parent / ".lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX)
        yield
    finally:
        os.close(descriptor)


def install(name: str) -> Installation:
    """Install the pinned version of a CLI; does nothing if it is there.

    Raises:
        ConfigurationError: unknown name, no npm, or the cache cannot be written.
        InfrastructureError: npm failed, or the CLI does not start here.
    """
    if (found := installed(name)) is not None:
        return found
    scaffold = entry(name)
    package, version = pinned(scaffold)
    target = place(scaffold)
    beside = draft_beside(target, within="the cache of agent CLIs", variable="PTB_AGENTS_DIR")
    with beside as draft, _alone(target.parent):
        if (found := installed(name)) is not None:
            return found  # by whoever held the lock before
        _npm(draft, packages(scaffold))
        trial = Installation(scaffold=name, package=package, version=version, path=draft)
        _check(trial)
        record = {
            "package": package,
            "version": version,
            "packages": list(packages(scaffold)),
            "integrity": _integrity(draft, package),
            "installed": datetime.now(UTC).isoformat(timespec="seconds"),
        }
        write_json(draft / _RECORD, record)
        _readable(draft)
        remove_tree(target)
        draft.rename(target)
        fsync_directory(target.parent)
    return require(name)


def _npm(draft: Path, wanted: tuple[str, ...]) -> None:
    npm = shutil.which("npm")
    if npm is None:
        raise ConfigurationError(
            "npm is needed to install agent CLIs and is not on PATH; install Node.js (for example `apt-get install npm`), "
            "or copy an installed PTB_AGENTS_DIR from another machine"
        )
    write_json(draft / "package.json", {"name": "ptb-agent", "version": "0.0.0", "private": True})
    flags = ("--ignore-scripts", "--no-audit", "--no-fund", "--no-update-notifier", "--save-exact", "--loglevel=error")
    try:
        done = subprocess.run(
            [npm, "install", *flags, "--prefix", str(draft), *wanted],
            cwd=draft,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            errors="replace",
            timeout=_NPM_S,
            check=False,
        )
    except subprocess.TimeoutExpired:
        raise InfrastructureError(
            f"npm did not install {wanted[0]} within {_NPM_S} s; is the registry reachable?"
        ) from None
    if done.returncode != 0:
        lines = [line.removeprefix("npm error ").strip() for line in (done.stderr or done.stdout).splitlines()]
        told = [line for line in lines if line and not line.startswith(("npm warn", "A complete log"))][:3]
        raise InfrastructureError(f"npm could not install {wanted[0]}: {'; '.join(told) or 'no reason given'}")


def _check(trial: Installation) -> None:
    """See that the CLI starts and is the version that was asked for."""
    argv = [str(trial.path / part) for part in _program(trial)]
    with Scratch("agent") as home:
        try:
            done = subprocess.run(
                [*argv, "--version"],
                cwd=home,
                env={"HOME": str(home), "PATH": "/usr/local/bin:/usr/bin:/bin", "LANG": "C.UTF-8"},
                stdin=subprocess.DEVNULL,
                capture_output=True,
                text=True,
                errors="replace",
                timeout=_VERSION_S,
                check=False,
            )
        except (OSError, subprocess.TimeoutExpired) as error:
            raise InfrastructureError(f"{trial.scaffold} {trial.version} does not start here: {error}") from None
    if done.returncode != 0 or trial.version not in done.stdout:
        said = " ".join((done.stdout + done.stderr).split())[:200]
        raise InfrastructureError(f"{trial.scaffold} {trial.version} does not start here: {said or done.returncode}")


def _integrity(draft: Path, package: str) -> str:
    """The hash by which npm verified the CLI's package."""
    lock = json.loads((draft / "package-lock.json").read_text(encoding="utf-8"))
    row: dict[str, Any] = lock["packages"][f"node_modules/{package}"]
    return str(row.get("integrity", ""))


def _readable(root: Path) -> None:
    """Let everyone read all of it, whatever the umask: sandboxes of a root harness run as another user."""
    for directory, _, names, descriptor in os.fwalk(root):
        os.chmod(directory, 0o755)  # noqa: PTH101
        for name in names:
            mode = os.stat(name, dir_fd=descriptor, follow_symlinks=False).st_mode
            if stat.S_ISREG(mode):
                os.chmod(name, 0o755 if mode & 0o111 else 0o644, dir_fd=descriptor)


def remove(name: str) -> list[Path]:
    """Remove every version of a CLI from the cache. Returns the directories that were there.

    Raises:
        ConfigurationError: unknown name.
    """
    entry(name)
    parent = agents_dir() / name
    there = sorted(path for path in parent.glob("*") if path.is_dir()) if parent.is_dir() else []
    remove_tree(parent)
    return there


def size_bytes(path: Path) -> int:
    """Bytes on disk below a directory."""
    return sum(
        os.stat(name, dir_fd=descriptor, follow_symlinks=False).st_blocks * 512
        for _, _, names, descriptor in os.fwalk(path)
        for name in names
    )

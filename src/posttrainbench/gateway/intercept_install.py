"""The interceptor's environment: mitmproxy and what it needs, at pinned versions, under a Python of 3.12 or later.

    $PTB_MITM_ENV      (default ~/.cache/posttrainbench/doors/mitmproxy-VERSION-LOCK)

mitmproxy bounds its dependencies so narrowly that it cannot share the harness's environment, and needs a newer Python than
the harness does. Installed by `ptb doors install` from `interceptor/requirements.txt` (versions and hashes), into a draft
that is renamed when it works.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from posttrainbench.errors import ConfigurationError, InfrastructureError
from posttrainbench.files import read_json, remove_tree, user_cache, write_json
from posttrainbench.gateway.intercept import PROGRAM
from posttrainbench.scratch import draft_beside

LOCK = PROGRAM / "requirements.txt"
OLDEST = (3, 12)
_RECORD = "installation.json"
_PIP_S, _CHECK_S = 900, 120
_HOW = "run `ptb doors install`, or use --web-tls passthrough"


@dataclass(frozen=True)
class Engine:
    """An installed interceptor.

    Attributes:
        path: its environment.
        version: of mitmproxy.
        python: version of its Python.
    """

    path: Path
    version: str
    python: str


def version() -> str:
    """The pinned version of mitmproxy."""
    found = re.search(r"^mitmproxy==(\S+)", LOCK.read_text(encoding="utf-8"), re.MULTILINE)
    assert found is not None
    return found[1]


def place() -> Path:
    """Where the environment is, or will be."""
    if chosen := os.environ.get("PTB_MITM_ENV"):
        return Path(chosen).absolute()
    lock = hashlib.sha256(LOCK.read_bytes()).hexdigest()[:8]
    return user_cache() / "doors" / f"mitmproxy-{version()}-{lock}"


def installed() -> Engine | None:
    """The interceptor, if it is installed."""
    path = place()
    try:
        record = read_json(path / _RECORD)
        found = Engine(path, str(record["version"]), str(record["python"]))
    except (OSError, ValueError, KeyError, TypeError):
        return None
    return found if found.version == version() and (path / "bin" / "python").exists() else None


def require() -> Engine:
    """The interceptor.

    Raises:
        ConfigurationError: it is not installed; says what is missing.
    """
    found = installed()
    if found is not None:
        return found
    python = (
        "" if find_python() else f"; it needs Python {_dotted(OLDEST)} or later, which is not here (PTB_MITM_PYTHON)"
    )
    raise ConfigurationError(f"looking into TLS needs mitmproxy {version()}, which is not installed{python}; {_HOW}")


def _dotted(number: tuple[int, ...]) -> str:
    return ".".join(map(str, number))


def find_python() -> tuple[Path, str] | None:
    """A Python that the interceptor can have, and its version."""
    for candidate in _candidates():
        try:
            done = subprocess.run(
                [candidate, "-I", "-c", "import sys, venv, ensurepip; print('%d.%d.%d' % sys.version_info[:3])"],
                stdin=subprocess.DEVNULL,
                capture_output=True,
                text=True,
                timeout=_CHECK_S,
                check=False,
            )
        except (OSError, subprocess.TimeoutExpired):
            continue
        told = done.stdout.strip()
        if done.returncode == 0 and re.fullmatch(r"3\.\d+\.\d+", told) and _numbers(told) >= OLDEST:
            return Path(candidate), told
    return None


def _numbers(text: str) -> tuple[int, ...]:
    return tuple(map(int, text.split(".")))


def _candidates() -> Iterator[str]:
    if chosen := os.environ.get("PTB_MITM_PYTHON"):
        yield chosen
        return
    if sys.version_info >= OLDEST:
        yield sys.executable
    for name in ("python3.13", "python3.12", "python3.14", "python3"):
        if found := shutil.which(name):
            yield found
    home = Path(os.path.expanduser("~"))  # noqa: PTH111 - never raises
    pyenv = Path(os.environ.get("PYENV_ROOT") or home / ".pyenv")
    for root, pattern in (
        (pyenv / "versions", "3.1[2-9]*/bin/python"),
        (home / ".local/share/uv/python", "cpython-3.1[2-9]*/bin/python3"),
    ):
        yield from map(str, sorted(root.glob(pattern)))


def install() -> Engine:
    """Install the interceptor; does nothing if it is there.

    Raises:
        ConfigurationError: no suitable Python, or the place cannot be written.
        InfrastructureError: pip failed, or what it installed does not start.
    """
    if (found := installed()) is not None:
        return found
    python = find_python()
    if python is None:
        raise ConfigurationError(
            f"the interceptor needs Python {_dotted(OLDEST)} or later with venv and pip; none is on PATH or in pyenv. "
            "Install one (`apt-get install python3.12-venv` or `uv python install 3.12`) or name it in PTB_MITM_PYTHON"
        )
    target = place()
    with draft_beside(target, variable="PTB_MITM_ENV") as draft:
        _run([str(python[0]), "-I", "-m", "venv", str(draft)], "the environment could not be made")
        pip = ["-m", "pip", "install", "--quiet", "--no-deps", "--require-hashes", "--no-input", "-r", str(LOCK)]
        _run([str(draft / "bin/python"), *pip], "pip could not install mitmproxy")
        told = _run([str(draft / "bin/python"), "-I", str(PROGRAM), "--check"], "mitmproxy does not start here").strip()
        if told != version():
            raise InfrastructureError(f"mitmproxy {told} was installed in the place of {version()}", kind="install")
        write_json(draft / _RECORD, {"version": told, "python": python[1]})
        if installed() is None:
            remove_tree(target)
            draft.rename(target)
    return require()


def _run(argv: list[str], problem: str) -> str:
    try:
        done = subprocess.run(
            argv,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            errors="replace",
            timeout=_PIP_S,
            check=False,
        )
    except (OSError, subprocess.TimeoutExpired) as error:
        raise InfrastructureError(f"{problem}: {error}", kind="install") from None
    if done.returncode:
        lines = [line for line in (done.stderr or done.stdout).splitlines() if line.strip() and "WARNING" not in line]
        raise InfrastructureError(f"{problem}: {' '.join(lines[-3:])[:400] or 'no reason given'}", kind="install")
    return done.stdout


def new_authority(engine: Engine, name: str) -> dict[str, str]:
    """A certificate authority for one run: `key` and `certificate` in PEM. The key is for the gateway's pipe only.

    Raises:
        InfrastructureError: the interceptor does not start.
    """
    argv = [str(engine.path / "bin" / "python"), "-I", str(PROGRAM), "--authority", name]
    made = json.loads(_run(argv, "the interceptor does not start"))
    return {"key": str(made["key"]), "certificate": str(made["certificate"])}

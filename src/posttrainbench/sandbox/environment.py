"""What a program finds inside: the read-only system, its user and environment, and the harness's Python if bound."""

from __future__ import annotations

import os
import sys
from pathlib import Path

from posttrainbench.errors import ConfigurationError

HOME = "/home/agent"
INSIDE_UID = 1000
DEFAULT_ENVIRONMENT = {"PATH": "/usr/local/bin:/usr/bin:/bin", "HOME": HOME, "LANG": "C.UTF-8"}

_ROOT_LINKS = ("bin", "sbin", "lib", "lib32", "lib64", "libx32")
# Configuration that programs need and that tells nothing of the host. Private keys (/etc/ssl/private) stay out.
_ETC_BINDS = (
    "alternatives",
    "ca-certificates.conf",
    "crypto-policies",
    "fonts",
    "ld.so.cache",
    "ld.so.conf",
    "ld.so.conf.d",
    "localtime",
    "mime.types",
    "pki/ca-trust",
    "pki/tls/certs",
    "protocols",
    "services",
    "ssl/certs",
    "ssl/openssl.cnf",
)


def etc_files(uid: int = INSIDE_UID) -> dict[str, str]:
    """Path -> text of the files in /etc that no sandbox takes from a host or an image.

    Args:
        uid: what user and group `agent` have inside.
    """
    return {
        "/etc/passwd": (
            f"root:x:0:0:root:/root:/usr/sbin/nologin\nagent:x:{uid}:{uid}:agent:{HOME}:/bin/bash\n"
            "nobody:x:65534:65534:nobody:/nonexistent:/usr/sbin/nologin\n"
        ),
        "/etc/group": f"root:x:0:\nagent:x:{uid}:\nnogroup:x:65534:\n",
        "/etc/hosts": "127.0.0.1 localhost sandbox\n::1 localhost sandbox\n",
        "/etc/hostname": "sandbox\n",
        "/etc/nsswitch.conf": "passwd: files\ngroup: files\nshadow: files\nhosts: files dns\nservices: files\n",
        # The network is empty; an immediate refusal from the loopback is better than a resolver's time-out.
        "/etc/resolv.conf": "nameserver 127.0.0.1\noptions timeout:1 attempts:1\n",
    }


def system_arguments() -> list[str]:
    """bwrap arguments for /usr, the links into it and the harmless part of /etc, all read-only."""
    arguments = ["--ro-bind", "/usr", "/usr"]
    for name in _ROOT_LINKS:
        path = Path("/", name)
        if path.is_symlink():
            arguments += ["--symlink", str(path.readlink()), str(path)]
        elif path.is_dir():  # a system whose /bin is not merged into /usr
            arguments += ["--ro-bind", str(path), str(path)]
    for name in _ETC_BINDS:
        path = Path("/etc", name)
        if path.exists():
            arguments += ["--ro-bind", str(path.resolve()), str(path)]
    if Path("/usr/lib/os-release").exists():
        arguments += ["--symlink", "../usr/lib/os-release", "/etc/os-release"]
    return [*arguments, "--symlink", "/proc/mounts", "/etc/mtab"]


def python_runtime(*, image: bool = False) -> dict[str, Path]:
    """Read-only binds with which the harness's own interpreter and packages work inside, at the same paths.

    Covers `sys.executable` with every link on its way, `sys.prefix` (the venv), `sys.base_prefix` (the interpreter) and
    the `posttrainbench` package; of an editable install the package directory only, not the checkout around it.
    What lies under /usr is left out, because it is there anyway.

    Args:
        image: the system inside is that of an image: of an interpreter in /usr itself that one must have its own, but
            nothing else below /usr is there.

    Returns:
        Inside path -> host path, for `Spec.ro`.

    Raises:
        ConfigurationError: Python lies in the user's home as such, so that all of it would be readable inside.
    """
    wanted = [Path(prefix) for prefix in (sys.prefix, sys.exec_prefix, sys.base_prefix, sys.base_exec_prefix)]
    wanted += _interpreter_homes(Path(sys.executable))
    wanted.append(Path(__file__).parent.parent)
    binds: dict[str, Path] = {}
    for path in sorted({Path(os.path.abspath(p)) for p in wanted}, key=lambda p: len(p.parts)):  # noqa: PTH100 - keeps links
        there = path == Path("/usr") if image else path.is_relative_to("/usr")
        if not there and not any(path.is_relative_to(known) for known in binds):
            binds[str(path)] = path.resolve()
    user = Path(os.path.realpath(os.path.expanduser("~")))  # noqa: PTH111 - Path.home() raises where there is none
    for path in map(Path, binds):
        if user.is_relative_to(path):
            raise ConfigurationError(
                f"Python is installed in {path}, and programs in the sandbox would read all of it, your home {user} "
                "included: run ptb from a virtual environment in a directory of its own"
            )
    return binds


def _is_installation(home: Path) -> bool:
    """Whether a directory is that of an interpreter or of a virtual environment."""
    return (home / "pyvenv.cfg").is_file() or any(home.glob("lib*/python3*/os.py"))


def _interpreter_homes(executable: Path) -> list[Path]:
    """Installation directories of each link between `executable` and the real file (uv and pyenv chain several)."""
    homes: list[Path] = []
    for _ in range(20):
        folder = executable.parent
        if folder.name == "bin":
            # ~/.local/bin and ~/bin hold links to interpreters too, beside directories that are nobody's business
            home = folder.parent if _is_installation(folder.parent) else folder
            homes += [home, home.resolve()]
        if not executable.is_symlink():
            break
        executable = Path(os.path.normpath(folder / executable.readlink()))
    return homes

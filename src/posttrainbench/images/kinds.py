"""What can be built: one entry per kind of image, each with a lock file beside this one."""

from __future__ import annotations

import hashlib
import re
from dataclasses import dataclass
from pathlib import Path

from posttrainbench.errors import ConfigurationError

HERE = Path(__file__).parent
_PIN = re.compile(r"^([A-Za-z0-9._-]+)==([^ \\\n]+)((?: \\\n +--hash=sha256:[0-9a-f]{64})*)", re.MULTILINE)
_HASH = re.compile(r"sha256:([0-9a-f]{64})")


@dataclass(frozen=True, kw_only=True)
class Pin:
    """One package of a lock: exact version and the SHA-256 of each file that may be installed for it."""

    version: str
    hashes: frozenset[str]


@dataclass(frozen=True, kw_only=True)
class Kind:
    """A kind of image.

    Attributes:
        name: also the name of its `.in` and `.lock` file.
        base: image it is built on if no other is named; its Python is the one that the lock was made for.
        python: that Python, major and minor version.
        index: package index that the build needs beside PyPI.
    """

    name: str
    base: str
    python: str
    index: str | None = None

    @property
    def lock_file(self) -> Path:
        """Exact versions and hashes of every Python package of the image."""
        return HERE / f"{self.name}.lock"

    def lock_sha256(self) -> str:
        """What identifies the lock: the image's label, and `run.json`, say it."""
        return hashlib.sha256(self.lock_file.read_bytes()).hexdigest()

    def pins(self) -> dict[str, Pin]:
        """The packages of the lock by name."""
        text = self.lock_file.read_text(encoding="utf-8")
        return {
            name.lower(): Pin(version=version, hashes=frozenset(_HASH.findall(hashes)))
            for name, version, hashes in _PIN.findall(text)
        }


# "devel": flashinfer, and whatever agents compile, need nvcc; torch 2.13 is built for CUDA 13.0.
_CUDA_BASE = "docker.io/nvidia/cuda:13.0.2-devel-ubuntu24.04"
# The base that the development machine can make for itself (mmdebstrap), so that this kind is really built in tests.
_CPU_BASE = "docker.io/library/debian:12-slim"

KINDS = {
    kind.name: kind
    for kind in (
        Kind(name="cpu", base=_CPU_BASE, python="3.11", index="https://download.pytorch.org/whl/cpu"),
        Kind(name="cuda", base=_CUDA_BASE, python="3.12"),
    )
}


def get_kind(name: str) -> Kind:
    """The kind with this name.

    Raises:
        ConfigurationError: there is none.
    """
    if name not in KINDS:
        raise ConfigurationError(f"unknown kind of image {name!r}: choose {' or '.join(KINDS)}")
    return KINDS[name]

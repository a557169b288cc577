"""The directory that a build reads: the recipe, the lock, and what only the build may see (wheels, certificates, pip's
configuration). Engines bind it during the build, so none of it but the lock ends up in the image.
"""

from __future__ import annotations

import hashlib
import os
import shutil
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from posttrainbench.errors import ConfigurationError
from posttrainbench.files import sha256_file
from posttrainbench.images.kinds import HERE, Kind

SCRIPTS = ("Containerfile", "system.sh", "python.sh", "check.py")
_INSIDE = "/ptb-build"
_ARCHIVES = ("oci-archive", "docker-archive")


def recipe_sha256(kind: Kind) -> str:
    """What identifies how an image is made: scripts and lock together."""
    digest = hashlib.sha256()
    for path in (*(HERE / name for name in SCRIPTS), kind.lock_file):
        digest.update(path.read_bytes())
    return digest.hexdigest()


def write_context(
    folder: Path, kind: Kind, *, wheels: Path | None = None, pip_config: Path | None = None, ca: Path | None = None
) -> None:
    """Fill an empty directory with all that a build of `kind` needs, except the base image.

    Args:
        folder: existing directory.
        kind: what to build.
        wheels: directory of wheels to take before any index; only files whose hash the lock has are used.
        pip_config: pip configuration for the build (another index, credentials). It does not end up in the image.
        ca: certificates to trust during the build, for networks that intercept TLS. They do not end up in the image.

    Raises:
        ConfigurationError: a file is not there.
    """
    for name in SCRIPTS:
        shutil.copyfile(HERE / name, folder / name)
    shutil.copyfile(kind.lock_file, folder / "requirements.lock")
    settings = [f"LOCK_PYTHON={kind.python}", "APT_CA="]
    brought = [] if wheels is None else _locked(wheels, kind)
    # apptainer copies the directory by name, so it exists without wheels too
    (folder / "wheels").mkdir()
    for wheel in brought:
        _link(wheel, folder / "wheels" / wheel.name)
    if brought:
        settings.append(f"export PIP_FIND_LINKS={_INSIDE}/wheels")
    if kind.index and not any(wheel.name.startswith("torch-") for wheel in brought):
        settings.append(f"export PIP_EXTRA_INDEX_URL={kind.index}")
    if pip_config is not None:
        _copy(pip_config, folder / "pip.conf")
        settings.append(f"export PIP_CONFIG_FILE={_INSIDE}/pip.conf")
    if ca is not None:
        _copy(ca, folder / "ca.pem")
        settings.append(f"export PIP_CERT={_INSIDE}/ca.pem APT_CA={_INSIDE}/ca.pem")
    (folder / "settings.sh").write_text("".join(f"{line}\n" for line in settings), encoding="utf-8")


@dataclass(frozen=True)
class LocalBase:
    """A base of Apptainer's that lies on this machine: a .sif, a directory, or an archive as `podman save` makes it."""

    bootstrap: str
    path: Path

    @property
    def name(self) -> str:
        """For the record: the file's name, with its hash if it is here."""
        return f"{self.path.name}@sha256:{sha256_file(self.path)}" if self.path.is_file() else self.path.name


def local_base(base: str) -> LocalBase | None:
    """The file or directory that a base of Apptainer's stands for; None for an image of a registry."""
    kind, _, rest = base.partition(":")
    if kind in _ARCHIVES:
        return LocalBase(kind, Path(rest).absolute())
    if base.endswith(".sif") or base.startswith((".", "/")):
        return LocalBase("localimage", Path(base).absolute())
    return None


def write_definition(folder: Path, *, base: str, labels: Mapping[str, str]) -> Path:
    """Write the Apptainer definition that builds the same image from the directory of `write_context`.

    Args:
        folder: that directory.
        base: image of a registry, or as `local_base` knows them.
        labels: labels of the image.

    Raises:
        ConfigurationError: a label cannot be written in this format.
    """
    for label in (base, *labels, *labels.values()):
        if "\n" in label or "{" in label:
            raise ConfigurationError(f"{label!r} cannot be written into an Apptainer definition")
    local = local_base(base)
    names = sorted(path.name for path in folder.iterdir() if path.name not in ("Containerfile", "image.def"))
    text = (HERE / "apptainer.def").read_text(encoding="utf-8")
    filled = text.format(
        bootstrap="docker" if local is None else local.bootstrap,
        base=base if local is None else str(local.path),
        files="\n".join(f"    {name} {_INSIDE}/{name}" for name in names),
        labels="\n".join(f"    {key} {value}" for key, value in labels.items()),
    )
    path = folder / "image.def"
    path.write_text(filled, encoding="utf-8")
    return path


def _locked(wheels: Path, kind: Kind) -> list[Path]:
    if not wheels.is_dir():
        raise ConfigurationError(f"there is no directory of wheels {wheels}")
    pins = kind.pins()
    found = []
    for path in sorted(wheels.glob("*.whl")):
        parts = path.name.split("-")
        pin = pins.get(parts[0].lower().replace("_", "-"))
        # the version first: hashing a directory full of other wheels takes minutes
        if pin is not None and pin.version == parts[1] and sha256_file(path) in pin.hashes:
            found.append(path)
    if not found:
        raise ConfigurationError(f"no wheel in {wheels} is one that {kind.lock_file.name} names by hash")
    return found


def _link(source: Path, target: Path) -> None:
    try:
        os.link(source, target)
    except OSError:  # another file system
        shutil.copyfile(source, target)


def _copy(source: Path, target: Path) -> None:
    try:
        shutil.copyfile(source, target)
    except OSError as error:
        raise ConfigurationError(f"{source} cannot be read: {error.strerror}") from None

"""What an image is, as the engine and its labels tell: for `run.json`, so that two runs can be compared."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from posttrainbench.errors import ConfigurationError
from posttrainbench.files import sha256_file
from posttrainbench.images.engines import Engine, get_engine, tell

LABEL = "org.posttrainbench."
PYTHON_INSIDE = "/opt/posttrainbench/bin/python"
"""The Python that has the packages of the lock."""
PACKAGE_INSIDE = "/opt/posttrainbench/src/posttrainbench"
"""Where a back end binds the harness's own package, read-only; the image's Python looks there."""


@dataclass(frozen=True, kw_only=True)
class Identity:
    """An image that exists.

    Attributes:
        digest: `sha256:...`. Of podman and docker the image's ID: the hash of its configuration, which names all layers
            and, unlike the digest of a manifest, does not change when it is pushed. Of a `.sif` the hash of the file.
        registry_digests: `name@sha256:...` by which it can be pulled, where the engine knows one.
        kind: `cpu` or `cuda`; None for an image that `ptb image build` did not make.
        lock: SHA-256 of the lock it was built from, or None.
        recipe: SHA-256 of scripts and lock, or None.
        version: of posttrainbench that built it, or None.
        base: `name@sha256:...` of the image below, or None.
        size_bytes: of all layers unpacked; of a `.sif` the file's size.
    """

    digest: str
    registry_digests: tuple[str, ...]
    kind: str | None
    lock: str | None
    recipe: str | None
    version: str | None
    base: str | None
    size_bytes: int

    def as_json(self) -> dict[str, Any]:
        """All of it as plain data."""
        return {**asdict(self), "registry_digests": list(self.registry_digests)}


def identity(engine: str, image: str) -> Identity:
    """Ask `engine` (podman, docker or apptainer) what `image` is. Starts nothing and pulls nothing.

    Raises:
        ConfigurationError: no such engine here, or no such image.
        InfrastructureError: the engine does not answer.
    """
    program = get_engine(engine)
    program.require()
    if program.name == "apptainer":
        return _of_file(program, image)
    said = tell(program.argv("image", "inspect", image))
    if said is None:
        raise ConfigurationError(
            f"{engine} has no image {image!r}; build it with `ptb image build --engine {engine} --tag {image}` or pull it"
        )
    found: dict[str, Any] = said[0]
    labels = (found.get("Config") or {}).get("Labels") or found.get("Labels") or {}
    plain = found["Id"]
    return _identity(
        digest=plain if plain.startswith("sha256:") else f"sha256:{plain}",
        registry=tuple(found.get("RepoDigests") or ()),
        labels=labels,
        size=int(found.get("Size") or 0),
    )


def _of_file(program: Engine, image: str) -> Identity:
    path = Path(image)
    if not path.is_file():
        raise ConfigurationError(f"there is no image file {image}")
    said = tell(program.argv("inspect", "--json", image))
    if said is None:
        raise ConfigurationError(f"{image} is no image that apptainer on this machine can read")
    labels: dict[str, str] = said.get("data", {}).get("attributes", {}).get("labels") or {}
    return _identity(digest=f"sha256:{sha256_file(path)}", registry=(), labels=labels, size=path.stat().st_size)


def _identity(*, digest: str, registry: tuple[str, ...], labels: dict[str, str], size: int) -> Identity:
    return Identity(
        digest=digest,
        registry_digests=registry,
        kind=labels.get(f"{LABEL}kind"),
        lock=labels.get(f"{LABEL}lock"),
        recipe=labels.get(f"{LABEL}recipe"),
        version=labels.get(f"{LABEL}version"),
        base=labels.get(f"{LABEL}base"),
        size_bytes=size,
    )

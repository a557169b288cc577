"""A build from order to record: resolve the base, write the context, call the engine, ask what came of it, remember it."""

from __future__ import annotations

import os
import re
import shlex
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from posttrainbench import __version__
from posttrainbench.errors import ConfigurationError, InfrastructureError
from posttrainbench.files import read_json, write_json
from posttrainbench.images.context import local_base, recipe_sha256, write_context, write_definition
from posttrainbench.images.engines import Engine, build_argv, get_engine, tell
from posttrainbench.images.identity import LABEL, PYTHON_INSIDE, Identity, identity
from posttrainbench.images.kinds import Kind, get_kind

_REFERENCE = re.compile(r"[A-Za-z0-9][A-Za-z0-9._:/@+-]*")


@dataclass(frozen=True, kw_only=True)
class Order:
    """What to build, and with what.

    Attributes:
        kind: see `kinds.KINDS`.
        engine: see `engines.ENGINES`.
        base: image below; the kind's own if None.
        tag: name of the result, for apptainer its file; a name made of kind and version if None.
        wheels, pip_config, ca: see `context.write_context`.
        network: see `engines.build_argv`.
        extra: options of the engine's own for its build command.
    """

    kind: str
    engine: str
    base: str | None = None
    tag: str | None = None
    wheels: Path | None = None
    pip_config: Path | None = None
    ca: Path | None = None
    network: str = "host"
    extra: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        """Check what can be checked without the engine.

        Raises:
            ConfigurationError: a name is unknown or cannot be a name.
        """
        get_kind(self.kind)
        get_engine(self.engine)
        for what, name in (("base", self.base), ("tag", self.tag)):
            if name is None or (self.engine == "apptainer" and (what == "tag" or local_base(name))):
                continue
            if not _REFERENCE.fullmatch(name):
                raise ConfigurationError(f"--{what} {name!r} is not the name of an image")
        if self.tag is not None and "@" in self.tag:
            raise ConfigurationError(f"--tag {self.tag!r} must not name a digest: that is what the build finds out")
        if self.engine == "apptainer" and self.network != "host":
            raise ConfigurationError("apptainer builds in this machine's network: --network is not for it")

    @property
    def target(self) -> str:
        """Name of the result."""
        if self.tag is not None:
            return self.tag
        if self.engine == "apptainer":
            return f"posttrainbench-{self.kind}-{__version__}.sif"
        return f"localhost/posttrainbench-{self.kind}:{__version__}"


@dataclass(frozen=True, kw_only=True)
class Built:
    """A finished build: the record of it, where it is, and the image itself."""

    record: dict[str, Any]
    path: Path
    image: Identity


def state_dir() -> Path:
    """Where the user's records of builds are."""
    share = os.environ.get("XDG_DATA_HOME") or os.path.expanduser("~/.local/share")  # noqa: PTH111 - never raises
    return Path(share).absolute() / "posttrainbench" / "images"


def records() -> list[tuple[Path, dict[str, Any]]]:
    """Every record of a build on this machine, the newest first; a file that is no record is passed over."""
    found = []
    for path in state_dir().glob("*.json"):
        try:
            record = read_json(path)
        except (OSError, ValueError):
            continue
        if isinstance(record, dict) and {"image", "engine", "digest", "date", "kind"} <= record.keys():
            found.append((path, record))
    return sorted(found, key=lambda pair: str(pair[1]["date"]), reverse=True)


def labels(kind: Kind, *, base: str) -> dict[str, str]:
    """The labels of an image, by which back ends and `ptb image show` know it."""
    name, _, digest = base.partition("@sha256:")
    standard = {"org.opencontainers.image.base.name": name}
    if digest:
        standard["org.opencontainers.image.base.digest"] = f"sha256:{digest}"
    return {
        f"{LABEL}kind": kind.name,
        f"{LABEL}version": __version__,
        f"{LABEL}python": PYTHON_INSIDE,
        f"{LABEL}lock": kind.lock_sha256(),
        f"{LABEL}recipe": recipe_sha256(kind),
        f"{LABEL}base": base,
        **standard,
    }


def prepare(order: Order, folder: Path, *, base: str | None = None) -> list[str]:
    """Write what the build reads into the empty directory `folder`, and return the command line that builds it.

    Args:
        order: what to build.
        folder: existing, empty directory.
        base: the base image with its digest; as it was ordered if None.

    Raises:
        ConfigurationError: a file that was named is not there.
    """
    kind = get_kind(order.kind)
    base = base or order.base or kind.base
    write_context(folder, kind, wheels=order.wheels, pip_config=order.pip_config, ca=order.ca)
    engine = get_engine(order.engine)
    local = local_base(base) if engine.name == "apptainer" else None
    named = labels(kind, base=base if local is None else local.name)
    if engine.name == "apptainer":
        write_definition(folder, base=base, labels=named)
    return build_argv(
        engine,
        folder,
        base=base,
        recipe=recipe_sha256(kind),
        tag=order.target,
        labels=named,
        network=order.network,
        extra=order.extra,
    )


def pinned_base(engine: Engine, base: str) -> str:
    """The base with the digest that its name stands for now, pulled if it is not here.

    Raises:
        ConfigurationError: the engine cannot get it.
    """
    if engine.name == "apptainer":
        if (local := local_base(base)) and not local.path.exists():
            raise ConfigurationError(f"there is no base image {local.path}")
        return base  # it pulls by itself and tells no digest; name one
    if "@sha256:" in base:
        return base
    said = tell(engine.argv("image", "inspect", base))
    if said is None:
        print(f"pulling {base}", file=sys.stderr)
        done = subprocess.run(engine.argv("pull", base), stdin=subprocess.DEVNULL, stdout=sys.stderr, check=False)
        said = tell(engine.argv("image", "inspect", base)) if done.returncode == 0 else None
    if said is None:
        raise ConfigurationError(f"{engine.name} cannot get the base image {base}; name another with --base")
    digests = said[0].get("RepoDigests") or []
    # a tag says nothing of what was built on; an image that was never in a registry may have no digest in docker
    return str(digests[0]) if digests else base


def build(order: Order) -> Built:
    """Build an image and record it. The engine's output goes to stderr.

    Raises:
        ConfigurationError: the engine, the base or a file is missing.
        InfrastructureError: the engine failed; its own words are on stderr.
    """
    engine = get_engine(order.engine)
    engine.require()
    base = pinned_base(engine, order.base or get_kind(order.kind).base)
    started = time.monotonic()
    with tempfile.TemporaryDirectory(prefix="ptb-image-") as temporary:
        folder = Path(temporary)
        argv = prepare(order, folder, base=base)
        print(shlex.join(argv), file=sys.stderr, flush=True)
        done = subprocess.run(argv, cwd=folder, stdin=subprocess.DEVNULL, stdout=sys.stderr, check=False)
    if done.returncode != 0:
        raise InfrastructureError(
            f"{engine.name} could not build the image (status {done.returncode}); its last lines above say why"
        )
    image = identity(engine.name, order.target)
    record = {
        "image": str(Path(order.target).absolute()) if engine.name == "apptainer" else order.target,
        "engine": engine.name,
        "kind": order.kind,
        "digest": image.digest,
        "registry_digests": list(image.registry_digests),
        "lock": image.lock,
        "recipe": image.recipe,
        "base": image.base or base,
        "version": __version__,
        "size_bytes": image.size_bytes,
        "build_s": round(time.monotonic() - started, 1),
        "date": datetime.now(UTC).isoformat(timespec="seconds"),
    }
    path = state_dir() / f"{engine.name}-{re.sub(r'[^A-Za-z0-9.]+', '-', str(record['image'])).strip('-')}.json"
    path.parent.mkdir(parents=True, exist_ok=True)
    write_json(path, record)
    return Built(record=record, path=path, image=image)

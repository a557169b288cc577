"""The programs that build images, and their command lines."""

from __future__ import annotations

import json
import shutil
import subprocess
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from posttrainbench.errors import ConfigurationError, InfrastructureError

_ANSWER_S = 60


@dataclass(frozen=True, kw_only=True)
class Engine:
    """A container engine.

    Attributes:
        name: of the engine and of its program.
        ask: arguments of a question that only a working engine answers.
        install: what to do where it is missing.
        prefix: what the command line of a build starts with.
    """

    name: str
    ask: tuple[str, ...]
    install: str
    prefix: tuple[str, ...] = ()

    def argv(self, *arguments: str) -> list[str]:
        """Its command line."""
        return [self.name, *arguments]

    def require(self) -> None:
        """See that the engine is here and works.

        Raises:
            ConfigurationError: its program is not on PATH.
            InfrastructureError: it does not answer.
        """
        if shutil.which(self.name) is None:
            raise ConfigurationError(f"{self.name} is not on PATH; {self.install}")
        try:
            done = _run(self.argv(*self.ask))
        except (OSError, subprocess.TimeoutExpired) as error:
            raise InfrastructureError(f"{self.name} does not answer: {error}") from None
        if done.returncode != 0:
            told = " ".join((done.stderr or done.stdout).split())[:300] or f"status {done.returncode}"
            raise InfrastructureError(f"{self.name} does not answer: {told}")


ENGINES = {
    engine.name: engine
    for engine in (
        Engine(name="podman", ask=("version",), install="install it (for example `apt-get install podman`)"),
        # the client alone answers `docker --version`; the server's version needs the daemon
        Engine(
            name="docker",
            ask=("version", "--format", "{{.Server.Version}}"),
            install="install Docker Engine or choose --engine podman",
            # its older builder, the default before version 23 and without buildx, knows no --mount
            prefix=("env", "DOCKER_BUILDKIT=1"),
        ),
        Engine(
            name="apptainer",
            ask=("--version",),
            install="install it, or write the definition with --write DIR and build it where it is",
        ),
    )
}


def get_engine(name: str) -> Engine:
    """The engine with this name.

    Raises:
        ConfigurationError: there is none.
    """
    if name not in ENGINES:
        raise ConfigurationError(f"unknown engine {name!r}: choose {', '.join(ENGINES)}")
    return ENGINES[name]


def _run(argv: Sequence[str]) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        argv,
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        errors="replace",
        timeout=_ANSWER_S,
        check=False,
    )


def tell(argv: Sequence[str]) -> Any:
    """What a question of this command line is answered in JSON; None if the engine says no.

    Raises:
        InfrastructureError: no answer in a minute, or none in JSON.
    """
    try:
        done = _run(argv)
    except (OSError, subprocess.TimeoutExpired) as error:
        raise InfrastructureError(f"{argv[0]} does not answer: {error}") from None
    if done.returncode != 0:
        return None
    try:
        return json.loads(done.stdout)
    except ValueError:
        raise InfrastructureError(f"`{' '.join(argv[:3])}` does not answer in JSON") from None


def build_argv(
    engine: Engine,
    folder: Path,
    *,
    base: str,
    recipe: str,
    tag: str,
    labels: Mapping[str, str],
    network: str = "host",
    extra: Sequence[str] = (),
) -> list[str]:
    """The command line that builds the context `folder`; apptainer's reads `image.def` there and starts inside it.

    Args:
        engine: which.
        folder: directory of `context.write_context`.
        base: image below, with its digest where that is known.
        recipe: of `context.recipe_sha256`; another one means that no cached layer is used.
        tag: name of the result; for apptainer its file.
        labels: labels of the image.
        network: of the build's commands. `host` reaches proxies on this machine, and works without a network plug-in.
        extra: options of the engine's own.
    """
    if engine.name == "apptainer":
        return engine.argv("build", *extra, str(Path(tag).absolute()), "image.def")
    named = [part for key, value in labels.items() for part in ("--label", f"{key}={value}")]
    # podman's default format (OCI) keeps all that we use
    command = engine.argv(
        "build",
        "--file",
        str(folder / "Containerfile"),
        "--build-arg",
        f"BASE={base}",
        "--build-arg",
        f"RECIPE={recipe}",
        "--network",
        network,
        "--tag",
        tag,
        *named,
        *extra,
        str(folder),
    )
    return [*engine.prefix, *command]

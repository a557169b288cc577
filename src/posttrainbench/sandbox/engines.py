"""The container back ends by name."""

from __future__ import annotations

from posttrainbench.sandbox.apptainer import Apptainer
from posttrainbench.sandbox.containers import ContainerBackend
from posttrainbench.sandbox.docker import Docker
from posttrainbench.sandbox.podman import Podman

ENGINES: dict[str, type[ContainerBackend]] = {each.name: each for each in (Podman, Docker, Apptainer)}

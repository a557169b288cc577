"""The container back ends by name."""

from __future__ import annotations

from posttrainbench.sandbox.containers import ContainerBackend
from posttrainbench.sandbox.podman import Podman

ENGINES: dict[str, type[ContainerBackend]] = {each.name: each for each in (Podman,)}

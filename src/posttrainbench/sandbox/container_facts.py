"""What a container's command line is made from: the engine, the image, and what is ordered of them."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from posttrainbench.sandbox.container_files import Layout, User
from posttrainbench.sandbox.spec import Limits


@dataclass(frozen=True, kw_only=True)
class Engine:
    """What an engine on this machine is and can do.

    Attributes:
        path: its program.
        version: as it says it.
        options: global options that this machine needs.
        memory: word for `Capabilities.memory_limit`.
        processes: word for `Capabilities.process_limit`.
        slow_storage: what makes every start copy the image, if anything does.
        gpus: whether it is set up to pass GPUs through.
        remapped: whether its containers' users are others on the host unless told not to be.
    """

    path: str
    version: str
    options: tuple[str, ...] = ()
    memory: str = "watchdog"
    processes: str = "rlimit"
    slow_storage: str = ""
    gpus: bool = False
    remapped: bool = False


@dataclass(frozen=True, kw_only=True)
class Image:
    """What an image says of itself."""

    id: str
    labels: Mapping[str, str] = field(default_factory=dict)
    volumes: tuple[str, ...] = ()


@dataclass(frozen=True, kw_only=True)
class Container:
    """All that a command line of an engine is made from.

    Attributes:
        name: of the container.
        engine: the engine.
        image: the image.
        user: whose it is.
        layout: what is mounted.
        sources: mount target -> path that the engine binds.
        limits: of the spec.
        gpus: indices of nvidia-smi.
        command: what it starts.
        joins: cgroup.procs files that the engine's process must write itself into.
    """

    name: str
    engine: Engine
    image: Image
    user: User
    layout: Layout
    sources: Mapping[str, str]
    limits: Limits
    gpus: Sequence[int]
    command: Sequence[str]
    joins: Sequence[str] = ()

    @property
    def memory_file_systems(self) -> int:
        """Bytes that each file system in memory may hold: all of them count as memory, too."""
        half = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") // 2
        return half if self.limits.memory_bytes is None else min(half, self.limits.memory_bytes)

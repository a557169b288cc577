"""What docker, podman and apptainer have in common: a container per command, from an image, held as docs/containers.md says.

    harness -> engine -> container_inside.py (pid 1, gate) -> the command

A back end of its own says how its engine is asked (`_argv`), what it can limit (`_facts`), and how an image is looked at.
"""

from __future__ import annotations

import contextlib
import functools
import json
import os
import secrets
import shutil
import signal
import subprocess
import sys
import time
from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

from posttrainbench.errors import ConfigurationError, InfrastructureError
from posttrainbench.sandbox import processes, staging
from posttrainbench.sandbox.container_facts import Container, Engine, Image
from posttrainbench.sandbox.container_files import DOOR, Layout, User, arrange
from posttrainbench.sandbox.container_start import Door, Order, Unwanted, start
from posttrainbench.sandbox.environment import python_runtime
from posttrainbench.sandbox.gpu import gpu_indices, gpu_nodes
from posttrainbench.sandbox.limits import Group
from posttrainbench.sandbox.spec import PACKAGE, Capabilities, Check, Limits, Result, Runtime, Spec
from posttrainbench.sandbox.supervision import Supervision
from posttrainbench.sandbox.watchdog import disk_usage
from posttrainbench.scratch import Scratch

# How an image says that it brings the harness's packages; see docs/containers.md.
PYTHON_LABEL = "org.posttrainbench.python"
# By which `ptb clean` finds the containers of harnesses that were killed with their engine.
RUN_LABEL = "org.posttrainbench.run"
PACKAGE_INSIDE = "/opt/posttrainbench/src/posttrainbench"
# While an image is built or pulled, podman's other commands wait for its storage: over a minute was seen.
_ANSWER_S = 300.0
_TERMINATED = 128 + signal.SIGTERM


def limit_options(container: Container) -> list[str]:
    """Memory and processes, as docker and podman both are told."""
    limits, engine = container.limits, container.engine
    options = ["--shm-size", str(container.memory_file_systems)]
    if engine.memory != "watchdog" and limits.memory_bytes is not None:
        options += ["--memory", str(limits.memory_bytes), "--memory-swap", str(limits.memory_bytes)]
    if engine.processes != "rlimit":
        options += ["--pids-limit", str(-1 if limits.processes is None else limits.processes)]
    return options


class ContainerBackend(ABC):
    """Implements `Backend` with a container engine."""

    name: str
    program: str
    install: str  # what to do where the program is missing
    kept: tuple[str, ...] = ()  # variables of ours that the engine needs to find its own
    faster = ""  # what to do about slow storage
    in_memory = True  # whether it can give writable places in memory
    covered: tuple[str, ...] = ()  # what it shows of the host and should not

    def __init__(self, image: str | None = None) -> None:
        """Nothing is looked at before it is needed.

        Raises:
            ConfigurationError: no image.
        """
        if not image:
            raise ConfigurationError(f"the sandbox {self.name} needs an image: --image NAME (see `ptb image build`)")
        if image.startswith("-"):
            raise ConfigurationError(f"{image!r} is no name of an image")
        self._name = image

    @abstractmethod
    def _facts(self, path: str) -> Engine:
        """Ask the engine. Raises InfrastructureError."""

    @abstractmethod
    def _look(self, image: str) -> Image:
        """Ask for the image. Raises ConfigurationError if there is none."""

    @abstractmethod
    def argv(self, container: Container) -> list[str]:
        """The engine's command line."""

    @abstractmethod
    def forget(self, name: str) -> None:
        """Make the engine remove a container, in whatever state; raises nothing."""

    def missing(self, image: str) -> ConfigurationError:
        """What to do about an image that the engine does not have."""
        if image.startswith("sha256:"):  # as a run recorded it; no registry is asked by that
            return ConfigurationError(
                f"{self.program} no longer has the image {image[:19]} of this run: load it again (`{self.program} load`)"
            )
        return ConfigurationError(
            f"{self.program} has no image {image} for this user: build it with `ptb image build`, "
            f"or {self.program} pull {image}"
        )

    def tell(self, *arguments: str) -> None:
        """Give the engine an order whose failure changes nothing; raises nothing."""
        with contextlib.suppress(OSError, subprocess.SubprocessError):
            subprocess.run(
                [self.engine.path, *self.engine.options, *arguments],
                env=self.environment(),
                stdin=subprocess.DEVNULL,
                capture_output=True,
                timeout=_ANSWER_S,
                check=False,
            )

    @functools.cached_property
    def engine(self) -> Engine:
        """The engine of this machine.

        Raises:
            InfrastructureError: it is not installed, or does not answer.
        """
        path = shutil.which(self.program)
        if path is None:
            raise InfrastructureError(f"{self.program} is not installed: {self.install}")
        return self._facts(path)

    @functools.cached_property
    def image(self) -> Image:
        """The image.

        Raises:
            InfrastructureError: the engine does not answer.
            ConfigurationError: there is no such image on this machine.
        """
        return self._look(self._name)

    @property
    def user(self) -> User:
        """Whose the containers are."""
        uid = staging.SANDBOX_UID if os.geteuid() == 0 else os.geteuid()
        return User(uid, uid)

    def runtime(self) -> Runtime:
        """The image's own Python if it has a label that says so, with our package; else this machine's, bound in."""
        own = self.image.labels.get(PYTHON_LABEL)
        if own:
            return Runtime(executable=own, ro={PACKAGE_INSIDE: PACKAGE}, package=PACKAGE_INSIDE)
        return Runtime(executable=sys.executable, ro=python_runtime(image=True))

    def capabilities(self) -> Capabilities:
        """What can be enforced on this machine."""
        return Capabilities(
            network_isolation=True,
            gpus=self.engine.gpus and bool(gpu_indices()),
            memory_limit=self.engine.memory,
            process_limit=self.engine.processes,
            disk_limit="watchdog",
            caches="copy",
        )

    def preflight(self) -> list[Check]:
        """Engine, image, and one container from it."""
        checks = []
        try:
            checks.append(Check(name=self.name, ok=True, detail=f"{self.engine.path} {self.engine.version}"))
            own = self.runtime().executable if PYTHON_LABEL in self.image.labels else "this machine's, bound in"
            checks.append(Check(name="image", ok=True, detail=f"{self._name} {self.image.id[:19]}, Python: {own}"))
            if self.engine.slow_storage:
                slow, fix = f"storage driver {self.engine.slow_storage}: every start copies the image", self.faster
                checks.append(Check(name="storage", ok=False, required=False, detail=slow, fix=fix))
            result = self.run(Spec(argv=["true"], limits=Limits(wall_s=60, grace_s=0)))
            detail = f"a container starts and ends in {result.wall_s * 1000:.0f} ms"
            checks.append(Check(name="containers", ok=result.returncode == 0, detail=detail))
        except (InfrastructureError, ConfigurationError) as error:
            detail, _, fix = str(error).rpartition(": ")
            name = (self.name, "image", "containers")[min(len(checks), 2)]
            checks.append(Check(name=name, ok=False, detail=detail or fix, fix=fix if detail else ""))
        return checks

    def run(
        self,
        spec: Spec,
        *,
        on_output: Callable[[bytes], None] | None = None,
        cancelled: Callable[[], bool] | None = None,
    ) -> Result:
        """See `Backend.run`.

        Raises:
            ConfigurationError: the spec names paths or GPUs that cannot be, or there is no such image.
            InfrastructureError: the sandbox could not be set up; the command did not run.
        """
        began = time.monotonic()
        staging.check_spec(spec)
        gpu_nodes(spec.gpus)
        if spec.gpus and not self.engine.gpus:
            raise ConfigurationError(
                f"{self.program} is not set up to pass GPUs through: install nvidia-container-toolkit"
            )
        if os.geteuid() == 0:
            staging.check_user(self.user.host)
        # Undone from the last to the first: whatever happens, KeyboardInterrupt included, the processes go first.
        with contextlib.ExitStack() as undo:
            try:
                scratch = Scratch("sandbox")
                undo.callback(scratch.close)
                door = Door(scratch.path / "door", sorted(spec.listeners), self.user.host)
                undo.callback(door.close)
                runtime = self.runtime()
                layout = arrange(
                    replace(spec, hide=(*spec.hide, *self.covered)),
                    runtime=runtime.ro,
                    door=scratch.path / "door",
                    scratch=scratch,
                    user=self.user,
                    memory=self.in_memory,
                )
                joins, group = self.own_groups(spec.limits, undo)
                command = [runtime.executable, "-I", "-S", f"{DOOR}/container_inside.py"]
                order = self._order(spec, layout, scratch, command, joins)
                sandbox = start(spec, order, door, cancelled)
            except Unwanted:
                wall = time.monotonic() - began
                return Result(returncode=_TERMINATED, reason="cancelled", wall_s=wall, teardown_s=0.0, survivors=0)
            except OSError as error:
                raise InfrastructureError(f"the sandbox could not be set up: {error}; see ptb doctor") from error
            undo.callback(sandbox.close)
            free = disk_usage(layout.copies) if layout.copies else 0  # of a cache only changes count
            watch = Supervision(
                spec,
                sandbox,
                group or sandbox.counters,
                self.engine.memory,
                layout.in_memory,
                layout.watched,
                free,
                on_output,
                cancelled,
            )
            result = watch.run(began)
        return replace(result, wall_s=time.monotonic() - began)

    def own_groups(self, limits: Limits, undo: contextlib.ExitStack) -> tuple[list[str], Group | None]:
        """Control groups made by us, for an engine that makes none: files to join, and the groups."""
        return [], None

    def _order(
        self, spec: Spec, layout: Layout, scratch: Scratch, command: Sequence[str], joins: Sequence[str]
    ) -> Order:
        container = Container(
            name=f"ptb-{os.getpid()}-{secrets.token_hex(4)}",
            engine=self.engine,
            image=self.image,
            user=self.user,
            layout=layout,
            sources=_links(layout, scratch),
            limits=spec.limits,
            gpus=spec.gpus,
            command=command,
            joins=joins,
        )
        count = None
        if spec.limits.processes is not None and self.engine.processes == "rlimit":
            count = spec.limits.processes + processes.tasks_of(self.user.host)
        return Order(
            argv=self.argv(container),
            env=self.environment(),
            remove=lambda: self.forget(container.name),
            processes=count,
            user=self.user,
        )

    def environment(self) -> dict[str, str]:
        """What the engine's program gets: enough to find its own configuration, nothing of the harness's."""
        kept = {name: os.environ[name] for name in self.kept if name in os.environ}
        return {"PATH": os.environ.get("PATH", "/usr/sbin:/usr/bin:/sbin:/bin"), "LANG": "C.UTF-8", **kept}

    def ask(self, *arguments: str) -> str:
        """Output of one of the engine's commands that change nothing.

        Raises:
            InfrastructureError: it failed; with its last line.
        """
        path = shutil.which(self.program)
        if path is None:
            raise InfrastructureError(f"{self.program} is not installed: {self.install}")
        try:
            done = subprocess.run(
                [path, *arguments],
                env=self.environment(),
                stdin=subprocess.DEVNULL,
                capture_output=True,
                text=True,
                timeout=_ANSWER_S,
                check=False,
            )
        except subprocess.TimeoutExpired:
            raise InfrastructureError(
                f"{path} has not answered for {_ANSWER_S:.0f} s: wait until its other work, such as an image, is done"
            ) from None
        except OSError as error:
            raise InfrastructureError(f"{path} does not run ({error}): {self.install}") from error
        if done.returncode != 0:
            last = (done.stderr.strip().splitlines() or [f"status {done.returncode}"])[-1]
            raise InfrastructureError(f"{' '.join([self.program, *arguments[:2]])} failed ({last}): {self.install}")
        return done.stdout

    def ask_json(self, *arguments: str) -> Any:
        """The same for commands that answer in JSON."""
        answer = self.ask(*arguments)
        try:
            return json.loads(answer)
        except ValueError as error:
            raise InfrastructureError(
                f"{self.program} {arguments[0]} does not answer in JSON: {self.install}"
            ) from error


def _links(layout: Layout, scratch: Scratch) -> dict[str, str]:
    """A link to each source, by target.

    Engines take binds as one text with colons and commas in it, which paths may contain; and others on this machine, who
    can read command lines, learn nothing from a link in a directory of ours.
    """
    folder = scratch.path / "binds"
    folder.mkdir()
    links = {}
    for index, mount in enumerate(layout.mounts):
        if mount.source is not None:
            link = folder / str(index)
            link.symlink_to(mount.source)
            links[mount.target] = str(link)
    return links

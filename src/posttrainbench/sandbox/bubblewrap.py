"""The bubblewrap back end: no container engine, no daemon, no root needed; about 0.1 s to start and stop.

    harness -> launcher.py (stages files and drops root) -> bwrap -> /bin/sh (gate) -> the command

The contract is in docs/security.md; the reasons are in the comments where they matter.
"""

from __future__ import annotations

import contextlib
import functools
import os
import sys
import time
from collections.abc import Callable
from pathlib import Path

from posttrainbench.errors import InfrastructureError
from posttrainbench.sandbox import command, processes, staging
from posttrainbench.sandbox.environment import python_runtime
from posttrainbench.sandbox.gpu import gpu_indices
from posttrainbench.sandbox.limits import Group, Means, find_means
from posttrainbench.sandbox.places import clear_places
from posttrainbench.sandbox.spec import Capabilities, Check, Limits, Result, Runtime, Spec
from posttrainbench.sandbox.start import OverlayFailed, Plan, start
from posttrainbench.sandbox.supervision import Supervision
from posttrainbench.sandbox.watchdog import disk_usage
from posttrainbench.scratch import Scratch


class Bubblewrap:
    """Implements `Backend` with bwrap. Works for root and for ordinary users."""

    name = "bubblewrap"

    def __init__(self, *, means: Means | None = None, overlay: bool | None = None) -> None:
        """Nothing is looked at before it is needed.

        Args:
            means: how to limit memory and processes; default the best this machine has. Tests force others.
            overlay: whether to try overlays for caches; default where they can work.
        """
        self._forced_means = means
        self._forced_overlay = overlay
        self._uid = staging.SANDBOX_UID if os.geteuid() == 0 else None

    @functools.cached_property
    def means(self) -> Means:
        """How memory and processes are limited here."""
        return find_means() if self._forced_means is None else self._forced_means

    @functools.cached_property
    def _overlay(self) -> bool:
        if self._forced_overlay is not None:
            return self._forced_overlay
        if self._uid is None:
            try:
                return command.find_bwrap().overlays
            except InfrastructureError:
                return False  # `preflight` and `run` report it
        return "overlay" in Path("/proc/filesystems").read_text().split()

    def runtime(self) -> Runtime:
        """The harness's own Python, at the same place inside."""
        return Runtime(executable=sys.executable, ro=python_runtime())

    def capabilities(self) -> Capabilities:
        """What can be enforced on this machine."""
        return Capabilities(
            network_isolation=True,
            gpus=bool(gpu_indices()),
            memory_limit=self.means.memory,
            process_limit=self.means.processes,
            disk_limit="watchdog",
            caches="overlay" if self._overlay else "copy",
        )

    def preflight(self) -> list[Check]:
        """Is bwrap there, and may it make namespaces? Starts one sandbox."""
        from posttrainbench.sandbox.machine import preflight

        return preflight(self)

    def run(
        self,
        spec: Spec,
        *,
        on_output: Callable[[bytes], None] | None = None,
        cancelled: Callable[[], bool] | None = None,
    ) -> Result:
        """See `Backend.run`.

        Raises:
            ConfigurationError: the spec names paths or GPUs that cannot be.
            InfrastructureError: the sandbox could not be set up; the command did not run.
        """
        try:
            return self._run(spec, on_output, cancelled)
        except OverlayFailed:
            self._overlay = False
            return self._run(spec, on_output, cancelled)

    def _run(
        self, spec: Spec, on_output: Callable[[bytes], None] | None, cancelled: Callable[[], bool] | None
    ) -> Result:
        began = time.monotonic()
        staging.check_spec(spec)
        staging.check_user(self._uid)
        # Undone from the last to the first: whatever happens, KeyboardInterrupt included, the processes go first.
        with contextlib.ExitStack() as undo:
            try:
                plan, group, watched, free = self._prepare(spec, undo)
                sandbox = start(spec, plan)
            except OSError as error:
                raise InfrastructureError(f"the sandbox could not be set up: {error}; see ptb doctor") from error
            undo.callback(sandbox.close)
            in_memory = [path for path in command.TMPFS if path not in {**spec.ro, **spec.rw, **spec.caches}]
            watch = Supervision(spec, sandbox, group, self.means.memory, in_memory, watched, free, on_output, cancelled)
            return watch.run(began)

    def _prepare(self, spec: Spec, undo: contextlib.ExitStack) -> tuple[Plan, Group, list[Path], int]:
        """Check sources, hand over what is writable, make caches and control groups; see `Supervision` for the rest."""
        ro = {path: staging.check_source(path, host) for path, host in spec.ro.items()}
        rw = {path: staging.check_source(path, host, writable=True) for path, host in spec.rw.items()}
        caches = {path: staging.check_source(path, host) for path, host in spec.caches.items()}
        watched, free = list(rw.values()), 0
        layers: dict[str, dict[str, str]] = {}
        if caches:
            scratch = Scratch()
            undo.callback(scratch.close)
            watched.append(scratch.path)
            if self._overlay and (self._uid is not None or all(map(staging.can_overlay, caches.values()))):
                layers = staging.overlay_layers(scratch, caches)
            else:
                rw |= staging.copy_caches(scratch, caches)
            free = disk_usage([scratch.path])  # with a copy as with an overlay, only changes count
        places = {path: host.is_dir() for path, host in {**ro, **caches, **rw}.items()}
        clear_places(rw, places | {path: True for path in spec.hide if path not in places})
        if self._uid is not None:
            for host in rw.values():
                staging.give_to_sandbox(host, self._uid)
        group = Group(self.means, spec.limits)
        undo.callback(group.close)
        plan = Plan(
            binds={path: str(host) for path, host in (ro | rw).items()},
            layers=layers,
            cgroups=group.joins,
            processes=self._rlimit(spec.limits),
            uid=self._uid,
        )
        return plan, group, watched, free

    def _rlimit(self, limits: Limits) -> int | None:
        """RLIMIT_NPROC where no control group counts processes. It counts all those of the user, so those come on top."""
        if limits.processes is None or self.means.processes != "rlimit":
            return None
        return limits.processes + processes.tasks_of(os.geteuid() if self._uid is None else self._uid)

"""The apptainer back end, for clusters: an ordinary user, an image file, no daemon.

It is a program like any other, so its processes are children of ours and join control groups that we make. Weaker than the
others in one point: `--nv` brings all GPUs of the node in, of which CUDA_VISIBLE_DEVICES names those to use.
"""

from __future__ import annotations

import contextlib
import functools
import hashlib
import os
from pathlib import Path

from posttrainbench.errors import ConfigurationError, InfrastructureError
from posttrainbench.sandbox.container_facts import Container, Engine, Image
from posttrainbench.sandbox.containers import ContainerBackend
from posttrainbench.sandbox.limits import Group, Means, find_means
from posttrainbench.sandbox.spec import Limits

# Writes itself into each group, then becomes apptainer.
_JOIN = 'n=$1; shift; while [ "$n" -gt 0 ]; do echo 0 >"$1" || exit 125; shift; n=$((n-1)); done; exec "$@"'


class Apptainer(ContainerBackend):
    """Implements `Backend` with apptainer, for ordinary users."""

    name = "apptainer"
    program = "apptainer"
    install = "ask the cluster's administrators, or see https://apptainer.org/docs/admin/latest/installation.html"
    kept = ("HOME", "TMPDIR", "APPTAINER_CONFIGDIR", "APPTAINER_CACHEDIR", "APPTAINER_TMPDIR", "XDG_RUNTIME_DIR")
    in_memory = False  # its places in memory have one size for all, 64 MB as installed
    covered = ("/sys/fs/cgroup",)  # the host's, and those that limit the agent may be the caller's own

    def _facts(self, path: str) -> Engine:
        if os.geteuid() == 0:
            raise InfrastructureError(
                "apptainer would make root's containers root's on the host: run as an ordinary user"
            )
        version = self.ask("--version").split()[-1]
        return Engine(path=path, version=version, memory=self.means.memory, processes=self.means.processes, gpus=True)

    @functools.cached_property
    def means(self) -> Means:
        """How memory and processes are limited here."""
        return find_means()

    def own_groups(self, limits: Limits, undo: contextlib.ExitStack) -> tuple[list[str], Group | None]:
        """As bubblewrap's."""
        group = Group(self.means, limits)
        undo.callback(group.close)
        return group.joins, group

    def _look(self, image: str) -> Image:
        _ = self.engine
        path = Path(image)
        if not path.exists():
            raise ConfigurationError(
                f"there is no image {image}: build it with `ptb image build`, or apptainer pull {image} ..."
            )
        if path.is_dir():
            raise ConfigurationError(
                f"{image} is a directory: make a file of it, which a run can name by hash: apptainer build X.sif {image}"
            )
        try:
            said = self.ask_json("inspect", "--json", "--labels", str(path.absolute()))
            labels = said["data"]["attributes"]["labels"]
        except InfrastructureError as error:
            raise ConfigurationError(
                f"{image} is no image for this machine: {str(error).removesuffix(f': {self.install}')}"
            ) from None
        except (KeyError, TypeError):
            labels = {}
        # a name for messages; what the record keeps is the hash of the file
        identity = hashlib.sha256(f"{path.resolve()} {path.stat().st_mtime_ns}".encode()).hexdigest()
        return Image(id=identity, labels=labels or {})

    def argv(self, container: Container) -> list[str]:
        """`apptainer exec`, behind a shell that joins the control groups."""
        argv = [container.engine.path, "--quiet", "exec", "--containall", "--no-home", "--no-eval", "--no-init"]
        argv += ["--no-mount", "hostfs,bind-paths,cwd,tmp", "--uts", "--hostname", "sandbox"]
        argv += ["--net", "--network", "none", "--no-privs"]
        argv += ["--nv"] if container.gpus else ["--no-nv"]
        argv += ["--pwd", "/"]
        for mount in container.layout.mounts:
            # places in memory are directories in our scratch already; what is left is to be hidden
            source = container.sources[mount.target]
            argv += ["--bind", f"{source}:{mount.target}:{'rw' if mount.writable else 'ro'}"]
        argv += [str(Path(self._name).absolute()), *container.command]
        if not container.joins:
            return argv
        return ["/bin/sh", "-c", _JOIN, "sh", str(len(container.joins)), *container.joins, *argv]

    def forget(self, name: str) -> None:
        """Nothing to do: apptainer keeps no record, and its processes end with their first one."""

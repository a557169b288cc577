"""The podman back end, for root and, better, for ordinary users (rootless): no daemon, images per user."""

from __future__ import annotations

import functools
import os
import re
import shutil
from pathlib import Path

from posttrainbench.errors import InfrastructureError
from posttrainbench.sandbox.container_facts import Container, Engine, Image
from posttrainbench.sandbox.container_files import User
from posttrainbench.sandbox.containers import RUN_LABEL, ContainerBackend, limit_options
from posttrainbench.sandbox.environment import INSIDE_UID

# From this version on the caller's uid can have another number inside.
_NUMBERED = (4, 3)


class Podman(ContainerBackend):
    """Implements `Backend` with podman."""

    name = "podman"
    program = "podman"
    install = "apt-get install podman (as root), for ordinary users also uidmap"
    faster = 'podman system reset, then `driver = "overlay"` below [storage] in ~/.config/containers/storage.conf'
    kept = (
        "HOME",
        "XDG_RUNTIME_DIR",
        "XDG_DATA_HOME",
        "XDG_CONFIG_HOME",
        "DBUS_SESSION_BUS_ADDRESS",
        "CONTAINERS_CONF",
        "CONTAINERS_STORAGE_CONF",
        "TMPDIR",
    )

    def _facts(self, path: str) -> Engine:
        info = self.ask_json("info", "--format", "json")
        try:
            host = info["host"]
            version = str(info["version"]["Version"])
            v2 = host["cgroupVersion"] == "v2"
            rootless, runtime = host["security"]["rootless"], host["ociRuntime"]["name"]
            # v1 has no safe delegation to ordinary users; podman then makes no groups at all
            controllers = set(host.get("cgroupControllers") or ()) if v2 or not rootless else set()
            manager, driver = host["cgroupManager"], info["store"]["graphDriverName"]
        except (KeyError, TypeError) as error:
            raise InfrastructureError(f"podman info does not say {error}: {self.install}") from error
        options: list[str] = []
        if manager == "systemd" and not Path("/run/systemd/system").is_dir():
            options += ["--cgroup-manager", "cgroupfs"]
        if runtime == "crun" and not v2 and shutil.which("runc"):
            options += ["--runtime", "runc"]  # crun refuses machines with both kinds of control groups
        word = "cgroup-v2" if v2 else "cgroup-v1"
        return Engine(
            path=path,
            version=version,
            options=tuple(options),
            memory=word if "memory" in controllers else "watchdog",
            processes=word if "pids" in controllers else "rlimit",
            slow_storage=driver if driver == "vfs" else "",
            gpus=described_gpus(),
        )

    @functools.cached_property
    def _numbered(self) -> bool:
        return tuple(map(int, re.findall(r"\d+", self.engine.version)[:2])) >= _NUMBERED

    @property
    def user(self) -> User:
        """As an ordinary user, the caller: `agent` inside where this podman can rename it."""
        plain = super().user
        return User(plain.host, INSIDE_UID) if os.geteuid() != 0 and self._numbered else plain

    def _look(self, image: str) -> Image:
        try:
            (said,) = self.ask_json("image", "inspect", image)
        except InfrastructureError as error:
            if "not installed" in str(error):
                raise
            raise self.missing(image) from None
        config = said.get("Config") or {}
        return Image(id=said["Id"], labels=config.get("Labels") or {}, volumes=tuple(config.get("Volumes") or ()))

    def argv(self, container: Container) -> list[str]:
        """`podman run`."""
        user = container.user
        argv = [container.engine.path, *container.engine.options, "run", "--rm", "--name", container.name]
        argv += ["--label", f"{RUN_LABEL}={container.name}"]
        argv += ["--pull", "never", "--log-driver", "none", "--network", "none", "--no-hosts", "--http-proxy=false"]
        argv += ["--hostname", "sandbox", "--ipc", "private", "--uts", "private", "--cgroupns", "private"]
        argv += ["--user", f"{user.inside}:{user.inside}", "--passwd=false"]
        if os.geteuid() != 0:
            named = f"keep-id:uid={user.inside},gid={user.inside}" if user.inside != user.host else "keep-id"
            argv += ["--userns", named]
        argv += ["--cap-drop", "all", "--security-opt", "no-new-privileges"]
        argv += ["--security-opt", "label=disable"]  # else SELinux keeps it from the sockets and from GPUs
        argv += ["--oom-score-adj", "500", "--read-only", "--read-only-tmpfs=false", "--image-volume", "ignore"]
        argv += ["--systemd=false", "--no-healthcheck", "--sig-proxy=false", "--workdir", "/"]
        size = container.memory_file_systems
        argv += limit_options(container)
        for gpu in container.gpus:
            argv += ["--device", f"nvidia.com/gpu={gpu}"]
        for mount in container.layout.mounts:
            if mount.source is not None:
                mode = "rw" if mount.writable else "ro"
                argv += ["--volume", f"{container.sources[mount.target]}:{mount.target}:{mode}"]
            elif mount.writable:
                argv += ["--mount", f"type=tmpfs,destination={mount.target},tmpfs-size={size},chown=true,notmpcopyup"]
            else:
                argv += ["--mount", f"type=tmpfs,destination={mount.target},tmpfs-size=4096,ro=true,notmpcopyup"]
        return [*argv, "--entrypoint", container.command[0], container.image.id, *container.command[1:]]

    def forget(self, name: str) -> None:
        """`podman rm --force`."""
        self.tell("rm", "--force", "--ignore", "--time", "0", name)


def described_gpus() -> bool:
    """Whether this machine describes NVIDIA GPUs for container engines (CDI)."""
    for folder in ("/etc/cdi", "/var/run/cdi"):
        for file in Path(folder).glob("*"):
            try:
                if file.suffix in (".yaml", ".yml", ".json") and "nvidia.com/gpu" in file.read_text(errors="replace"):
                    return True
            except OSError:
                continue
    return False

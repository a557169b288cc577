"""The docker back end, for root and for members of group docker."""

from __future__ import annotations

from posttrainbench.errors import InfrastructureError
from posttrainbench.sandbox.container_facts import Container, Engine, Image
from posttrainbench.sandbox.containers import RUN_LABEL, ContainerBackend, limit_options


class Docker(ContainerBackend):
    """Implements `Backend` with docker. The daemon must run on this machine and be root's."""

    name = "docker"
    program = "docker"
    install = "install Docker Engine, start its daemon, and add yourself to group docker"
    kept = ("HOME", "DOCKER_HOST", "DOCKER_CONTEXT", "DOCKER_CONFIG", "DOCKER_CERT_PATH", "DOCKER_TLS_VERIFY")

    def _facts(self, path: str) -> Engine:
        info = self.ask_json("info", "--format", "{{json .}}")
        problems = info.get("ServerErrors") or []
        if problems:  # the command itself succeeds without a daemon
            raise InfrastructureError(f"docker's daemon does not answer ({problems[0]}): {self.install}")
        security = [str(option) for option in info.get("SecurityOptions") or ()]
        if any("rootless" in option for option in security):
            raise InfrastructureError(
                "rootless docker cannot give a container the caller's files without making it root inside: use podman"
            )
        word = "cgroup-v2" if str(info.get("CgroupVersion")) == "2" else "cgroup-v1"
        return Engine(
            path=path,
            version=str(info.get("ServerVersion", "")),
            memory=word if info.get("MemoryLimit") else "watchdog",
            processes=word if info.get("PidsLimit") else "rlimit",
            slow_storage=info["Driver"] if info.get("Driver") == "vfs" else "",
            gpus="nvidia" in (info.get("Runtimes") or {}) or "nvidia.com/gpu" in str(info.get("DiscoveredDevices")),
            remapped=any("userns" in option for option in security),
        )

    def _look(self, image: str) -> Image:
        _ = self.engine  # without a daemon every image is missing
        try:
            (said,) = self.ask_json("image", "inspect", image)
        except InfrastructureError:
            raise self.missing(image) from None
        config = said.get("Config") or {}
        return Image(id=said["Id"], labels=config.get("Labels") or {}, volumes=tuple(config.get("Volumes") or ()))

    def argv(self, container: Container) -> list[str]:
        """`docker run`."""
        user, size = container.user, container.memory_file_systems
        argv = [container.engine.path, *container.engine.options, "run", "--rm", "--name", container.name]
        argv += ["--label", f"{RUN_LABEL}={container.name}"]
        argv += ["--pull", "never", "--log-driver", "none", "--network", "none", "--hostname", "sandbox"]
        argv += ["--ipc", "private", "--cgroupns", "private", "--user", f"{user.inside}:{user.inside}"]
        if container.engine.remapped:
            argv += ["--userns", "host"]  # else the user inside is another one on the host, without access to its files
        argv += ["--cap-drop", "ALL", "--security-opt", "no-new-privileges", "--security-opt", "label=disable"]
        # the daemon's own first process would take the place of ours
        argv += [
            "--oom-score-adj",
            "500",
            "--read-only",
            "--init=false",
            "--no-healthcheck",
            "--sig-proxy=false",
            "--workdir",
            "/",
        ]
        argv += limit_options(container)
        if container.gpus:
            devices = ",".join(map(str, container.gpus))
            # quoted once more for the list that docker reads it as
            argv += ["--gpus", f'"device={devices}"', "--env", "NVIDIA_DRIVER_CAPABILITIES=compute,utility"]
        targets = {mount.target for mount in container.layout.mounts}
        for volume in sorted(set(container.image.volumes) - targets):
            argv += ["--tmpfs", f"{volume}:ro,size=4096"]  # else a new directory on disk, which nothing limits
        own = f"uid={user.inside},gid={user.inside},mode=0755"
        for mount in container.layout.mounts:
            if mount.source is not None:
                mode = "rw" if mount.writable else "ro"
                argv += ["--volume", f"{container.sources[mount.target]}:{mount.target}:{mode}"]
            elif mount.writable:
                argv += ["--tmpfs", f"{mount.target}:rw,exec,nosuid,nodev,size={size},{own}"]
            else:
                argv += ["--tmpfs", f"{mount.target}:ro,size=4096"]
        return [*argv, "--entrypoint", container.command[0], container.image.id, *container.command[1:]]

    def forget(self, name: str) -> None:
        """`docker rm --force`."""
        self.tell("rm", "--force", name)

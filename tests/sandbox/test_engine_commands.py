"""Command lines of the container engines, word by word; and what they say of themselves. Nothing is started here."""

from __future__ import annotations

import itertools
import json
import os
import re
import shutil
import subprocess
from pathlib import Path
from typing import Any

import pytest

from posttrainbench import images
from posttrainbench.errors import ConfigurationError, InfrastructureError
from posttrainbench.sandbox import Limits, containers
from posttrainbench.sandbox.apptainer import Apptainer
from posttrainbench.sandbox.container_facts import Container, Engine, Image
from posttrainbench.sandbox.container_files import Layout, Mount, User
from posttrainbench.sandbox.containers import ContainerBackend
from posttrainbench.sandbox.docker import Docker
from posttrainbench.sandbox.podman import Podman, described_gpus

LAYOUT = Layout(
    (
        Mount("/home", writable=True),
        Mount("/data", Path("/host/data")),
        Mount("/w", Path("/host/work"), writable=True),
        Mount("/w/secret"),
    )
)
SOURCES = {"/data": "/s/binds/0", "/w": "/s/binds/1", "/w/secret": "/s/binds/2", "/home": "/s/binds/3"}
LIMITS = Limits(memory_bytes=1 << 30, processes=99)


def container(**fields: Any) -> Container:
    given = {
        "name": "ptb-1-ab",
        "engine": Engine(path="/usr/bin/x", version="1", memory="cgroup-v2", processes="cgroup-v2", gpus=True),
        "image": Image(id="sha256:1234"),
        "user": User(1001, 1000),
        "layout": LAYOUT,
        "sources": SOURCES,
        "limits": LIMITS,
        "gpus": (),
        "command": ("/opt/p", "-I", "/run/ptb-door/container_inside.py"),
    }
    return Container(**{**given, **fields})


@pytest.fixture
def ordinary(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "geteuid", lambda: 1001)


PODMAN = """
/usr/bin/x run --rm --name ptb-1-ab --label org.posttrainbench.run=ptb-1-ab
--pull never --log-driver none --network none --no-hosts --http-proxy=false
--hostname sandbox --ipc private --uts private --cgroupns private --user 1000:1000 --passwd=false
--userns keep-id:uid=1000,gid=1000 --cap-drop all --security-opt no-new-privileges --security-opt label=disable
--oom-score-adj 500 --read-only --read-only-tmpfs=false --image-volume ignore --systemd=false --no-healthcheck
--sig-proxy=false --workdir / --shm-size 1073741824 --memory 1073741824 --memory-swap 1073741824 --pids-limit 99
--mount type=tmpfs,destination=/home,tmpfs-size=1073741824,chown=true,notmpcopyup
--volume /s/binds/0:/data:ro --volume /s/binds/1:/w:rw
--mount type=tmpfs,destination=/w/secret,tmpfs-size=4096,ro=true,notmpcopyup
--entrypoint /opt/p sha256:1234 -I /run/ptb-door/container_inside.py
"""

DOCKER = """
/usr/bin/x run --rm --name ptb-1-ab --label org.posttrainbench.run=ptb-1-ab --pull never --log-driver none --network none --hostname sandbox
--ipc private --cgroupns private --user 1000:1000 --cap-drop ALL --security-opt no-new-privileges
--security-opt label=disable --oom-score-adj 500 --read-only --init=false --no-healthcheck --sig-proxy=false --workdir /
--shm-size 1073741824 --memory 1073741824 --memory-swap 1073741824 --pids-limit 99
--tmpfs /home:rw,exec,nosuid,nodev,size=1073741824,uid=1000,gid=1000,mode=0755
--volume /s/binds/0:/data:ro --volume /s/binds/1:/w:rw --tmpfs /w/secret:ro,size=4096
--entrypoint /opt/p sha256:1234 -I /run/ptb-door/container_inside.py
"""

APPTAINER = """
/usr/bin/x --quiet exec --containall --no-home --no-eval --no-init --no-mount hostfs,bind-paths,cwd,tmp --uts --hostname sandbox
--net --network none --no-privs --no-nv --pwd / --bind /s/binds/3:/home:rw --bind /s/binds/0:/data:ro --bind /s/binds/1:/w:rw
--bind /s/binds/2:/w/secret:ro /images/ptb.sif /opt/p -I /run/ptb-door/container_inside.py
"""


@pytest.mark.usefixtures("ordinary")
@pytest.mark.parametrize(
    ("backend", "line"),
    [(Podman("i"), PODMAN), (Docker("i"), DOCKER), (Apptainer("/images/ptb.sif"), APPTAINER)],
    ids=lambda each: each.name if isinstance(each, ContainerBackend) else "",
)
def test_command_line(backend: ContainerBackend, line: str) -> None:
    assert backend.argv(container()) == line.split()


@pytest.mark.parametrize(("user", "words"), [(User(20001, 20001), ["--user", "20001:20001"])])
def test_root_takes_no_user_namespace(monkeypatch, user, words):
    monkeypatch.setattr(os, "geteuid", lambda: 0)
    found = Podman("i").argv(container(user=user))
    at = found.index("--user")
    assert found[at : at + 2] == words and "--userns" not in found


@pytest.mark.parametrize("backend", [Podman("i"), Docker("i"), Apptainer("i")], ids=lambda each: each.name)
def test_options_exist_where_the_program_is_here(backend: ContainerBackend) -> None:
    """docker lists its options without a daemon."""
    if shutil.which(backend.program) is None:
        pytest.skip(f"{backend.program} is not installed")
    found = backend.argv(container(gpus=(0,)))
    command = "exec" if backend.name == "apptainer" else "run"
    known = subprocess.run([backend.program, command, "--help"], capture_output=True, text=True, check=True).stdout
    options = {word.split("=")[0] for word in found[found.index(command) :] if word.startswith("--")}
    assert {option for option in options if not re.search(rf"{option}\b", known)} == set()


def pairs(found: list[str]) -> set[tuple[str, str]]:
    return set(itertools.pairwise(found))


def test_gpus_go_by_device():
    gpus = container(gpus=(0, 3))
    assert {("--device", "nvidia.com/gpu=0"), ("--device", "nvidia.com/gpu=3")} <= pairs(Podman("i").argv(gpus))
    docker = Docker("i").argv(gpus)
    assert {("--gpus", '"device=0,3"'), ("--env", "NVIDIA_DRIVER_CAPABILITIES=compute,utility")} <= pairs(docker)
    apptainer = Apptainer("i").argv(gpus)
    assert "--nv" in apptainer and "--no-nv" not in apptainer
    for backend in (Podman("i"), Docker("i"), Apptainer("i")):
        assert not any("nvidia" in word or word in ("--gpus", "--nv") for word in backend.argv(container()))


def test_without_control_groups_no_engine_limit_is_asked_for():
    plain = container(engine=Engine(path="/x", version="1"))
    for backend in (Podman("i"), Docker("i")):
        assert not {"--memory", "--pids-limit"} & set(backend.argv(plain))


def test_no_limit_is_said_and_not_left_to_a_default():
    free = container(limits=Limits(processes=None))
    for backend in (Podman("i"), Docker("i")):
        assert ("--pids-limit", "-1") in pairs(backend.argv(free))
        assert "--memory" not in backend.argv(free)


def test_volumes_of_an_image_make_no_directory_on_disk():
    image = Image(id="1", volumes=("/var/lib/db", "/data"))
    assert ("--tmpfs", "/var/lib/db:ro,size=4096") in pairs(Docker("i").argv(container(image=image)))
    assert ("--image-volume", "ignore") in pairs(Podman("i").argv(container(image=image)))


def test_apptainer_joins_our_control_groups_before_it_starts(tmp_path):
    groups = [tmp_path / "memory", tmp_path / "pids"]
    engine = Engine(path="/bin/echo", version="1")
    argv = Apptainer("/i").argv(container(engine=engine, joins=[str(group) for group in groups]))
    said = subprocess.run(argv, capture_output=True, text=True, check=True).stdout
    assert [group.read_text() for group in groups] == ["0\n", "0\n"]
    assert said.startswith("--quiet exec --containall")


def test_apptainer_is_not_for_root(monkeypatch):
    monkeypatch.setattr(os, "geteuid", lambda: 0)
    with pytest.raises(InfrastructureError, match="ordinary user"):
        Apptainer("/i")._facts("/usr/bin/apptainer")


def test_files_that_are_no_images_for_apptainer(tmp_path, monkeypatch):
    monkeypatch.setenv("PATH", f"{tmp_path}:/usr/bin:/bin")
    monkeypatch.setattr(os, "geteuid", lambda: 1001)
    program(tmp_path, "apptainer", {"--version": "apptainer version 1.4.5"})
    (tmp_path / "x.sif").touch()
    for image, words in (
        (
            tmp_path / "x.sif",
            r"x\.sif is no image for this machine: apptainer inspect --json failed \(Error: no such thing\)$",
        ),
        (tmp_path, "is a directory: make a file of it, .*: apptainer build X.sif"),
        (tmp_path / "gone.sif", "there is no image .*gone.sif"),
    ):
        with pytest.raises(ConfigurationError, match=words):
            Apptainer(str(image)).runtime()


def program(folder: Path, name: str, answers: dict[str, Any]) -> None:
    """A program that answers by its first argument; what is not listed fails."""
    cases = "".join(f"  {key}) cat <<'END'\n{json.dumps(value)}\nEND\n  ;;\n" for key, value in answers.items())
    file = folder / name
    file.write_text(f'#!/bin/sh\ncase "$1" in\n{cases}  *) echo "Error: no such thing" >&2; exit 125;;\nesac\n')
    file.chmod(0o755)


def podman_info(**fields: Any) -> dict[str, Any]:
    host = {
        "cgroupVersion": "v2",
        "cgroupManager": "cgroupfs",
        "cgroupControllers": ["cpu", "memory", "pids"],
        "security": {"rootless": True},
        "ociRuntime": {"name": "crun"},
    }
    return {"host": {**host, **fields}, "version": {"Version": "5.4.0"}, "store": {"graphDriverName": "overlay"}}


@pytest.mark.parametrize(
    ("fields", "memory", "options"),
    [
        ({}, "cgroup-v2", ()),
        ({"cgroupControllers": ["cpu"]}, "watchdog", ()),
        ({"cgroupVersion": "v1"}, "watchdog", ("--runtime", "runc")),
        ({"cgroupVersion": "v1", "security": {"rootless": False}}, "cgroup-v1", ("--runtime", "runc")),
        ({"cgroupVersion": "v1", "ociRuntime": {"name": "runc"}}, "watchdog", ()),
    ],
)
def test_podman_adapts_to_the_machine(tmp_path, monkeypatch, fields, memory, options):
    program(tmp_path, "podman", {"info": podman_info(**fields)})
    program(tmp_path, "runc", {})
    monkeypatch.setenv("PATH", f"{tmp_path}:/usr/bin:/bin")
    engine = Podman("i").engine
    assert (engine.memory, engine.options) == (memory, options)
    assert engine.version == "5.4.0" and not engine.slow_storage


def docker_info(**fields: Any) -> dict[str, Any]:
    return {"ServerVersion": "27.0", "CgroupVersion": "2", "MemoryLimit": True, "PidsLimit": True, **fields}


def test_docker_says_what_it_can(tmp_path, monkeypatch):
    monkeypatch.setenv("PATH", f"{tmp_path}:/usr/bin:/bin")
    program(tmp_path, "docker", {"info": docker_info(Runtimes={"nvidia": {}}, SecurityOptions=["name=userns"])})
    engine = Docker("i").engine
    assert (engine.memory, engine.processes, engine.gpus, engine.remapped) == ("cgroup-v2", "cgroup-v2", True, True)
    assert ("--userns", "host") in pairs(Docker("i").argv(container(engine=engine)))
    for wrong, words in (
        ({"ServerErrors": ["Cannot connect to the Docker daemon"]}, "Cannot connect"),
        ({"SecurityOptions": ["name=rootless"]}, "use podman"),
    ):
        program(tmp_path, "docker", {"info": docker_info(**wrong)})
        with pytest.raises(InfrastructureError, match=words):
            _ = Docker("i").engine


def test_an_image_that_is_not_there(tmp_path, monkeypatch):
    monkeypatch.setenv("PATH", f"{tmp_path}:/usr/bin:/bin")
    program(tmp_path, "podman", {"info": podman_info()})
    program(tmp_path, "docker", {"info": docker_info()})
    for backend in (Podman("gone"), Docker("gone")):
        with pytest.raises(ConfigurationError, match=r"no image gone.*ptb image build"):
            backend.runtime()
    with pytest.raises(ConfigurationError, match=r"docker no longer has the image sha256:12ab.*`docker load`"):
        Docker("sha256:12ab").runtime()


def test_a_labelled_image_brings_its_python(tmp_path, monkeypatch):
    monkeypatch.setenv("PATH", f"{tmp_path}:/usr/bin:/bin")
    labels = {images.LABEL + "python": images.PYTHON_INSIDE}
    program(tmp_path, "podman", {"info": podman_info(), "image": [{"Id": "1", "Config": {"Labels": labels}}]})
    runtime = Podman("i").runtime()
    assert runtime.executable == images.PYTHON_INSIDE
    assert list(runtime.ro) == [images.PACKAGE_INSIDE] and runtime.package == images.PACKAGE_INSIDE
    assert runtime.path.startswith(str(Path(images.PYTHON_INSIDE).parent))
    assert images.LABEL + "python" == containers.PYTHON_LABEL


def test_gpu_descriptions(tmp_path, monkeypatch):
    found = {Path("/etc/cdi"): [tmp_path / "nvidia.yaml"]}
    monkeypatch.setattr(Path, "glob", lambda self, _: iter(found.get(self, [])))
    assert not described_gpus()
    (tmp_path / "nvidia.yaml").write_text("cdiVersion: 0.6.0\nkind: nvidia.com/gpu\n")
    assert described_gpus()

"""What an engine is given: its command line, the directory that it reads, the Apptainer definition."""

from __future__ import annotations

import re
import subprocess
import zipfile
from pathlib import Path

import pytest

from posttrainbench import __version__
from posttrainbench.errors import ConfigurationError
from posttrainbench.files import sha256_file
from posttrainbench.images import KINDS, Order, prepare
from posttrainbench.images.kinds import HERE, Kind
from tests.conftest import Ptb

DIGEST = "docker.io/library/debian@sha256:" + "ab" * 32


def _prepared(folder: Path, **order: object) -> list[str]:
    folder.mkdir()
    return prepare(Order(**{"kind": "cpu", "base": DIGEST, **order}), folder)  # type: ignore[arg-type]


@pytest.mark.parametrize("engine", ["podman", "docker"])
def test_command_line_of_podman_and_docker(tmp_path: Path, engine: str) -> None:
    folder = tmp_path / "context"
    argv = _prepared(folder, engine=engine, tag="localhost/mine:1", extra=("--isolation", "chroot"))
    lock = KINDS["cpu"].lock_sha256()
    recipe = next(part.removeprefix("RECIPE=") for part in argv if part.startswith("RECIPE="))
    assert len(recipe) == 64
    labels = {
        "org.posttrainbench.kind": "cpu",
        "org.posttrainbench.version": __version__,
        "org.posttrainbench.python": "/opt/posttrainbench/bin/python",
        "org.posttrainbench.lock": lock,
        "org.posttrainbench.recipe": recipe,
        "org.posttrainbench.base": DIGEST,
        "org.opencontainers.image.base.name": "docker.io/library/debian",
        "org.opencontainers.image.base.digest": "sha256:" + "ab" * 32,
    }
    program = {"docker": "env DOCKER_BUILDKIT=1 docker"}.get(engine, engine)
    head = f"{program} build --file {folder}/Containerfile --build-arg BASE={DIGEST} --build-arg RECIPE={recipe}"
    middle = " ".join(f"--label {key}={value}" for key, value in labels.items())
    assert " ".join(argv) == f"{head} --network host --tag localhost/mine:1 {middle} --isolation chroot {folder}"


def test_context_has_the_recipe_and_the_lock_and_nothing_of_the_machine(tmp_path: Path) -> None:
    _prepared(tmp_path / "context", engine="podman")
    there = sorted(path.name for path in (tmp_path / "context").iterdir())
    assert there == [
        "Containerfile",
        "check.py",
        "python.sh",
        "requirements.lock",
        "settings.sh",
        "system.sh",
        "wheels",
    ]
    assert (tmp_path / "context" / "requirements.lock").read_bytes() == (HERE / "cpu.lock").read_bytes()
    settings = (tmp_path / "context" / "settings.sh").read_text()
    assert settings == "LOCK_PYTHON=3.11\nAPT_CA=\nexport PIP_EXTRA_INDEX_URL=https://download.pytorch.org/whl/cpu\n"


def test_cuda_needs_no_index_but_pypi(tmp_path: Path) -> None:
    argv = _prepared(tmp_path / "context", engine="podman", kind="cuda", base=None)
    assert (tmp_path / "context" / "settings.sh").read_text() == "LOCK_PYTHON=3.12\nAPT_CA=\n"
    assert "BASE=docker.io/nvidia/cuda:13.0.2-devel-ubuntu24.04" in argv


def test_apptainer_definition(tmp_path: Path) -> None:
    folder = tmp_path / "context"
    argv = _prepared(folder, engine="apptainer", tag=str(tmp_path / "x.sif"), extra=("--fakeroot",))
    assert argv == ["apptainer", "build", "--fakeroot", str(tmp_path / "x.sif"), "image.def"]
    text = (folder / "image.def").read_text()
    lock = KINDS["cpu"].lock_sha256()
    recipe = next(line.split()[1] for line in text.splitlines() if line.strip().startswith("org.posttrainbench.recipe"))
    assert (
        text
        == f"""\
Bootstrap: docker
From: {DIGEST}

%files
    check.py /ptb-build/check.py
    python.sh /ptb-build/python.sh
    requirements.lock /ptb-build/requirements.lock
    settings.sh /ptb-build/settings.sh
    system.sh /ptb-build/system.sh
    wheels /ptb-build/wheels

%post
    sh /ptb-build/system.sh
    sh /ptb-build/python.sh
    rm -rf /ptb-build

%environment
    export PATH=/opt/posttrainbench/bin:/usr/local/sbin:/usr/local/bin:/usr/local/cuda/bin:/usr/sbin:/usr/bin:/sbin:/bin
    export LANG=C.UTF-8

%labels
    org.posttrainbench.kind cpu
    org.posttrainbench.version {__version__}
    org.posttrainbench.python /opt/posttrainbench/bin/python
    org.posttrainbench.lock {lock}
    org.posttrainbench.recipe {recipe}
    org.posttrainbench.base {DIGEST}
    org.opencontainers.image.base.name docker.io/library/debian
    org.opencontainers.image.base.digest sha256:{"ab" * 32}

%test
    /opt/posttrainbench/bin/python -c "import torch, transformers, inspect_ai"
"""
    )


@pytest.mark.parametrize(
    ("base", "head"),
    [
        ("/images/base.sif", ["Bootstrap: localimage", "From: /images/base.sif"]),
        ("/images/directory", ["Bootstrap: localimage", "From: /images/directory"]),
        ("oci-archive:/a b/base.tar", ["Bootstrap: oci-archive", "From: /a b/base.tar"]),
        ("docker-archive:/images/base.tar", ["Bootstrap: docker-archive", "From: /images/base.tar"]),
        ("host:5000/debian:12", ["Bootstrap: docker", "From: host:5000/debian:12"]),
    ],
)
def test_apptainer_can_build_on_a_file(tmp_path: Path, base: str, head: list[str]) -> None:
    _prepared(tmp_path / "context", engine="apptainer", base=base)
    assert (tmp_path / "context" / "image.def").read_text().splitlines()[:2] == head


def test_a_base_that_is_a_file_is_known_by_name_and_hash(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    Path("base.tar").write_bytes(b"abc")
    _prepared(tmp_path / "context", engine="apptainer", base="oci-archive:base.tar")
    text = (tmp_path / "context" / "image.def").read_text()
    assert f"From: {tmp_path}/base.tar\n" in text
    # the FIPS 180 example
    digest = "sha256:ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad"
    assert f" org.posttrainbench.base base.tar@{digest}\n" in text
    assert f" org.opencontainers.image.base.digest {digest}\n" in text


def test_both_engines_set_the_same_environment() -> None:
    path = "/opt/posttrainbench/bin:/usr/local/sbin:"
    assert path in (HERE / "Containerfile").read_text() and path in (HERE / "apptainer.def").read_text()


@pytest.mark.parametrize("script", ["system.sh", "python.sh"])
def test_scripts_are_plain_sh(script: str) -> None:
    done = subprocess.run(["sh", "-n", str(HERE / script)], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize("script", ["system.sh", "python.sh"])
def test_scripts_leave_alone_what_is_the_hosts_in_builds_of_apptainer(script: str) -> None:
    """Its builds see the host's /tmp and /var/tmp, writable."""
    lines = [line for line in (HERE / script).read_text().splitlines() if not line.startswith("#")]
    assert not [line for line in lines if re.search(r"(^|[ \"=])(/var)?/tmp", line)]
    assert all("$others" in line for line in lines if line.startswith("find /"))


def _wheel(folder: Path, name: str) -> Path:
    folder.mkdir(exist_ok=True)
    with zipfile.ZipFile(folder / name, "w") as archive:
        archive.writestr("content", name)
    return folder / name


def test_only_wheels_that_the_lock_names_are_taken(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    ours = _wheel(tmp_path / "wheels", "torch-9.9-cp311-cp311-linux_x86_64.whl")
    _wheel(tmp_path / "wheels", "torch-9.8-cp311-cp311-linux_x86_64.whl")
    _wheel(tmp_path / "wheels", "other_thing-1.0-py3-none-any.whl")
    locks = tmp_path / "locks"
    locks.mkdir()
    lines = [f"torch==9.9 \\\n    --hash=sha256:{sha256_file(ours)}"]
    lines.append(f"other-thing==1.0 \\\n    --hash=sha256:{'0' * 64}")  # a file of this name, but not this one
    (locks / "cpu.lock").write_text("\n".join(lines) + "\n")
    monkeypatch.setattr("posttrainbench.images.kinds.HERE", locks)
    _prepared(tmp_path / "context", engine="podman", wheels=tmp_path / "wheels")
    assert [path.name for path in (tmp_path / "context" / "wheels").iterdir()] == [ours.name]
    # with its torch in hand the build asks no index for one
    assert (
        tmp_path / "context" / "settings.sh"
    ).read_text() == "LOCK_PYTHON=3.11\nAPT_CA=\nexport PIP_FIND_LINKS=/ptb-build/wheels\n"


def test_wheels_without_one_of_the_lock_are_a_mistake(tmp_path: Path) -> None:
    _wheel(tmp_path / "wheels", "torch-1.0-py3-none-any.whl")
    with pytest.raises(ConfigurationError, match=r"no wheel in .*wheels is one that cpu\.lock names by hash"):
        _prepared(tmp_path / "context", engine="podman", wheels=tmp_path / "wheels")


def test_credentials_go_into_the_context_not_into_the_command_line(tmp_path: Path) -> None:
    config, ca = tmp_path / "pip.conf", tmp_path / "ca.pem"
    config.write_text("[global]\nindex-url = https://user:sesame@example.org/simple\n")
    ca.write_text("certificates")
    argv = _prepared(tmp_path / "context", engine="podman", pip_config=config, ca=ca)
    assert "sesame" not in " ".join(argv)
    assert "sesame" in (tmp_path / "context" / "pip.conf").read_text()
    settings = (tmp_path / "context" / "settings.sh").read_text()
    assert "export PIP_CONFIG_FILE=/ptb-build/pip.conf\n" in settings
    assert "export PIP_CERT=/ptb-build/ca.pem APT_CA=/ptb-build/ca.pem\n" in settings
    # the image gets the lock alone: every other file is only bound during the build
    assert "COPY" not in (HERE / "Containerfile").read_text() and "ADD" not in (HERE / "Containerfile").read_text()


def test_write_for_another_machine(ptb: Ptb, tmp_path: Path) -> None:
    done = ptb(
        "image", "build", "--kind", "cuda", "--engine", "apptainer", "--tag", "x.sif", "--write", tmp_path / "def"
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith(f"cd {tmp_path}/def && apptainer build ")
    assert (tmp_path / "def" / "image.def").read_text().startswith("Bootstrap: docker\nFrom: docker.io/nvidia/cuda:")
    again = ptb("image", "build", "--kind", "cuda", "--engine", "docker", "--write", tmp_path / "def")
    assert again.returncode == 2 and "is not empty" in again.stderr


@pytest.mark.parametrize(
    ("order", "message"),
    [
        ({"kind": "rocm"}, "unknown kind of image 'rocm'"),
        ({"engine": "lxc"}, "unknown engine 'lxc'"),
        ({"base": "a b"}, "--base 'a b' is not the name of an image"),
        ({"tag": "--privileged"}, "--tag '--privileged' is not the name"),
        ({"tag": "x@sha256:abc"}, "must not name a digest"),
        ({"engine": "apptainer", "network": "none"}, "--network is not for it"),
    ],
)
def test_wrong_orders(order: dict[str, str], message: str) -> None:
    with pytest.raises(ConfigurationError, match=message.replace("(", r"\(")):
        Order(**{"kind": "cpu", "engine": "podman", **order})


def test_package_is_not_in_the_image() -> None:
    kind: Kind = KINDS["cpu"]
    assert "posttrainbench" not in kind.pins()

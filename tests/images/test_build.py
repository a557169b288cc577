"""A build from order to record, with engines that are not here played by small programs; and every wrong turn."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from posttrainbench.errors import ConfigurationError, InfrastructureError
from posttrainbench.images import KINDS, Order, build, identity, records
from tests.conftest import Ptb
from tests.images.conftest import FakeEngine

BASE = "docker.io/library/debian:12-slim"
PINNED = "docker.io/library/debian@sha256:" + "ab" * 32
IMAGE = "localhost/mine:1"


def _answer(**fields: Any) -> dict[str, Any]:
    """What `image inspect` says; podman's ID is bare, docker's has `sha256:` before it."""
    labels = {"org.posttrainbench.kind": "cpu", "org.posttrainbench.lock": KINDS["cpu"].lock_sha256()}
    config = {"Labels": {**labels, "org.posttrainbench.base": PINNED}}
    return {"Id": "cd" * 32, "RepoDigests": [], "Size": 2_900_000_000, "Config": config, **fields}


IMAGES = {BASE: _answer(RepoDigests=[PINNED]), IMAGE: _answer(RepoDigests=[f"localhost/mine@sha256:{'ef' * 32}"])}


@pytest.mark.parametrize("engine", ["podman", "docker"])
def test_build_pins_the_base_and_records_the_digest(fake_engine: FakeEngine, home: Path, engine: str) -> None:
    log = fake_engine(engine, images=IMAGES)
    built = build(Order(kind="cpu", engine=engine, tag=IMAGE))
    (command,) = [line for line in log.read_text().splitlines() if line.startswith("build ")]
    assert f"--build-arg BASE={PINNED} " in command and f"--label org.posttrainbench.base={PINNED} " in command
    assert built.image.digest == "sha256:" + "cd" * 32
    ((path, record),) = records()
    assert path == built.path and path.is_relative_to(home)
    assert record == built.record
    assert record["digest"] == built.image.digest and record["lock"] == KINDS["cpu"].lock_sha256()
    assert record["base"] == PINNED and record["size_bytes"] == 2_900_000_000


def test_base_that_is_not_here_is_pulled(fake_engine: FakeEngine, home: Path) -> None:
    log = fake_engine("podman", images={IMAGE: _answer()})
    with pytest.raises(ConfigurationError, match="podman cannot get the base image nowhere/x:1; name another"):
        build(Order(kind="cpu", engine="podman", base="nowhere/x:1", tag=IMAGE))
    assert "pull nowhere/x:1" in log.read_text() and not records()


def test_base_with_a_digest_is_taken_as_it_is(fake_engine: FakeEngine, home: Path) -> None:
    log = fake_engine("podman", images={IMAGE: _answer()})
    build(Order(kind="cpu", engine="podman", base=PINNED, tag=IMAGE))
    assert "pull" not in log.read_text() and f"BASE={PINNED} " in log.read_text()


@pytest.mark.parametrize("base", ["nowhere.sif", "./nowhere", "oci-archive:nowhere.tar"])
def test_base_file_that_is_not_there(fake_engine: FakeEngine, tmp_path: Path, base: str) -> None:
    log = fake_engine("apptainer")
    with pytest.raises(ConfigurationError, match=r"there is no base image /.*/nowhere"):
        build(Order(kind="cpu", engine="apptainer", base=base, tag=str(tmp_path / "x.sif")))
    assert "build" not in log.read_text()


def test_failed_build_is_no_record(fake_engine: FakeEngine, home: Path) -> None:
    fake_engine("podman", images=IMAGES, fails="build", code=125)
    with pytest.raises(InfrastructureError, match=r"podman could not build the image \(status 125\)"):
        build(Order(kind="cpu", engine="podman", tag=IMAGE))
    assert not records()


def test_docker_without_a_daemon(fake_engine: FakeEngine, ptb: Ptb, home: Path) -> None:
    fake_engine("docker", fails="version")
    done = ptb("image", "build", "--kind", "cpu", "--engine", "docker")
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr == "ptb: docker does not answer: it is broken\n"


@pytest.mark.parametrize("engine", ["podman", "docker", "apptainer"])
def test_engine_that_is_not_installed(ptb: Ptb, tmp_path: Path, engine: str) -> None:
    done = ptb("image", "build", "--kind", "cpu", "--engine", engine, env={"PATH": str(tmp_path)})
    assert done.returncode == 2 and done.stderr.startswith(f"ptb: {engine} is not on PATH; ")
    assert done.stderr.count("\n") == 1


def test_identity_of_an_image_that_is_not_there(fake_engine: FakeEngine) -> None:
    fake_engine("podman")
    with pytest.raises(ConfigurationError, match="podman has no image 'x:1'; build it with `ptb image build"):
        identity("podman", "x:1")


def test_identity_of_a_foreign_image_has_no_lock(fake_engine: FakeEngine) -> None:
    fake_engine("docker", images={"other": _answer(Id="sha256:" + "12" * 32, Config={"Labels": None})})
    found = identity("docker", "other")
    assert found.digest == "sha256:" + "12" * 32 and found.lock is None and found.kind is None


def test_identity_of_a_file(fake_engine: FakeEngine, tmp_path: Path) -> None:
    labels = {"org.posttrainbench.kind": "cuda", "org.posttrainbench.lock": "1" * 64}
    fake_engine("apptainer", inspect=json.dumps({"data": {"attributes": {"labels": labels}}, "type": "container"}))
    file = tmp_path / "x.sif"
    file.write_bytes(b"abc")
    found = identity("apptainer", str(file))
    # the FIPS 180 example
    assert found.digest == "sha256:ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad"
    assert (found.kind, found.lock, found.size_bytes) == ("cuda", "1" * 64, 3)
    with pytest.raises(ConfigurationError, match="there is no image file"):
        identity("apptainer", str(tmp_path / "y.sif"))


def test_identity_of_a_file_that_is_no_image(fake_engine: FakeEngine, tmp_path: Path) -> None:
    fake_engine("apptainer", fails="inspect")
    (tmp_path / "x.sif").write_bytes(b"")
    with pytest.raises(ConfigurationError, match=r"x\.sif is no image that apptainer on this machine can read"):
        identity("apptainer", str(tmp_path / "x.sif"))


def test_answer_that_is_no_json(fake_engine: FakeEngine, tmp_path: Path) -> None:
    fake_engine("apptainer", inspect="INFO: hello")
    (tmp_path / "x.sif").write_bytes(b"")
    with pytest.raises(InfrastructureError, match="`apptainer inspect --json` does not answer in JSON"):
        identity("apptainer", str(tmp_path / "x.sif"))


def test_show(fake_engine: FakeEngine, ptb: Ptb, home: Path) -> None:
    assert "No image was built here yet" in ptb("image", "show").stdout
    fake_engine("podman", images=IMAGES)
    path = build(Order(kind="cpu", engine="podman", tag=IMAGE)).path
    (path.parent / "broken.json").write_text("{")
    shown = ptb("image", "show")
    assert shown.returncode == 0, shown.stderr
    assert f"{IMAGE}  podman  cpu  2.90 GB" in shown.stdout
    assert "there; its lock is the one of this version" in shown.stdout
    (entry,) = json.loads(ptb("image", "show", "--json").stdout)
    assert entry["image"] == IMAGE and entry["record"] == str(path)
    fake_engine("podman", images={IMAGE: _answer(Id="99" * 32)})
    assert "the name stands for another image now" in ptb("image", "show").stdout
    fake_engine("podman")
    assert "cannot be seen: podman has no image" in ptb("image", "show").stdout


def test_show_says_when_a_lock_is_old(fake_engine: FakeEngine, ptb: Ptb, home: Path) -> None:
    old = _answer(Config={"Labels": {"org.posttrainbench.kind": "cuda", "org.posttrainbench.lock": "0" * 64}})
    fake_engine("podman", images={"old": old})
    assert "its lock is not the one of this version" in ptb("image", "show", "old").stdout
    assert json.loads(ptb("image", "show", "old", "--json").stdout)["lock"] == "0" * 64

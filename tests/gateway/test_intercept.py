"""Tunnels that are looked into: what is seen, what is refused, what is recognised, and what happens when the interceptor dies."""

from __future__ import annotations

import os
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.gateway.test_web_clients import serve_directory
from tests.gateway.web_door import HOST, Interception, RunningDoor, certificate, interception, running_door

needs_curl = pytest.mark.skipif(not shutil.which("curl"), reason="no curl")


class Site:
    """Files over https, and what is needed to reach them through a door."""

    def __init__(self, directory: Path, port: int, own: Path, seen: Interception) -> None:
        self.directory, self.port, self.own, self.seen = directory, port, own, seen
        self.url = f"https://{HOST}:{port}"
        self.internal = (f"{HOST}:{port}",)

    def curl(self, door: RunningDoor, *arguments: str, ca: Path | None = None) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            ["curl", "-sS", "--proxy", door.url, "--cacert", str(ca or self.seen.certificate), *arguments],
            env={"PATH": os.environ["PATH"]},
            capture_output=True,
            text=True,
            timeout=60,
            check=False,
        )


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Site]:
    directory = tmp_path_factory.mktemp("site")
    (directory / "page").write_text("content\n")
    (directory / "large").write_bytes(os.urandom(1 << 20) * 8)
    own = certificate(tmp_path_factory.mktemp("certificate"))
    seen = interception(tmp_path_factory.mktemp("authority"))
    server = serve_directory(directory, tls=own)
    patch = pytest.MonkeyPatch()
    patch.setenv("SSL_CERT_FILE", f"{own}.crt")
    yield Site(directory, server.server_address[1], own, seen)
    patch.undo()
    server.shutdown()
    server.server_close()


@pytest.fixture(scope="module")
def door(site: Site, tmp_path_factory: pytest.TempPathFactory) -> Iterator[RunningDoor]:
    with running_door(tmp_path_factory.mktemp("door"), internal=site.internal, **site.seen.settings) as found:
        yield found


@needs_curl
def test_a_request_is_seen(site: Site, door: RunningDoor) -> None:
    done = site.curl(door, "--http1.1", f"{site.url}/page?name=x%20y")
    assert done.stdout == "content\n", done.stderr
    print(door.log(count=2))

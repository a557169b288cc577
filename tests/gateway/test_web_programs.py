"""Programs that agents use, unmodified, through both forms of the web door, against sites on loopback over https.

Each gets what a run's sandbox gives it: the proxy variables and, where TLS is opened, the variables that name the certificates
(`web_tls.VARIABLES`). Where it is passed on, the test's own authority stands in for the system's list.
"""

from __future__ import annotations

import base64
import hashlib
import io
import json
import os
import shutil
import ssl
import subprocess
import sys
import tarfile
import threading
import time
import zipfile
from collections.abc import Iterator
from functools import partial
from http.server import ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest

from posttrainbench.pipeline import web_tls
from tests.gateway.test_web_clients import Quiet
from tests.gateway.web_door import HOST, RunningDoor, certificate, interception, running_door

needs = {
    name: pytest.mark.skipif(not shutil.which(name), reason=f"no {name}")
    for name in ("curl", "git", "npm", "node", "apt-get", "dpkg-deb")
}


class Handler(Quiet):
    """Files, git's smart protocol below /git/, and a package registry for npm below /npm/."""

    def do_GET(self) -> None:
        if self.path.startswith("/git/"):
            self.git(b"")
        elif self.path == "/npm/demo":
            self.answer(200, self.registry(), "application/json")
        else:
            super().do_GET()

    def do_POST(self) -> None:
        if not self.path.startswith("/git/"):
            super().do_POST()
            return
        if self.headers.get("Transfer-Encoding") == "chunked":
            body = b""
            while size := int(self.rfile.readline(), 16):
                body += self.rfile.read(size)
                self.rfile.readline()
            self.rfile.readline()
        else:
            body = self.rfile.read(int(self.headers["Content-Length"]))
        self.git(body)

    def git(self, body: bytes) -> None:
        path, _, query = self.path.removeprefix("/git").partition("?")
        env = {
            "PATH": os.environ["PATH"],
            "GIT_PROJECT_ROOT": self.directory,
            "GIT_HTTP_EXPORT_ALL": "1",
            "PATH_INFO": path,
            "QUERY_STRING": query,
            "REQUEST_METHOD": self.command,
            "CONTENT_TYPE": self.headers.get("Content-Type", ""),
            "CONTENT_LENGTH": str(len(body)),
            "HTTP_CONTENT_ENCODING": self.headers.get("Content-Encoding", ""),
            "GIT_PROTOCOL": self.headers.get("Git-Protocol", ""),
        }
        done = subprocess.run(["git", "http-backend"], input=body, env=env, capture_output=True, check=True)
        head, _, data = done.stdout.partition(b"\r\n\r\n")
        headers = dict(line.split(": ", 1) for line in head.decode().split("\r\n"))
        self.answer(int(headers.get("Status", "200").split()[0]), data, headers["Content-Type"])

    def registry(self) -> bytes:
        raw = (Path(self.directory) / "demo-1.0.0.tgz").read_bytes()
        base = f"https://{HOST}:{self.server.server_address[1]}"
        integrity = "sha512-" + base64.b64encode(hashlib.sha512(raw).digest()).decode()
        version = {"name": "demo", "version": "1.0.0", "main": "index.js"}
        version["dist"] = {"tarball": f"{base}/demo-1.0.0.tgz", "integrity": integrity}  # type: ignore[assignment]
        return json.dumps({"name": "demo", "dist-tags": {"latest": "1.0.0"}, "versions": {"1.0.0": version}}).encode()

    def answer(self, status: int, data: bytes, kind: str) -> None:
        self.send_response(status)
        self.send_header("Content-Type", kind)
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        self.wfile.write(data)


def fill(site: Path, spare: Path) -> None:
    """A wheel, an npm package, a git repository and a Debian repository, each with one small thing in it."""
    (site / "page").write_text("content\n")
    (site / "large").write_bytes(os.urandom(1 << 20) * 3)
    wheel = site / "simple" / "demo" / "demo-1.0-py3-none-any.whl"
    wheel.parent.mkdir(parents=True)
    with zipfile.ZipFile(wheel, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("demo.py", "value = 42\n")
        archive.writestr("demo-1.0.dist-info/METADATA", "Metadata-Version: 2.1\nName: demo\nVersion: 1.0\n")
        archive.writestr("demo-1.0.dist-info/WHEEL", "Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any\n")
        archive.writestr("demo-1.0.dist-info/RECORD", "demo.py,,\ndemo-1.0.dist-info/METADATA,,\n")
    digest = hashlib.sha256(wheel.read_bytes()).hexdigest()
    (wheel.parent / "index.html").write_text(f'<a href="{wheel.name}#sha256={digest}">{wheel.name}</a>')
    with tarfile.open(site / "demo-1.0.0.tgz", "w:gz") as packed:
        for name, text in (
            ("package.json", '{"name": "demo", "version": "1.0.0", "main": "index.js"}'),
            ("index.js", "module.exports = 42;\n"),
        ):
            entry = tarfile.TarInfo(f"package/{name}")
            entry.size = len(text)
            packed.addfile(entry, io.BytesIO(text.encode()))
    if shutil.which("git"):
        work = spare / "work"
        git = ["git", "-C", str(work), "-c", "user.name=a", "-c", "user.email=a@example.org"]
        subprocess.run(["git", "init", "-q", "-b", "main", str(work)], check=True)
        (work / "file").write_text("x" * 100_000)
        subprocess.run([*git, "add", "."], check=True)
        subprocess.run([*git, "commit", "-q", "-m", "m"], check=True)
        subprocess.run(["git", "clone", "-q", "--bare", str(work), str(site / "repo.git")], check=True)
    if shutil.which("dpkg-deb"):
        control = spare / "deb" / "DEBIAN" / "control"
        control.parent.mkdir(parents=True)
        fields = "Package: demo\nVersion: 1.0\nArchitecture: all\nMaintainer: A <a@example.org>\nDescription: demo\n"
        control.write_text(fields)
        (site / "debian").mkdir()
        target = site / "debian" / "demo_1.0_all.deb"
        for each in (control.parent.parent, control.parent):
            each.chmod(0o755)
        subprocess.run(["dpkg-deb", "--build", str(spare / "deb"), str(target)], check=True, capture_output=True)
        raw = target.read_bytes()
        entry_text = (
            f"{fields}Filename: ./demo_1.0_all.deb\nSize: {len(raw)}\nSHA256: {hashlib.sha256(raw).hexdigest()}\n"
        )
        (site / "debian" / "Packages").write_text(entry_text)


class World:
    """Sites behind a door, and an environment as a sandbox has it."""

    def __init__(self, door: RunningDoor, port: int, env: dict[str, str], home: Path, *, looks: bool) -> None:
        self.door, self.port, self.env, self.home, self.looks = door, port, env, home, looks
        self.url = f"https://{HOST}:{port}"

    def run(self, *argv: str | Path, cwd: Path | None = None, **env: str) -> subprocess.CompletedProcess[str]:
        """Run a program; raises with its words where it fails."""
        done = subprocess.run(
            list(map(str, argv)),
            env=self.env | env,
            cwd=cwd or self.home,
            capture_output=True,
            text=True,
            timeout=240,
            check=False,
        )
        assert done.returncode == 0, (done.stdout[-2000:], done.stderr[-2000:])
        return done

    def begin(self) -> int:
        return len(self.lines())

    def lines(self) -> list[dict[str, Any]]:
        return [line for line in self.door.log(count=0) if "method" in line]

    def seen(self, after: int, *paths: str) -> None:
        """What the log must say: each path, where requests are seen, and tunnels only where not."""
        until = time.monotonic() + 20
        while True:
            found = self.lines()[after:]
            there = {line["path"] for line in found} if self.looks else set(paths[:1] if found else ())
            if set(paths if self.looks else paths[:1]) <= there or time.monotonic() > until:
                break
            time.sleep(0.02)
        assert found and all(line["allowed"] and line["host"] == HOST for line in found), found
        if self.looks:
            assert {line["level"] for line in found} == {"request"}
            assert set(paths) <= {line["path"] for line in found}, found
        else:
            assert {(line["level"], line["method"], line["path"]) for line in found} == {("host", "CONNECT", None)}


@pytest.fixture(scope="module", params=["passthrough", "intercept"])
def world(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[World]:
    if not shutil.which("openssl"):
        pytest.skip("no openssl to make a certificate with")
    site = tmp_path_factory.mktemp("site")
    fill(site, tmp_path_factory.mktemp("spare"))
    own = certificate(tmp_path_factory.mktemp("certificate"))
    server = ThreadingHTTPServer(("127.0.0.1", 0), partial(Handler, directory=str(site)))
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(own)
    server.socket = context.wrap_socket(server.socket, server_side=True, do_handshake_on_connect=False)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    port = server.server_address[1]
    settings: dict[str, Any] = {}
    trusted = Path(f"{own}.crt")
    if request.param == "intercept":
        found = interception(tmp_path_factory.mktemp("authority"))
        settings, trusted = found.settings, found.certificate
    home = tmp_path_factory.mktemp("home")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("SSL_CERT_FILE", f"{own}.crt")
        with running_door(
            tmp_path_factory.mktemp("door"), internal=(f"{HOST}:{port}",), known=("0" * 64,), **settings
        ) as door:
            proxy = dict.fromkeys(("HTTP_PROXY", "HTTPS_PROXY", "http_proxy", "https_proxy"), door.url)
            env = {
                "PATH": os.environ["PATH"],
                "HOME": str(home),
                "LANG": "C.UTF-8",
                "NO_PROXY": "127.0.0.1,localhost,::1",
                "NODE_USE_ENV_PROXY": "1",
                **proxy,
                **dict.fromkeys(web_tls.VARIABLES, str(trusted)),
            }
            yield World(door, port, env, home, looks=request.param == "intercept")
    server.shutdown()
    server.server_close()


@needs["curl"]
@pytest.mark.parametrize("version", ["--http1.1", "--http2"])
def test_curl(world: World, version: str) -> None:
    begin = world.begin()
    assert world.run("curl", "-sS", "--fail", version, f"{world.url}/page").stdout == "content\n"
    world.seen(begin, "/page")


def test_pip(world: World, tmp_path: Path) -> None:
    """With nothing but the environment; the index is a site of one's own, as where a company has a mirror."""
    begin = world.begin()
    target = tmp_path / "packages"
    world.run(
        *(sys.executable, "-m", "pip", "install", "-q", "--no-cache-dir", "--target", target, "demo"),
        PIP_INDEX_URL=f"{world.url}/simple",
        PIP_CONFIG_FILE=os.devnull,
        PIP_DISABLE_PIP_VERSION_CHECK="1",
    )
    assert (target / "demo.py").read_text() == "value = 42\n"
    world.seen(begin, "/simple/demo/", "/simple/demo/demo-1.0-py3-none-any.whl")


@needs["npm"]
def test_npm(world: World, tmp_path: Path) -> None:
    begin = world.begin()
    world.run("npm", "install", "--no-audit", "--no-fund", "--registry", f"{world.url}/npm/", "demo", cwd=tmp_path)
    assert (tmp_path / "node_modules" / "demo" / "index.js").read_text() == "module.exports = 42;\n"
    world.seen(begin, "/npm/demo", "/demo-1.0.0.tgz")


@needs["git"]
def test_git(world: World, tmp_path: Path) -> None:
    begin = world.begin()
    world.run("git", "clone", "-q", f"{world.url}/git/repo.git", tmp_path / "clone", GIT_CONFIG_NOSYSTEM="1")
    assert (tmp_path / "clone" / "file").read_text() == "x" * 100_000
    world.seen(begin, "/git/repo.git/info/refs", "/git/repo.git/git-upload-pack")


PYTHON = {
    "urllib": "import urllib.request; data = urllib.request.urlopen(url).read()",
    "requests": "import requests; data = requests.get(url).content",
    "httpx": "import httpx; data = httpx.get(url).content",
    "aiohttp": """
import aiohttp, asyncio
async def main():
    async with aiohttp.ClientSession(trust_env=True) as session, session.get(url) as answer:
        return await answer.read()
data = asyncio.run(main())
""",
}


@pytest.mark.parametrize("name", list(PYTHON))
def test_python(world: World, name: str) -> None:
    pytest.importorskip(name)
    begin = world.begin()
    script = f"import hashlib, sys\nurl = sys.argv[1]\n{PYTHON[name]}\nprint(len(data))\n"
    assert world.run(sys.executable, "-c", script, f"{world.url}/large").stdout == f"{3 << 20}\n"
    world.seen(begin, "/large")


@needs["node"]
def test_node(world: World) -> None:
    version = tuple(int(part) for part in world.run("node", "--version").stdout.strip("v\n").split("."))
    if version < (22, 21) or (23,) <= version < (24, 5):
        pytest.skip(f"node {'.'.join(map(str, version))} reads no proxy variables")
    begin = world.begin()
    script = "fetch(process.argv[1]).then(a => a.text()).then(t => process.stdout.write(t))"
    assert world.run("node", "-e", script, f"{world.url}/page").stdout == "content\n"
    world.seen(begin, "/page")


@needs["apt-get"]
@needs["dpkg-deb"]
def test_apt(world: World, tmp_path: Path) -> None:
    """In a directory of its own: lists are fetched and packages downloaded; installing would change the machine."""
    begin = world.begin()
    for part in ("etc/apt/apt.conf.d", "etc/apt/preferences.d", "state/lists/partial", "cache/archives/partial"):
        (tmp_path / part).mkdir(parents=True)
    (tmp_path / "status").touch()
    (tmp_path / "etc/apt/sources.list").write_text(f"deb [trusted=yes] {world.url}/debian ./\n")
    # the file that a run's APT_CONFIG names has the last line
    config = tmp_path / "apt.conf"
    config.write_text(
        f'Dir "{tmp_path}";\nDir::State "state";\nDir::State::status "{tmp_path}/status";\nDir::Cache "cache";\n'
        f'Dir::Etc "etc/apt";\nDir::Log "{tmp_path}";\nAPT::Sandbox::User "";\n'
        f'Acquire::https::CaInfo "{world.env["SSL_CERT_FILE"]}";\n'
    )
    world.run("apt-get", "-q", "update", cwd=tmp_path, APT_CONFIG=str(config))
    world.run("apt-get", "-q", "download", "demo", cwd=tmp_path, APT_CONFIG=str(config))
    assert (tmp_path / "demo_1.0_all.deb").stat().st_size > 100
    world.seen(begin, "/debian/./Packages", "/debian/./demo_1.0_all.deb")

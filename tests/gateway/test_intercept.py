"""Tunnels that are looked into: what is seen, refused and recognised, and what happens when the interceptor dies."""

from __future__ import annotations

import contextlib
import gzip
import hashlib
import io
import json
import os
import shutil
import signal
import socket
import ssl
import subprocess
import sys
import tarfile
import threading
import time
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from posttrainbench.gateway import intercept_install
from posttrainbench.gateway.interceptor.content import Recogniser
from tests.gateway.test_web_clients import serve_directory
from tests.gateway.web_door import (
    HOST,
    Interception,
    Recorder,
    RunningDoor,
    certificate,
    client_hello,
    interception,
    read_all,
    running_door,
    server,
)

TEST = b'{"question": "how many?", "answer": "3"}\n' * 200
LARGE = b'{"question": "which?", "answer": "none"}\n' * 60_000
KNOWN = tuple(hashlib.sha256(data).hexdigest() for data in (TEST, LARGE))
POLICY = """
default = "refuse"
[[internal]]
rule = "site"
hosts = ["allowed.example.org", "other.example.org"]
ports = [PORT]
networks = ["127.0.0.0/8"]
[[refuse]]
rule = "secret"
message = "Not that one."
hosts = [".example.org"]
paths = ["/secret*", "*q=secret*"]
but = ["/secret/public*"]
[[refuse]]
rule = "no-writing"
methods = ["DELETE"]
"""


class Site:
    """Files over https and a server that remembers, and what is needed to reach them through a door."""

    def __init__(self, directory: Path, own: Path, seen: Interception) -> None:
        self.directory, self.own, self.seen = directory, own, seen
        self.files = serve_directory(directory, tls=own)
        self.plain = serve_directory(directory)
        self.port = self.files.server_address[1]
        self.url = f"https://{HOST}:{self.port}"

    def tls(self) -> ssl.SSLContext:
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.load_cert_chain(self.own)
        return context

    def curl(self, door: RunningDoor, *arguments: str, ca: Path | None = None) -> subprocess.CompletedProcess[bytes]:
        return subprocess.run(
            [
                "curl",
                "-sS",
                "--suppress-connect-headers",
                "--proxy",
                door.url,
                "--cacert",
                str(ca or self.seen.certificate),
                *arguments,
            ],
            env={"PATH": os.environ["PATH"]},
            capture_output=True,
            timeout=120,
            check=False,
        )

    def inside(self, door: RunningDoor, port: int, name: str = HOST) -> ssl.SSLSocket:
        """A client's end of TLS through a tunnel."""
        connection = door.connect()
        connection.settimeout(30)
        connection.sendall(f"CONNECT {HOST}:{port} HTTP/1.1\r\nHost: {HOST}:{port}\r\n\r\n".encode())
        head = b""
        while not head.endswith(b"\r\n\r\n"):
            head += connection.recv(1)
        assert head.startswith(b"HTTP/1.1 200"), head
        context = ssl.create_default_context(cafile=str(self.seen.certificate))
        return context.wrap_socket(connection, server_hostname=name)

    def ask(self, door: RunningDoor, port: int, raw: bytes) -> bytes:
        with self.inside(door, port) as connection:
            with contextlib.suppress(OSError):
                connection.sendall(raw)
            return read_until_quiet(connection)


def read_until_quiet(connection: socket.socket) -> bytes:
    """What comes until the end, or until a whole answer is there."""
    data = b""
    while True:
        try:
            piece = connection.recv(65536)
        except (OSError, ssl.SSLError):
            return data
        data += piece
        head, _, body = data.partition(b"\r\n\r\n")
        for line in head.lower().split(b"\r\n"):
            if line.startswith(b"content-length:") and len(body) >= int(line.split(b":")[1]):
                return data
        if not piece:
            return data


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Site]:
    if not shutil.which("curl") or not shutil.which("openssl"):
        pytest.skip("no curl or no openssl")
    directory = tmp_path_factory.mktemp("site")
    (directory / "page").write_text("content\n")
    (directory / "big").write_bytes(os.urandom(1 << 20) * 8)
    (directory / "innocent.txt").write_bytes(TEST)
    (directory / "innocent.dat").write_bytes(LARGE)
    (directory / "packed.gz").write_bytes(gzip.compress(TEST))
    with zipfile.ZipFile(directory / "package.whl", "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("package/__init__.py", "x = 1\n")
        archive.writestr("package/data.bin", TEST)
    own = certificate(tmp_path_factory.mktemp("certificate"))
    seen = interception(tmp_path_factory.mktemp("authority"))
    found = Site(directory, own, seen)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("SSL_CERT_FILE", f"{own}.crt")
        yield found
    for each in (found.files, found.plain):
        each.shutdown()
        each.server_close()


@pytest.fixture(scope="module")
def door(site: Site, tmp_path_factory: pytest.TempPathFactory) -> Iterator[RunningDoor]:
    internal = tuple(f"{HOST}:{each.server_address[1]}" for each in (site.files, site.plain))
    with running_door(
        tmp_path_factory.mktemp("door"), internal=internal, known=KNOWN, http2=True, **site.seen.settings
    ) as found:
        yield found


@pytest.fixture
def limited(site: Site, tmp_path: Path) -> Iterator[tuple[RunningDoor, Recorder]]:
    """A door with rules on requests, HTTP/2 included, before a server that remembers what reached it."""

    def answer(connection: socket.socket, recorder: Recorder) -> None:
        while True:
            data = b""
            while b"\r\n\r\n" not in data:
                piece = connection.recv(65536)
                if not piece:
                    return
                data += piece
                recorder.data += piece
            connection.sendall(b"HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\nhello")

    with server(answer, tls=site.tls()) as recorder:
        policy = tmp_path / "policy.toml"
        policy.write_text(POLICY.replace("PORT", str(recorder.port)))
        with running_door(
            tmp_path / "door",
            policy=str(policy),
            http2=True,
            table={"other.example.org": [["127.0.0.1"]]},
            **site.seen.settings,
        ) as found:
            yield found, recorder


def requests(door: RunningDoor, after: int, count: int = 1) -> list[dict[str, Any]]:
    """The lines about requests beyond the first `after`."""
    until = time.monotonic() + 20
    while True:
        found = [line for line in door.log(count=0) if "method" in line][after:]
        if len(found) >= count or time.monotonic() > until:
            return found
        time.sleep(0.02)


@pytest.mark.parametrize("version", ["--http1.1", "--http2"])
def test_requests_are_seen(site: Site, door: RunningDoor, version: str) -> None:
    before = len(requests(door, 0, 0))
    done = site.curl(door, version, f"{site.url}/page?name=x%20y", "-o", os.devnull, f"{site.url}/big")
    assert hashlib.sha256(done.stdout or b"").hexdigest(), done.stderr
    big = (site.directory / "big").read_bytes()
    done = site.curl(door, version, "--data-binary", f"@{site.directory / 'big'}", f"{site.url}/upload")
    assert done.stdout.decode() == hashlib.sha256(big).hexdigest(), done.stderr
    done = site.curl(door, version, "-I", f"{site.url}/page")
    assert b"200" in done.stdout, done.stderr
    first, second, third, fourth = requests(door, before, 4)
    assert (first["method"], first["path"], first["query"], first["level"]) == ("GET", "/page", "name=x%20y", "request")
    assert (first["status"], first["down"], first["sni"], first["address"]) == (200, 8, HOST, "127.0.0.1")
    assert first["allowed"] and first["rule"] == "internal" and first["http"].startswith("HTTP/")
    assert first["sha256"] == hashlib.sha256(b"content\n").hexdigest()
    assert (second["path"], second["down"]) == ("/big", len(big))
    assert second["sha256"] == hashlib.sha256(big).hexdigest()
    assert (third["method"], third["up"]) == ("POST", len(big))
    assert (fourth["method"], fourth["down"]) == ("HEAD", 0)
    assert "query" not in second


def test_requests_of_one_tunnel_have_lines_of_their_own(site: Site, door: RunningDoor) -> None:
    before = len(requests(door, 0, 0))
    with site.inside(door, site.port) as connection:
        for _ in range(3):
            connection.sendall(f"GET /page HTTP/1.1\r\nHost: {HOST}:{site.port}\r\n\r\n".encode())
            assert read_until_quiet(connection).endswith(b"content\n")
    assert [line["method"] for line in requests(door, before, 3)] == ["GET"] * 3


def test_rules_on_paths_and_methods(site: Site, limited: tuple[RunningDoor, Recorder]) -> None:
    door, recorder = limited
    url = f"https://{HOST}:{recorder.port}"
    assert site.curl(door, f"{url}/open").stdout == b"hello"
    assert site.curl(door, f"{url}/secret/public/x").stdout == b"hello"
    reached = len(recorder.data)
    for arguments, rule in (
        ((f"{url}/secret/x",), "secret"),
        ((f"{url}/SECRET/x",), "secret"),
        ((f"{url}/%73ecret",), "secret"),
        ((f"{url}/%2573ecret",), "secret"),
        ((f"{url}//secret",), "secret"),
        ((f"{url}/x?q=secret",), "secret"),
        (("--path-as-is", f"{url}/open/../secret"), "path-trick"),
        (("--path-as-is", f"{url}/secret/public/../x"), "path-trick"),
        ((f"{url}/open/%2e%2e/secret",), "path-trick"),
        ((f"{url}/open/..%5csecret",), "path-trick"),
        ((f"{url}/open%00/secret",), "path-trick"),
        (("-X", "DELETE", f"{url}/open"), "no-writing"),
        (("-X", "delete", f"{url}/open"), "no-writing"),
    ):
        for version in ("--http1.1", "--http2"):
            done = site.curl(door, version, "-i", *arguments)
            assert b" 403" in done.stdout.split(b"\r\n")[0], (arguments, done)
            assert f"x-ptb-rule: {rule}".encode() in done.stdout.lower(), (arguments, done.stdout)
    assert b"Not that one." in site.curl(door, f"{url}/secret/x").stdout
    assert len(recorder.data) == reached, "nothing refused went out"


def test_a_refused_upload(site: Site, limited: tuple[RunningDoor, Recorder]) -> None:
    """A small one gets the words, a large one the end of its connection; none is read to its end, none goes out."""
    door, recorder = limited
    url = f"https://{HOST}:{recorder.port}/secret"
    small = site.curl(door, "--data-binary", "x" * 1000, url)
    assert b"Not that one." in small.stdout
    done = site.curl(door, "-H", "Expect:", "--data-binary", f"@{site.directory / 'big'}", url)
    assert done.returncode != 0
    assert not recorder.data
    assert [line["rule"] for line in requests(door, 0, 2)] == ["secret", "secret"]


def tricks(port: int) -> list[tuple[str, bytes]]:
    """Requests inside TLS that are written so that a proxy and a server might read them differently."""
    host = f"Host: {HOST}:{port}\r\n".encode()
    return [
        ("other host", b"GET / HTTP/1.1\r\nHost: other.example.org\r\n\r\n"),
        ("other port", f"GET / HTTP/1.1\r\nHost: {HOST}:1\r\n\r\n".encode()),
        ("no host", b"GET / HTTP/1.1\r\n\r\n"),
        ("two hosts", b"GET / HTTP/1.1\r\n" + host + b"Host: other.example.org\r\n\r\n"),
        ("absolute form", f"GET https://other.example.org:{port}/ HTTP/1.1\r\n".encode() + host + b"\r\n"),
        ("absolute form, same host", f"GET https://{HOST}:{port}/ HTTP/1.1\r\n".encode() + host + b"\r\n"),
        ("plain scheme", b"GET http://other.example.org/ HTTP/1.1\r\n" + host + b"\r\n"),
        ("tunnel in the tunnel", b"CONNECT other.example.org:443 HTTP/1.1\r\nHost: other.example.org:443\r\n\r\n"),
        ("websocket", b"GET / HTTP/1.1\r\n" + host + b"Connection: Upgrade\r\nUpgrade: websocket\r\n\r\n"),
        ("other protocol", b"GET / HTTP/1.1\r\n" + host + b"Connection: Upgrade\r\nUpgrade: h2c\r\n\r\n"),
        ("two lengths", b"POST / HTTP/1.1\r\n" + host + b"Content-Length: 3\r\nContent-Length: 5\r\n\r\nabcde"),
        (
            "length and chunks",
            b"POST / HTTP/1.1\r\n" + host + b"Content-Length: 3\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n",
        ),
        ("odd encoding", b"POST / HTTP/1.1\r\n" + host + b"Transfer-Encoding: xchunked\r\n\r\n0\r\n\r\n"),
        ("blank before the colon", b"GET / HTTP/1.1\r\n" + host + b"X-A : b\r\n\r\n"),
        ("no HTTP", b"\x00\x01\x02SSH-2.0-x\r\n\r\n"),
        ("no version", b"GET /\r\n\r\n"),
        ("other version", b"GET / HTTP/3.0\r\n" + host + b"\r\n"),
        ("no path", b"GET x HTTP/1.1\r\n" + host + b"\r\n"),
        ("endless head", b"GET / HTTP/1.1\r\n" + host + (b"X-A: " + b"a" * 8000 + b"\r\n") * 300),
    ]


@pytest.mark.parametrize("number", range(len(tricks(0))), ids=[name.replace(" ", "-") for name, _ in tricks(0)])
def test_tricks_inside_tls(site: Site, limited: tuple[RunningDoor, Recorder], number: int) -> None:
    door, recorder = limited
    name, raw = tricks(recorder.port)[number]
    answer = site.ask(door, recorder.port, raw)
    assert not answer.startswith((b"HTTP/1.1 2", b"HTTP/1.1 1")), (name, answer)
    assert not recorder.data, (name, "something reached the server", bytes(recorder.data))


def test_tricks_with_http2(site: Site, limited: tuple[RunningDoor, Recorder]) -> None:
    door, recorder = limited
    url = f"https://{HOST}:{recorder.port}/"
    for arguments in (
        ("-H", "Host: other.example.org"),
        ("-H", f"Host: {HOST}:1"),
        ("-X", "CONNECT"),
    ):
        done = site.curl(door, "--http2", "-i", *arguments, url)
        assert b" 200" not in done.stdout.split(b"\r\n")[0], (arguments, done)
    assert not recorder.data


def test_what_is_no_tls_goes_nowhere(site: Site, limited: tuple[RunningDoor, Recorder]) -> None:
    door, recorder = limited
    target = f"{HOST}:{recorder.port}"
    for raw in (
        b"SSH-2.0-x\r\n",
        b"GET / HTTP/1.1\r\nHost: x\r\n\r\n",
        client_hello("other.example.org"),
        client_hello(None),
    ):
        with door.connect() as connection:
            connection.sendall(f"CONNECT {target} HTTP/1.1\r\nHost: {target}\r\n\r\n".encode())
            connection.recv(1000)
            connection.sendall(raw)
            read_all(connection)
    for wrong in (f"{HOST}:22", f"unknown.example.org:{recorder.port}"):
        assert b" 403 " in door.ask(f"CONNECT {wrong} HTTP/1.1\r\nHost: {wrong}\r\n\r\n".encode())
    assert not recorder.data
    assert [line["rule"] for line in requests(door, 0, 6)] == [
        *("not-tls", "not-tls", "sni-mismatch", "no-sni", "port", "not-listed")
    ]


def test_a_server_that_changes_the_protocol(site: Site, tmp_path: Path) -> None:
    def switch(connection: socket.socket, recorder: Recorder) -> None:
        connection.recv(65536)
        connection.sendall(b"HTTP/1.1 101 Switching Protocols\r\nUpgrade: raw\r\nConnection: Upgrade\r\n\r\n")
        recorder.data += read_all(connection)

    with (
        server(switch, tls=site.tls()) as recorder,
        running_door(tmp_path, internal=(f"{HOST}:{recorder.port}",), **site.seen.settings) as door,
        site.inside(door, recorder.port) as connection,
    ):
        connection.sendall(f"GET / HTTP/1.1\r\nHost: {HOST}:{recorder.port}\r\n\r\n".encode())
        assert b" 101 " not in read_until_quiet(connection)
        with contextlib.suppress(OSError):
            connection.sendall(b"raw bytes")
        time.sleep(0.2)
        assert not recorder.data


# content


def test_a_copy_of_test_data_is_known_by_its_content(site: Site, door: RunningDoor) -> None:
    before = len(requests(door, 0, 0))
    for version in ("--http1.1", "--http2"):
        for name in ("innocent.txt", "packed.gz", "package.whl"):
            done = site.curl(door, version, "-i", f"{site.url}/{name}?{version}")
            assert b"x-ptb-rule: test-data-copy" in done.stdout.lower(), (name, done)
            assert b"whatever its name" in done.stdout and b"how many" not in done.stdout
    found = requests(door, before, 6)
    assert all(line["rule"] == "test-data-copy" and not line["allowed"] and line["status"] == 403 for line in found)
    assert found[0]["sha256"] == KNOWN[0]


def test_a_large_copy_is_cut_and_then_refused(site: Site, door: RunningDoor, tmp_path: Path) -> None:
    before = len(requests(door, 0, 0))
    target = tmp_path / "got"
    done = site.curl(door, f"{site.url}/innocent.dat", "-o", str(target))
    assert done.returncode != 0 and target.stat().st_size < len(LARGE)
    done = site.curl(door, f"{site.url}/innocent.dat")
    assert b"whatever its name" in done.stdout
    first, second = requests(door, before, 2)
    assert first["rule"] == second["rule"] == "test-data-copy" and first["sha256"] == KNOWN[1]


def test_a_copy_over_plain_http(site: Site, door: RunningDoor, tmp_path: Path) -> None:
    base = f"http://{HOST}:{site.plain.server_address[1]}"
    before = len(requests(door, 0, 0))
    assert b"whatever its name" in site.curl(door, f"{base}/innocent.txt").stdout
    done = site.curl(door, f"{base}/innocent.dat", "-o", str(tmp_path / "got"))
    assert done.returncode != 0 and (tmp_path / "got").stat().st_size < len(LARGE)
    assert site.curl(door, f"{base}/page").stdout == b"content\n"
    first, second, third = requests(door, before, 3)
    assert first["rule"] == second["rule"] == "test-data-copy" and third["allowed"]
    assert third["sha256"] == hashlib.sha256(b"content\n").hexdigest()


@pytest.mark.parametrize("secure", [True, False], ids=["https", "http"])
def test_chunked_copies(site: Site, tmp_path: Path, secure: bool) -> None:
    """Sizes that nobody says before the end; also a packed body."""

    def chunks(connection: socket.socket, recorder: Recorder) -> None:
        head = connection.recv(65536)
        data = gzip.compress(TEST) if b"/packed" in head else TEST if b"/copy" in head else b"harmless " * 1000
        coding = b"Content-Encoding: gzip\r\n" if b"/packed" in head else b""
        connection.sendall(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n" + coding + b"\r\n")
        for start in range(0, len(data), 700):
            piece = data[start : start + 700]
            connection.sendall(b"%x\r\n%s\r\n" % (len(piece), piece))
            time.sleep(0.001)
        connection.sendall(b"0\r\n\r\n")
        read_all(connection)

    with (
        server(chunks, tls=site.tls() if secure else None) as recorder,
        running_door(tmp_path, internal=(f"{HOST}:{recorder.port}",), known=KNOWN, **site.seen.settings) as door,
    ):
        base = f"{'https' if secure else 'http'}://{HOST}:{recorder.port}"
        done = site.curl(door, f"{base}/harmless")
        assert done.stdout == b"harmless " * 1000, done
        for name in ("copy", "packed"):
            done = site.curl(door, f"{base}/{name}")
            assert done.returncode != 0 and not done.stdout, name
        assert [line["rule"] for line in requests(door, 0, 3)] == ["internal", "test-data-copy", "test-data-copy"]


@pytest.mark.parametrize("secure", [True, False], ids=["https", "http"])
def test_a_copy_in_parts(site: Site, tmp_path: Path, secure: bool) -> None:
    """All but the first byte of a test file is as good as the file; parts of large files are common and pass."""

    def parts(connection: socket.socket, recorder: Recorder) -> None:
        head = connection.recv(65536)
        data = b"x" * (2 << 20) if b"/middling" in head else TEST[1:]
        total = b"*" if b"/untold" in head else b"70000000" if b"/large" in head else b"%d" % (len(data) + 1)
        connection.sendall(
            b"HTTP/1.1 206 Partial Content\r\nContent-Range: bytes 1-%d/%s\r\nContent-Length: %d\r\n\r\n%s"
            % (len(data), total, len(data), data)
        )
        read_all(connection)

    with (
        server(parts, tls=site.tls() if secure else None) as recorder,
        running_door(tmp_path, internal=(f"{HOST}:{recorder.port}",), known=KNOWN, **site.seen.settings) as door,
    ):
        base = f"{'https' if secure else 'http'}://{HOST}:{recorder.port}"
        for name in ("small", "untold"):
            done = site.curl(door, "-r", "1-", f"{base}/{name}")
            assert b"ask for the whole file" in done.stdout and TEST[1:] not in done.stdout, done
        assert site.curl(door, "-r", "1-", f"{base}/large").stdout == TEST[1:]
        done = site.curl(door, "-r", "1-", f"{base}/middling")
        assert b"xxx" not in done.stdout
        done = site.curl(door, "-r", "1-", f"{base}/middling")
        assert b"ask for the whole file" in done.stdout
        lines = requests(door, 0, 5)
        assert [line["rule"] for line in lines] == [*["test-data-part"] * 2, "internal", *["test-data-part"] * 2]
        assert [line["allowed"] for line in lines] == [False, False, True, False, False]


def test_events_are_not_kept_back(site: Site, tmp_path: Path) -> None:
    def stream(connection: socket.socket, recorder: Recorder) -> None:
        connection.recv(65536)
        connection.sendall(b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\nTransfer-Encoding: chunked\r\n\r\n")
        connection.sendall(b"7\r\ndata: 1\r\n")
        recorder.data += read_all(connection)

    with (
        server(stream, tls=site.tls()) as recorder,
        running_door(tmp_path, internal=(f"{HOST}:{recorder.port}",), known=KNOWN, **site.seen.settings) as door,
        site.inside(door, recorder.port) as connection,
    ):
        connection.sendall(f"GET / HTTP/1.1\r\nHost: {HOST}:{recorder.port}\r\n\r\n".encode())
        data = b""
        while b"data: 1" not in data:
            piece = connection.recv(65536)
            assert piece, data
            data += piece


def test_recogniser_survives_what_is_broken() -> None:
    for body in (
        b"\x1f\x8b" + os.urandom(5000),
        b"PK\x03\x04" + os.urandom(5000),
        os.urandom(257) + b"ustar" + os.urandom(5000),
        gzip.compress(b"0" * (1 << 28)),
        b"",
    ):
        look = Recogniser(frozenset(KNOWN), size=len(body))
        for start in range(0, len(body), 999):
            look.feed(body[start : start + 999])
        assert not look.end()
    stream = io.BytesIO()
    with zipfile.ZipFile(stream, "w") as archive:
        archive.writestr("stored", TEST)
    look = Recogniser(frozenset(KNOWN))
    look.feed(stream.getvalue())
    assert look.end()


# certificates


def test_a_client_that_does_not_trust_us(site: Site, door: RunningDoor, tmp_path: Path) -> None:
    before = len(requests(door, 0, 0))
    done = site.curl(door, f"{site.url}/page", ca=Path(f"{site.own}.crt"))
    assert done.returncode == 60
    [line] = requests(door, before)
    assert (line["method"], line["level"], line["rule"], line["allowed"]) == ("CONNECT", "host", "pinned", False)
    assert "does not trust" in line["error"]
    # the others' view of the host is the same as before
    assert site.curl(door, f"{site.url}/page").stdout == b"content\n"
    assert site.curl(door, f"{site.url}/page", ca=Path(f"{site.own}.crt")).returncode == 60


def test_a_policy_may_let_such_clients_pass(site: Site, tmp_path: Path) -> None:
    for name, extra, tries in (
        ("pinned", 'pinned = "passthrough"', 2),
        ("opaque", f'[[opaque]]\nhosts = ["{HOST}"]', 1),
    ):
        policy = tmp_path / f"{name}.toml"
        lines = ['default = "refuse"', extra, "[[internal]]", f'hosts = ["{HOST}"]', f"ports = [{site.port}]"]
        policy.write_text("\n".join(lines))
        with running_door(tmp_path / name, policy=str(policy), **site.seen.settings) as door:
            for _ in range(tries):
                done = site.curl(door, f"{site.url}/page", ca=Path(f"{site.own}.crt"))
            assert done.stdout == b"content\n", done.stderr
            last = requests(door, 0, tries)[-1]
            assert (last["level"], last["allowed"], last["path"]) == ("host", True, None)


def test_a_server_that_nobody_trusts(site: Site, tmp_path: Path) -> None:
    """Its certificate is for another name, or signed by nobody: 502, and not a byte of the request goes out."""
    with (
        server(tls=site.tls()) as recorder,
        running_door(
            tmp_path,
            internal=(f"other.example.org:{recorder.port}",),
            table={"other.example.org": [["127.0.0.1"]]},
            **site.seen.settings,
        ) as door,
    ):
        done = site.curl(door, "-i", f"https://other.example.org:{recorder.port}/")
        assert b" 502 " in done.stdout.split(b"\r\n")[0], done
        assert not recorder.data
        [line] = requests(door, 0)
        assert "verify failed" in line["error"].lower()


# the process


def pid_of(door: RunningDoor) -> int:
    started = [line for line in door.log(count=0) if line.get("event") == "interceptor-start"]
    return int(started[-1]["pid"])


def test_the_key_is_in_memory_only(site: Site, door: RunningDoor) -> None:
    assert site.curl(door, f"{site.url}/page").stdout == b"content\n"
    pid = pid_of(door)
    key = site.seen.settings["authority"]["key"].splitlines()[5]
    process = Path(f"/proc/{pid}")
    assert key not in process.joinpath("cmdline").read_text()
    if os.access(process / "environ", os.R_OK):
        assert sorted(
            line.partition("=")[0] for line in process.joinpath("environ").read_text().split("\0") if line
        ) == [*("LANG", "PATH")]
    for path in door.context.directory.rglob("*"):
        assert key not in path.read_text()
    assert "authority" not in json.dumps(door.context.config.to_json())


def test_the_interceptor_has_no_network(site: Site, door: RunningDoor) -> None:
    assert site.curl(door, f"{site.url}/page").stdout == b"content\n"
    started = next(line for line in door.log(count=0) if line.get("event") == "interceptor-start")
    if not started["own_network"]:
        pytest.skip("this machine lets nobody have a network of his own")
    try:
        theirs = Path(f"/proc/{started['pid']}/ns/net").readlink()
    except PermissionError:
        pytest.skip("not to be seen by this user")
    assert theirs != Path("/proc/self/ns/net").readlink()


def test_a_dead_interceptor_cuts_its_tunnels_and_comes_back(site: Site, tmp_path: Path) -> None:
    def hang(connection: socket.socket, recorder: Recorder) -> None:
        if b"/hang" in connection.recv(65536):
            connection.sendall(b"HTTP/1.1 200 OK\r\nContent-Length: 100\r\n\r\nbegin")
            recorder.data += b"."
            read_all(connection)
        else:
            connection.sendall(b"HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\nhello")

    with (
        server(hang, tls=site.tls()) as recorder,
        running_door(tmp_path, internal=(f"{HOST}:{recorder.port}",), **site.seen.settings) as door,
    ):
        with site.inside(door, recorder.port) as connection:
            connection.sendall(f"GET /hang HTTP/1.1\r\nHost: {HOST}:{recorder.port}\r\n\r\n".encode())
            until = time.monotonic() + 20
            while not recorder.data and time.monotonic() < until:
                time.sleep(0.01)
            first = pid_of(door)
            os.kill(first, signal.SIGKILL)
            assert len(read_until_quiet(connection)) < 200
        assert site.curl(door, f"https://{HOST}:{recorder.port}/").stdout == b"hello"
        assert pid_of(door) != first
        found = door.log(count=5)
        assert [line for line in found if line.get("event") == "interceptor-death" and line["pid"] == first]
        [line] = [line for line in found if line.get("path") == "/hang"]
        assert line["error"] == "the interceptor died" and line["allowed"]


def test_without_an_interceptor_there_is_no_way(site: Site, tmp_path: Path) -> None:
    settings = {**site.seen.settings, "engine": str(tmp_path / "nowhere")}
    with (
        server(tls=site.tls()) as recorder,
        running_door(tmp_path / "door", internal=(f"{HOST}:{recorder.port}",), **settings) as door,
    ):
        done = site.curl(door, f"https://{HOST}:{recorder.port}/")
        assert done.returncode != 0
        assert not recorder.data
        [line] = requests(door, 0)
        assert (line["rule"], line["allowed"]) == ("interceptor-down", False)


def test_memory_does_not_grow_with_the_file(site: Site, tmp_path: Path) -> None:
    size = 300 << 20

    def pour(connection: socket.socket, recorder: Recorder) -> None:
        connection.recv(65536)
        connection.sendall(b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n" % size)
        piece = bytes(1 << 20)
        for _ in range(size >> 20):
            connection.sendall(piece)
            recorder.data += b"."

    with (
        server(pour, tls=site.tls()) as recorder,
        running_door(tmp_path, internal=(f"{HOST}:{recorder.port}",), known=KNOWN, **site.seen.settings) as door,
    ):
        with site.inside(door, recorder.port) as connection:
            connection.sendall(f"GET / HTTP/1.1\r\nHost: {HOST}:{recorder.port}\r\n\r\n".encode())
            before = -1
            while len(recorder.data) != before:  # nobody reads: the sender is held up
                before = len(recorder.data)
                time.sleep(0.5)
            assert before < 64, f"{before} MB are on their way"
            taken = 0
            while taken < size:
                piece = connection.recv(1 << 20)
                assert piece
                taken += len(piece)
        peak = next(
            int(line.split()[1])
            for line in Path(f"/proc/{pid_of(door)}/status").read_text().splitlines()
            if line.startswith("VmHWM")
        )
        assert peak < 200_000, f"{peak} kB"


def test_a_full_log_closes_open_tunnels_too(site: Site, tmp_path: Path) -> None:
    with (
        server(tls=site.tls()) as recorder,
        running_door(tmp_path, internal=(f"{HOST}:{recorder.port}",), **site.seen.settings) as door,
        site.inside(door, recorder.port) as connection,
    ):
        door.context._sizes["web"] = 512 * 2**20
        connection.sendall(f"GET / HTTP/1.1\r\nHost: {HOST}:{recorder.port}\r\n\r\n".encode())
        assert b"503" in read_until_quiet(connection)
        assert not recorder.data


def test_what_is_missing_is_said_before_a_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from posttrainbench.errors import ConfigurationError

    monkeypatch.setenv("PTB_MITM_ENV", str(tmp_path / "none"))
    assert intercept_install.installed() is None
    with pytest.raises(ConfigurationError, match="ptb doors install"):
        intercept_install.require()
    monkeypatch.setenv("PTB_MITM_PYTHON", "/bin/false")
    with pytest.raises(ConfigurationError, match="PTB_MITM_PYTHON"):
        intercept_install.require()
    with pytest.raises(ConfigurationError, match=r"Python 3\.12"):
        intercept_install.install()


def test_what_a_killed_installation_left_goes_with_the_next(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A Python that is suitable by its own word, and makes no environment: killed at it, then refused."""
    from posttrainbench.errors import InfrastructureError

    monkeypatch.setenv("PTB_MITM_ENV", str(tmp_path / "doors" / "env"))
    python = tmp_path / "python"
    monkeypatch.setenv("PTB_MITM_PYTHON", str(python))
    python.write_text('#!/bin/sh\n[ "$2" = -c ] && echo 3.12.1 && exit\necho here >"$4/part"; kill -9 $PPID\n')
    python.chmod(0o755)
    command = "from posttrainbench.gateway import intercept_install; intercept_install.install()"
    assert subprocess.run([sys.executable, "-c", command], check=False).returncode == -9
    assert [path.name for path in (tmp_path / "doors").rglob("*") if path.is_file()] == ["part"]
    python.write_text('#!/bin/sh\n[ "$2" = -c ] && echo 3.12.1 && exit\nexit 1\n')
    with pytest.raises(InfrastructureError, match="environment could not be made"):
        intercept_install.install()
    assert list((tmp_path / "doors").iterdir()) == []


def test_memory_does_not_grow_with_what_comes_too_early(site: Site, tmp_path: Path) -> None:
    """A client may send its next requests early; the answer to the first one can take as long as it likes."""
    over = threading.Event()

    def slow(connection: socket.socket, recorder: Recorder) -> None:
        connection.recv(65536)
        over.wait(60)
        connection.sendall(b"HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\nhello")
        recorder.data += read_all(connection)

    with (
        server(slow, tls=site.tls()) as recorder,
        running_door(tmp_path, internal=(f"{HOST}:{recorder.port}",), **site.seen.settings) as door,
        site.inside(door, recorder.port) as connection,
    ):
        connection.sendall(f"GET / HTTP/1.1\r\nHost: {HOST}:{recorder.port}\r\n\r\n".encode())
        connection.settimeout(2)
        sent = 0
        with contextlib.suppress(OSError):
            while sent < 200:
                connection.sendall(bytes(1 << 20))
                sent += 1
        assert sent < 32, f"{sent} MB were taken"
        over.set()
        connection.settimeout(20)
        assert read_until_quiet(connection).endswith(b"hello")


@pytest.mark.parametrize(
    "headers",
    [
        b"X: a\r\n Transfer-Encoding: chunked\r\n",
        b"X: a\rTransfer-Encoding: chunked\r\n",
        b"X: a\0b\r\n",
    ],
    ids=["folded", "bare-cr", "nul"],
)
def test_headers_that_others_read_differently(
    site: Site, limited: tuple[RunningDoor, Recorder], headers: bytes
) -> None:
    door, recorder = limited
    raw = f"POST / HTTP/1.1\r\nHost: {HOST}:{recorder.port}\r\nContent-Length: 3\r\n".encode() + headers
    assert b"400" in site.ask(door, recorder.port, raw + b"\r\nabc").split(b"\r\n")[0]
    assert not recorder.data
    assert [line["rule"] for line in requests(door, 0)] == ["malformed"]


def test_a_method_that_is_none(site: Site, limited: tuple[RunningDoor, Recorder]) -> None:
    door, recorder = limited
    raw = b"G\xff\xffT / HTTP/1.1\r\nHost: %s:%d\r\n\r\n" % (HOST.encode(), recorder.port)
    assert b"400" in site.ask(door, recorder.port, raw).split(b"\r\n")[0]
    assert not recorder.data


def test_a_path_of_bytes_that_are_long_in_messages(site: Site, limited: tuple[RunningDoor, Recorder]) -> None:
    door, recorder = limited
    raw = b"GET /%s HTTP/1.1\r\nHost: %s:%d\r\n\r\n" % (b"\xff" * 60_000, HOST.encode(), recorder.port)
    assert b"414" in site.ask(door, recorder.port, raw).split(b"\r\n")[0]
    [line] = requests(door, 0)
    assert line["rule"] == "malformed" and not recorder.data


def test_what_mitmproxy_cannot_do_ends_the_tunnel(site: Site, limited: tuple[RunningDoor, Recorder]) -> None:
    """Trailers of a request; it stayed open without an answer until the silence was too long."""
    door, recorder = limited
    raw = f"POST / HTTP/1.1\r\nHost: {HOST}:{recorder.port}\r\nTransfer-Encoding: chunked\r\n\r\n0\r\nX: y\r\n\r\n"
    with site.inside(door, recorder.port) as connection:
        connection.settimeout(15)
        connection.sendall(raw.encode())
        with contextlib.suppress(ConnectionError, ssl.SSLError):
            assert connection.recv(100) == b""
    [line] = requests(door, 0)
    assert line["error"]


@pytest.mark.parametrize("secure", [True, False], ids=["https", "http"])
def test_no_encoding_is_asked_for_that_nobody_undoes(site: Site, tmp_path: Path, secure: bool) -> None:
    with (
        server(tls=site.tls() if secure else None) as recorder,
        running_door(tmp_path, internal=(f"{HOST}:{recorder.port}",), known=KNOWN, **site.seen.settings) as door,
    ):
        base = f"{'https' if secure else 'http'}://{HOST}:{recorder.port}"
        site.curl(door, "-H", "Accept-Encoding: dcb, xz;q=0.5, br, deflate, gzip;q=1.0, *", f"{base}/one")
        site.curl(door, "-H", "Accept-Encoding: compress", f"{base}/two")
        heads = bytes(recorder.data).lower().split(b"\r\n")
    first = b"br, gzip;q=1.0" if secure else b"gzip;q=1.0"
    assert [line for line in heads if line.startswith(b"accept-encoding")] == [
        b"accept-encoding: " + first,
        b"accept-encoding: identity",
    ]


def test_small_packed_files_that_unpack_to_much_take_little_time() -> None:
    head = io.BytesIO()
    with tarfile.open(fileobj=head, mode="w") as archive:
        archive.addfile(tarfile.TarInfo("empty"))
    body = gzip.compress(head.getvalue()[:512] + bytes(64 << 20))
    began = time.process_time()
    look = Recogniser(frozenset(KNOWN), size=len(body))
    look.feed(body)
    assert not look.end()
    assert time.process_time() - began < 4

"""How fast files come through the doors of the gateway, against the same download without one, in the same run.

    python benchmarks/doors.py [--sizes 1,16,256,1024] [--streams 1,4] [--rounds 3] [--starts 20]
                               [--podman-image IMAGE] [--docker-image IMAGE]

The server is a process of this script on loopback, with TLS; the client is curl (`--http1.1` and `--http2`). The peer is the
same curl against the same server, on the host: a sandbox has no way out but a door. Both take turns in every round, and the
best of each counts, because other work on the machine can only slow one down. MB are 10^6 bytes; memory is the peak (VmHWM)
of the gateway's process and, where there is one, the interceptor's. The hub door is measured from the host's cache and from
a hub on loopback; its peer is the same file from that hub, over TLS.

"CPU s/GB" is the time that the door's own processes need: a machine with cores to spare loses none of its speed to it, one
whose cores are taken by the server and the client does.

With `--pace 0,450` each table is made twice: with a server that sends as fast as it can, where all processes compete for the
cores (curl and the server alone fill two), and with one that sends 450 MB/s to each connection, as much as a
direct download had on the machine of the first measurements.

Targets: 80 % of the peer where tunnels are passed on, 45 % where they are looked into, in each case at the largest size.
Last, how long each sandbox takes to start and stop around /bin/true.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import shutil
import socket
import ssl
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path

from posttrainbench.errors import PTBError
from posttrainbench.gateway import Gateway, GatewayConfig, Secrets, intercept_install
from posttrainbench.gateway.hub_config import HubConfig
from posttrainbench.gateway.web_config import WebConfig
from posttrainbench.sandbox import Limits, Spec, get_backend

HOST = "localhost"
PASSED_ON, LOOKED_INTO = 0.80, 0.45
REPOSITORY, COMMIT = "bench/files", "c" * 40
_BLOCK = 2**20


# the server


def serve(certificate: str, control: socket.socket) -> None:
    """Answer `GET /BYTES` with that many bytes, and the questions of the hub's client; a thread per connection."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(certificate)
    listener = socket.create_server((HOST, 0), backlog=64)
    control.sendall(str(listener.getsockname()[1]).encode())
    block = memoryview(os.urandom(_BLOCK))
    hashes: dict[int, str] = {}

    def one(plain: socket.socket) -> None:
        try:
            plain.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            with context.wrap_socket(plain, server_side=True) as connection:
                data = b""
                while True:
                    while b"\r\n\r\n" not in data:
                        if not (piece := connection.recv(65536)):
                            return
                        data += piece
                    head, _, data = data.partition(b"\r\n\r\n")
                    answer(connection, head.decode())
        except OSError:
            return

    def answer(connection: ssl.SSLSocket, head: str) -> None:
        method, path, _ = head.split("\r\n")[0].split(" ")
        name = path.partition("?")[0].rsplit("/", 1)[-1]
        if path.startswith("/api/"):
            told = {"id": REPOSITORY, "sha": COMMIT, "siblings": [], "tags": [], "cardData": {}}
            body = json.dumps(told if "/tree/" not in path and "/paths-info/" not in path else []).encode()
            connection.sendall(
                b"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nContent-Length: %d\r\n\r\n" % len(body) + body
            )
            return
        size = int(name.partition(".")[0]) if name.partition(".")[0].isdigit() else 0
        extra = ""
        if "/resolve/" in path:
            if size not in hashes:
                hashes[size] = content_hash(block, size)
            extra = f'X-Repo-Commit: {COMMIT}\r\nETag: "{hashes[size]}"\r\n'
        if not size:
            connection.sendall(b"HTTP/1.1 404 Not Found\r\nContent-Length: 0\r\n\r\n")
            return
        connection.sendall(f"HTTP/1.1 200 OK\r\n{extra}Content-Length: {size}\r\n\r\n".encode())
        pace = float(path.partition("pace=")[2] or "inf") * 1e6
        began, sent = time.monotonic(), 0
        while sent < size and method == "GET":
            part = block[: min(size - sent, _BLOCK)]
            connection.sendall(part)
            sent += len(part)
            time.sleep(max(0.0, began + sent / pace - time.monotonic()))

    while True:
        plain, _ = listener.accept()
        threading.Thread(target=one, args=(plain,), daemon=True).start()


def content_hash(block: memoryview, size: int) -> str:
    """SHA-256 of a file of the server's."""
    found = hashlib.sha256()
    while size:
        part = block[: min(size, _BLOCK)]
        found.update(part)
        size -= len(part)
    return found.hexdigest()


HTTP2 = """
const http2 = require('http2'), fs = require('fs');
const pem = fs.readFileSync(process.argv[1]);
const block = require('crypto').randomBytes(1 << 18);
const server = http2.createSecureServer({key: pem, cert: pem, allowHTTP1: true}, (request, answer) => {
  let left = parseInt(request.url.slice(1));
  answer.writeHead(200, {'content-length': left});
  const more = () => {
    while (left > 0) {
      const part = left >= block.length ? block : block.subarray(0, left);
      left -= part.length;
      if (!answer.write(part)) { answer.once('drain', more); return; }
    }
    answer.end();
  };
  more();
});
server.listen(0, '127.0.0.1', () => console.log(server.address().port));
"""


@contextmanager
def servers(directory: Path) -> Iterator[tuple[int, int | None]]:
    """Both servers; the ports for HTTP/1 and, where node is here, HTTP/2."""
    pem = str(directory / "server.pem")
    subject = ["-days", "2", "-subj", f"/CN={HOST}", "-addext", f"subjectAltName=DNS:{HOST}"]
    key = ["-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes"]
    files = ["-keyout", pem, "-out", f"{pem}.crt"]
    subprocess.run(["openssl", "req", "-x509", *key, *subject, *files], check=True, capture_output=True)
    with Path(pem).open("a") as file:
        file.write(Path(f"{pem}.crt").read_text())
    ours, theirs = socket.socketpair()
    argv = [sys.executable, __file__, "--serve", pem, str(theirs.fileno())]
    with ExitStack() as closing:
        first = subprocess.Popen(argv, pass_fds=[theirs.fileno()])
        closing.callback(first.wait)
        closing.callback(first.kill)
        theirs.close()
        plain = int(ours.recv(16))
        second = None
        if node := shutil.which("node"):
            found = subprocess.Popen([node, "-e", HTTP2, pem], stdout=subprocess.PIPE, text=True)
            closing.callback(found.wait)
            closing.callback(found.kill)
            assert found.stdout is not None
            second = int(found.stdout.readline())
        yield plain, second


# the doors


@dataclass
class Door:
    """A gateway that listens."""

    gateway: Gateway
    url: str

    def processes(self) -> list[str]:
        """The gateway, and what it has started."""
        process = self.gateway._process
        assert process is not None
        return [str(process.pid), *Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text().split()]

    def busy(self) -> float:
        """CPU seconds so far."""
        ticks = 0
        for pid in self.processes():
            fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
            ticks += int(fields[11]) + int(fields[12])
        return ticks / os.sysconf("SC_CLK_TCK")

    def peak(self) -> str:
        """Peak memory of its processes, in MB."""
        found = []
        for pid in self.processes():
            lines = Path(f"/proc/{pid}/status").read_text().splitlines()
            found.append(next(int(line.split()[1]) * 1024 / 1e6 for line in lines if line.startswith("VmHWM")))
        return " + ".join(f"{each:.0f}" for each in found)


@contextmanager
def door(directory: Path, config: GatewayConfig, secrets: Secrets | None = None) -> Iterator[Door]:
    """Start a gateway."""
    with (
        Gateway(config, secrets or Secrets(), directory) as gateway,
        socket.create_server(("127.0.0.1", 0), backlog=64) as listener,
    ):
        gateway.adopt(listener)
        yield Door(gateway, f"http://127.0.0.1:{listener.getsockname()[1]}")


Fetch = Callable[[int], Sequence[str]]


def curl(certificate: str, *options: str) -> Sequence[str]:
    return ["curl", "-sS", "--fail", "-o", "/dev/null", "--cacert", certificate, *options]


def rate(fetch: Fetch, size: int, streams: int) -> float:
    """MB/s of so many downloads at a time."""
    began = time.monotonic()
    running = [subprocess.Popen(fetch(size), env={"PATH": os.environ["PATH"]}) for _ in range(streams)]
    codes = [each.wait() for each in running]
    if any(codes):
        raise SystemExit(f"{' '.join(fetch(size))}: exit status {codes}")
    return size * streams / (time.monotonic() - began) / 1e6


def compare(
    name: str, peer: Fetch, ours: Fetch, found: Door, options: argparse.Namespace, target: float | None
) -> None:
    """Print one table."""
    print(f"\n{name}")
    print(
        f"{'MB':>6} {'streams':>8} {'direct MB/s':>12} {'door MB/s':>11} {'door/direct':>12} {'CPU s/GB':>9}  peak MB"
    )
    for size in options.sizes:
        for streams in options.streams:
            rates: tuple[list[float], list[float]] = ([], [])
            before = found.busy()
            for _ in range(options.rounds):
                for which, fetch in enumerate((peer, ours)):
                    rates[which].append(rate(fetch, size, streams))
            busy = (found.busy() - before) / (size * streams * options.rounds / 1e9)
            direct, through = max(rates[0]), max(rates[1])
            judged = ""
            if target is not None and size == max(options.sizes):
                judged = f"  {'meets' if through >= target * direct else 'MISSES'} {target:.0%}"
            print(
                f"{size / 1e6:>6.0f} {streams:>8} {direct:>12.0f} {through:>11.0f} {through / direct:>12.0%} {busy:>9.2f}  "
                f"{found.peak()}{judged}",
                flush=True,
            )


def measure(options: argparse.Namespace) -> None:
    """All doors."""
    with ExitStack() as closing:
        directory = Path(closing.enter_context(tempfile.TemporaryDirectory(prefix="ptb-doors-")))
        plain, second = closing.enter_context(servers(directory))
        crt = str(directory / "server.pem.crt")
        os.environ["SSL_CERT_FILE"] = crt  # the gateway judges servers by it
        internal = tuple(f"{HOST}:{port}" for port in (plain, second) if port)

        def direct(port: int, *how: str, pace: int = 0, trust: str = crt) -> Fetch:
            asked = f"?pace={pace}" if pace else ""
            return lambda size: [*curl(trust, *how), f"https://{HOST}:{port}/{size}{asked}"]

        if "web" in options.doors:
            web = WebConfig(internal=internal).to_json()
            for pace in options.pace:
                with door(directory / f"passthrough-{pace}", GatewayConfig(web=web)) as found:
                    through = ("--http1.1", "--proxy", found.url)
                    compare(
                        f"web door, tunnels passed on (peer: curl without a proxy, HTTP/1.1{paced(pace)})",
                        direct(plain, "--http1.1", pace=pace),
                        direct(plain, *through, pace=pace),
                        *(found, options, PASSED_ON),
                    )
        if "intercept" in options.doors:
            try:
                engine = intercept_install.require()
            except PTBError as error:
                print(f"\nweb door, tunnels looked into: not measured: {error}")
                engine = None
        else:
            engine = None
        if engine is not None:
            authority = intercept_install.new_authority(engine, "benchmark")
            own = directory / "door.crt"
            own.write_text(authority["certificate"])
            settings = {"tls": "intercept", "engine": str(engine.path), "known": ("0" * 64,)}
            web = WebConfig(internal=internal, **settings).to_json()  # type: ignore[arg-type]
            kinds = [("HTTP/1.1", plain, "--http1.1", pace) for pace in options.pace]
            for name, port, how, pace in (
                *kinds,
                ("HTTP/2, which the door answers with HTTP/1.1", second, "--http2", 0),
            ):
                if port is None:
                    print(f"\nweb door, tunnels looked into, {name}: not measured: no node for the server")
                    continue
                place = directory / f"{how}-{pace}"
                with door(place, GatewayConfig(web=web), Secrets(authority=authority)) as found:
                    compare(
                        f"web door, tunnels looked into (peer: curl without a proxy, {name}{paced(pace)})",
                        direct(port, how, pace=pace),
                        direct(port, how, "--proxy", found.url, pace=pace, trust=str(own)),
                        *(found, options, LOOKED_INTO),
                    )
        if "hub" in options.doors:
            hub(directory, crt, plain, options)


def paced(pace: int) -> str:
    """The server's speed in words."""
    return f", a server that sends {pace} MB/s to each" if pace else ""


def hub(directory: Path, crt: str, port: int, options: argparse.Namespace) -> None:
    """The hub door, from a hub on loopback and from the host's cache."""
    cache = directory / "cache"
    block = memoryview(os.urandom(_BLOCK))
    folder = cache / f"models--{REPOSITORY.replace('/', '--')}"
    snapshot = folder / "snapshots" / COMMIT
    for each in (folder / "blobs", folder / "refs", snapshot):
        each.mkdir(parents=True)
    (folder / "refs" / "main").write_text(COMMIT)
    for size in options.sizes:
        blob = folder / "blobs" / content_hash(block, size)
        with blob.open("wb") as file:
            for start in range(0, size, _BLOCK):
                file.write(block[: min(_BLOCK, size - start)])
        (snapshot / f"{size}.bin").symlink_to(blob)
    target = f"/{REPOSITORY}/resolve/main/"
    for name, place in (("upstream", ""), ("cache", str(cache))):
        settings = HubConfig(policy="open", upstream=f"https://{HOST}:{port}", cache=place).to_json()
        with door(directory / f"hub-{name}", GatewayConfig(hub=settings)) as found:
            peer: Fetch = lambda size: [*curl(crt, "--http1.1"), f"https://{HOST}:{port}{target}{size}.bin"]  # noqa: E731
            ours: Fetch = lambda size, found=found: [*curl(crt), f"{found.url}/hub{target}{size}.bin"]  # noqa: E731
            compare(f"hub door, from {name} (peer: curl from that hub over TLS)", peer, ours, found, options, None)


# the sandboxes


def starts(options: argparse.Namespace) -> None:
    """Start and stop of each back end."""
    print(f"\nstart and stop around /bin/true, ms (n={options.starts})")
    for name, image in (("bubblewrap", None), ("podman", options.podman_image), ("docker", options.docker_image)):
        try:
            backend = get_backend(name, image=image)
            problem = next((f"{check.name}: {check.detail}" for check in backend.preflight() if not check.ok), None)
        except PTBError as error:
            problem = str(error)
        if problem:
            print(f"{name:>12}  not measured: {problem}")
            continue
        times = []
        for _ in range(options.starts):
            began = time.monotonic()
            backend.run(Spec(argv=["/bin/true"], limits=Limits(wall_s=60, grace_s=0)))
            times.append((time.monotonic() - began) * 1000)
        print(
            f"{name:>12}  median {statistics.median(times):.0f}  min {min(times):.0f}  max {max(times):.0f}", flush=True
        )


def main() -> None:
    """Measure what the arguments say."""
    if sys.argv[1:2] == ["--serve"]:
        serve(sys.argv[2], socket.socket(fileno=int(sys.argv[3])))
        return
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)

    def numbers(text: str) -> list[int]:
        return [int(part) for part in text.split(",")]

    parser.add_argument(
        "--sizes",
        type=lambda text: [n * 10**6 for n in numbers(text)],
        default=numbers("1000000,16000000,256000000,1024000000"),
        metavar="MB,MB",
    )
    parser.add_argument("--streams", type=numbers, default=[1, 4], metavar="N,N")
    parser.add_argument("--pace", type=numbers, default=[0, 450], metavar="MB/s,MB/s")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--doors", type=lambda text: text.split(","), default=["web", "intercept", "hub"])
    parser.add_argument("--starts", type=int, default=20)
    parser.add_argument("--podman-image")
    parser.add_argument("--docker-image")
    options = parser.parse_args()
    print(f"{os.cpu_count()} cores, load {os.getloadavg()[0]:.1f}; best of {options.rounds} rounds in turns")
    if options.doors != ["none"]:
        measure(options)
    if options.starts:
        starts(options)


if __name__ == "__main__":
    main()

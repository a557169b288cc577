"""The host's side of the attempts: what they are tried against, and whether anything of it has changed.

Also a program, `python escapes_host.py ORDERS.json HOME`, which starts the sandbox as whoever runs it: the tests run it as an
ordinary user. Standard library and posttrainbench only, because that user has no test packages.
"""

# ruff: noqa: PTH208
# system calls are what is tried here, not paths

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import secrets
import socket
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from posttrainbench.sandbox import Backend, Limits, Result, Spec

PROGRAM = Path(__file__).parent / "escapes"
START = (
    "import sys, runpy; sys.path.insert(0, {0!r}); sys.argv = ['escapes', {1!r}]; "
    "runpy.run_module('escapes', run_name='__main__', alter_sys=False)"
)
_SETTINGS = (
    *("kernel/hostname", "kernel/domainname", "kernel/core_pattern", "kernel/modprobe", "kernel/sysrq", "fs/file-max"),
    *("vm/overcommit_memory", "net/ipv4/ip_unprivileged_port_start", "user/max_user_namespaces"),
    *("fs/suid_dumpable", "kernel/printk", "vm/swappiness"),
)


def shadow() -> str:
    """SHA-256 of the host's passwords; of nothing where we cannot read them either."""
    with contextlib.suppress(OSError):
        return hashlib.sha256(Path("/etc/shadow").read_bytes()).hexdigest()
    return ""


def digest(path: Path) -> str:
    """Kind, mode, owner, time and content of a file or directory, links as such."""
    status = path.lstat()
    content = b""
    with contextlib.suppress(OSError):
        content = path.read_bytes() if path.is_file() else b""
    what = (status.st_mode, status.st_uid, status.st_gid, status.st_mtime_ns, status.st_nlink, status.st_size)
    return f"{what} {hashlib.sha256(content).hexdigest()[:16]}"


@dataclass
class Host:
    """A host with a server, sockets, a secret file and a base model, and a memory of how it was.

    Attributes:
        token: stands in everything that attempts leave, so that it can be looked for.
        orders: what the attempts need to know.
    """

    base: Path
    token: str = field(default_factory=lambda: f"ptbesc{secrets.token_hex(6)}")
    orders: dict[str, Any] = field(default_factory=dict)
    reached: list[str] = field(default_factory=list)
    clock: float = field(default_factory=lambda: time.time() - time.monotonic())

    @contextlib.contextmanager
    def standing(self) -> Iterator[Host]:
        """Open the host's sockets and remember its state; closes the sockets at the end."""
        # not below the results: the agent's own directories are there
        place = self.base / "host"
        place.mkdir(mode=0o755)
        (place / "secret").write_text(f"secret of the host {self.token}\n")
        (place / "secret").chmod(0o644)
        with contextlib.ExitStack() as stack:
            servers = {"tcp": stack.enter_context(socket.create_server(("127.0.0.1", 0)))}
            port = servers["tcp"].getsockname()[1]
            with contextlib.suppress(OSError):  # no IPv6, or the port is taken there
                servers["tcp6"] = stack.enter_context(socket.create_server(("::1", port), family=socket.AF_INET6))
            for name, address in (("unix", str(place / "socket")), ("abstract", "\0" + self.token)):
                servers[name] = stack.enter_context(socket.socket(socket.AF_UNIX))
                servers[name].bind(address)
                servers[name].listen()
            (place / "socket").chmod(0o666)
            os.environ["PTB_TEST_CANARY"] = f"sk-{self.token}"
            stack.callback(os.environ.pop, "PTB_TEST_CANARY", None)
            self.orders = {
                "port": port,
                "token": self.token,
                "abstract": self.token,
                "socket": str(place / "socket"),
                "secret": str(place / "secret"),
                "results": str(self.base),
                "needles": [f"sk-{self.token}", str(self.base)],
                "pid": os.getpid(),
                "key": int(self.token[-6:], 16) + 1,
                "gateway": False,
                "leave": False,
                "shadow": shadow(),
            }
            before = self.state()
            yield self
            for name, server in servers.items():
                server.setblocking(False)
                with contextlib.suppress(BlockingIOError):
                    server.accept()[0].close()
                    self.reached.append(name)
            self.changes = [
                f"{name}: {before.get(name)} -> {now}" for name, now in self.state().items() if before.get(name) != now
            ]

    def watched(self) -> list[Path]:
        """What must stay as it is, beside the system's files."""
        return [path for name in ("host", "model", "control") for path in (self.base / name).rglob("*")]

    def state(self) -> dict[str, str]:
        """Everything that an attempt aims at and that nobody else changes meanwhile."""
        files = [
            "/etc/passwd",
            "/etc/shadow",
            "/etc/group",
            "/etc/hosts",
            "/etc/resolv.conf",
            "/usr/bin/env",
            "/usr/bin/su",
        ]
        found = {str(path): digest(path) for path in [*map(Path, files), *self.watched()] if path.exists()}
        for name in ("/usr", "/usr/bin", "/etc", "/usr/local/bin", "/"):
            found[f"entries of {name}"] = str([p for p in sorted(os.listdir(name)) if self.token in p])
        for name in _SETTINGS:
            with contextlib.suppress(OSError):
                found[name] = Path("/proc/sys", name).read_text().strip()
        found["hostname"] = socket.gethostname()
        # it may be slewed meanwhile, but not set
        moved = time.time() - time.monotonic() - self.clock
        found["clock"] = "as it was" if abs(moved) < 5 else f"moved by {moved:.0f} s"
        found["swap and modules"] = Path("/proc/swaps").read_text() + str(
            {line.split()[0] for line in Path("/proc/modules").read_text().splitlines()}
            & {"sctp", "dccp", "dummy", "tun"}
            if Path("/proc/modules").exists()
            else ""
        )
        # tests of container engines may make networks of theirs meanwhile
        found["routes"] = str(
            [line for line in Path("/proc/net/route").read_text().splitlines() if line.startswith("lo")]
        )
        found["interfaces"] = str([name for _, name in socket.if_nameindex() if name.startswith("ptbesc")])
        found["mounts"] = str(
            [line for line in Path("/proc/self/mounts").read_text().splitlines() if str(self.base) in line]
        )
        found["left"] = str(self.left())
        return found

    def left(self) -> list[str]:
        """Traces of the token on the host: files, processes, sockets, shared memory, keys."""
        found = []
        for place in ("/tmp", "/dev/shm", "/var/tmp", "/dev", "/run"):
            found += [f"{place}/{name}" for name in os.listdir(place) if self.token in name]
        for pid in filter(str.isdigit, os.listdir("/proc")):
            with contextlib.suppress(OSError):
                if self.token.encode() in Path("/proc", pid, "cmdline").read_bytes() and int(pid) != os.getpid():
                    found.append(f"process {pid}")
        unix = Path("/proc/net/unix").read_text()
        found += ["a socket"] * max(0, unix.count(self.token) - unix.count("@" + self.token))
        with contextlib.suppress(OSError):
            keys = {line.split()[0] for line in Path("/proc/sysvipc/shm").read_text().splitlines()[1:]}
            found += ["shared memory"] * (str(int(self.token[-6:], 16) + 1) in keys)
        with contextlib.suppress(OSError):
            found += ["a key"] * (self.token in Path("/proc/keys").read_text())
        return found


class Listener:
    """Takes the listening socket of a sandbox and answers nobody: enough to see whether it can be taken away."""

    def __init__(self) -> None:
        self.sockets: list[socket.socket] = []

    def adopt(self, listener: socket.socket) -> None:
        """Keep it."""
        self.sockets.append(listener)

    def close(self) -> None:
        """Close all."""
        for listener in self.sockets:
            listener.close()


def prepare(base: Path) -> None:
    """The directories of a run, as `pipeline.solve` gives them to a sandbox."""
    for name in ("home/task", "tmp", "control", "model"):
        (base / name).mkdir(parents=True)
    (base / "control" / "deadline").write_text("2000000000\n")
    (base / "model" / "config.json").write_text("{}\n")
    for name in ("control", "model"):
        (base / name).chmod(0o755)


def as_solve(base: Path, backend: Backend, **fields: Any) -> Spec:
    """A sandbox as `pipeline.solve` sets it up, with `/sys` as it is with a GPU."""
    runtime = backend.runtime()
    given: dict[str, Any] = {
        "cwd": "/home/agent/task",
        "env": {"PATH": f"{runtime.path}:/usr/sbin:/sbin", "HOME": "/home/agent", "PYTHONDONTWRITEBYTECODE": "1"},
        "ro": {**runtime.ro, "/models/base": base / "model", "/run/ptb": base / "control", "/opt/program/escapes": PROGRAM,
               "/sys": Path("/sys")},
        "rw": {"/home/agent": base / "home", "/tmp": base / "tmp"},
        "limits": Limits(wall_s=120, grace_s=1, memory_bytes=1 << 30, processes=400, disk_bytes=1 << 29),
    }  # fmt: skip
    return Spec(**{**given, **fields})


def carry_out(base: Path, orders: dict[str, Any], backend: Backend) -> tuple[Result, dict[str, list[str]], str]:
    """Run all attempts in one sandbox.

    Returns:
        the sandbox's end, the outcome of each attempt by name, and everything that was printed.
    """
    given = base / "orders.json"
    given.write_text(json.dumps({**orders, "model": "/models/base"}))
    given.chmod(0o644)
    listener, output = Listener(), bytearray()
    spec = as_solve(
        base,
        backend,
        argv=[backend.runtime().executable, "-P", "-c", START.format("/opt/program", "/opt/orders.json")],
        listeners={3128: listener.adopt},
    )
    spec = as_solve(
        base,
        backend,
        argv=spec.argv,
        listeners=spec.listeners,
        ro={**spec.ro, "/opt/orders.json": given},
        env={**spec.env, "PYTHONPATH": os.environ.get("PYTHONPATH", "")},
    )
    result = backend.run(spec, on_output=output.extend)
    listener.close()
    text = output.decode(errors="replace")
    return result, outcomes_in(text), text


def outcomes_in(text: str) -> dict[str, list[str]]:
    """The outcomes in what the attempts printed."""
    rows = [json.loads(line.removeprefix("ESCAPE ")) for line in text.splitlines() if line.startswith("ESCAPE ")]
    return {row["name"]: row["outcome"] for row in rows}


def main() -> None:
    """As an ordinary user: prints the outcomes as JSON."""
    from posttrainbench.sandbox import get_backend

    orders, base = json.loads(Path(sys.argv[1]).read_text()), Path(sys.argv[2])
    backend = get_backend(sys.argv[3], image=sys.argv[4] or None)
    os.environ["PTB_TEST_CANARY"] = orders["needles"][0]
    orders["pid"] = os.getpid()
    prepare(base)
    result, outcomes, text = carry_out(base, orders, backend)
    ended = {"reason": result.reason, "returncode": result.returncode, "survivors": result.survivors}
    print(json.dumps({"outcomes": outcomes, "end": text[-2000:], **ended}))


if __name__ == "__main__":
    main()

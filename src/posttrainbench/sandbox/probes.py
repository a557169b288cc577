"""Negative tests of a sandbox back end: one sandbox that tries to get out, with the host watching from outside.

Run by `ptb doctor` and before each run, whose record keeps the outcome. Takes about half a second.
"""

from __future__ import annotations

import json
import os
import random
import secrets
import socket
import time
from pathlib import Path

from posttrainbench.errors import PTBError
from posttrainbench.sandbox import probe_inside
from posttrainbench.sandbox.processes import tasks_of
from posttrainbench.sandbox.spec import Backend, Check, Limits, Result, Spec
from posttrainbench.scratch import Scratch

_PROCESSES = 40
_MEMORY = 96 << 20
_WORK = "/home/agent/probe"
_READ_ONLY = "/opt/ptb-probe"
_AGAIN_S = (1.0, 3.0, 6.0)
_FIX = "do not run untrusted agents on this machine; report this with the output of ptb doctor --json"


def probe(backend: Backend) -> list[Check]:
    """Try the contract of docs/security.md on this machine.

    Returns:
        One check per property. A back end that cannot start gives one failed check with its message.
    """
    checks = _probe(backend)
    for wait in _AGAIN_S:
        if not _crowded(checks):
            break
        time.sleep(wait * random.uniform(0.5, 1.5))
        checks = _probe(backend)
    return checks


def _crowded(checks: list[Check]) -> bool:
    """Whether the probe itself could not fork. Where only RLIMIT_NPROC limits processes, other runs of the same user,
    which may be at their own probes, count too: seen with six cells that began at once in an HTCondor pool."""
    said = ("Resource temporarily unavailable", "could not be started, so nothing was tried")
    return any(not check.ok and text in check.detail for check in checks for text in said)


def _probe(backend: Backend) -> list[Check]:
    try:
        scratch = Scratch("probe")
    except PTBError as error:
        return [Check(name="sandbox starts", ok=False, detail=str(error))]
    folder = scratch.path
    canary = f"canary-{secrets.token_hex(8)}"
    abstract = f"ptb-probe-{secrets.token_hex(8)}"
    try:
        folder.chmod(0o755)
        for name in ("work", "fixed"):
            (folder / name).mkdir()
        # What leaks from a harness is what its children inherit; so this goes where API keys are.
        os.environ["PTB_PROBE_CANARY"] = canary
        with (
            socket.create_server(("127.0.0.1", 0)) as listener,
            socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as local,
        ):
            local.bind("\0" + abstract)
            local.listen()
            orders = {
                "port": listener.getsockname()[1],
                "abstract": abstract,
                "needles": [canary, str(folder)],
                "read_only": ["/", "/usr", "/etc", _READ_ONLY],
                "heartbeat": f"{_WORK}/heartbeat",
                "processes": _PROCESSES if backend.capabilities().process_limit != "none" else 0,
                # Where only RLIMIT_NPROC counts, the user's other processes come on top of the limit.
                "forks": _PROCESSES + tasks_of(os.geteuid()) + 20,
                "memory": _MEMORY if backend.capabilities().memory_limit != "none" else 0,
            }
            output = bytearray()
            result = backend.run(_spec(backend, folder, orders), on_output=output.extend)
            came_through = _accepted(listener) or _accepted(local)
        return _checks(bytes(output), result, folder, came_through)
    except PTBError as error:
        return [Check(name="sandbox starts", ok=False, detail=str(error))]
    finally:
        os.environ.pop("PTB_PROBE_CANARY", None)
        scratch.close()


def _spec(backend: Backend, folder: Path, orders: dict[str, object]) -> Spec:
    runtime = backend.runtime()
    return Spec(
        argv=[runtime.executable, "-I", "-S", runtime.inside(Path(probe_inside.__file__))],
        cwd=_WORK,
        ro={**runtime.ro, _READ_ONLY: folder / "fixed"},
        rw={_WORK: folder / "work"},
        stdin=json.dumps(orders),
        limits=Limits(wall_s=20, grace_s=0, processes=_PROCESSES, memory_bytes=_MEMORY),
    )


def _accepted(listener: socket.socket) -> bool:
    listener.setblocking(False)
    try:
        listener.accept()[0].close()
    except BlockingIOError:
        return False
    return True


def _checks(output: bytes, result: Result, folder: Path, came_through: bool) -> list[Check]:
    text = output.decode(errors="replace").strip()
    try:
        outcomes: dict[str, list[object]] = json.loads(text.splitlines()[-1])
    except (ValueError, IndexError):
        detail = f"the probe ended with {result.returncode} ({result.reason}): {text[-300:]}"
        return [Check(name="probes", ok=False, detail=detail, fix=_FIX)]
    if came_through:
        outcomes["host loopback"] = [False, "a connection reached the host"]
    owners = {path.stat().st_uid for path in (folder / "work").iterdir()}
    outcomes["uid on the host"] = [0 not in owners and bool(owners), f"files made inside belong to {sorted(owners)}"]
    heartbeat = folder / "work" / "heartbeat"
    if outcomes["surviving daemon"][0]:
        before = heartbeat.stat().st_size
        time.sleep(0.05)  # five beats
        silent = heartbeat.stat().st_size == before
        held = silent and result.survivors == 0
        outcomes["surviving daemon"] = [
            held,
            f"{result.survivors} processes left, dead in {result.teardown_s * 1000:.0f} ms",
        ]
    return [
        Check(name=name, ok=bool(held), detail=str(detail), fix="" if held else _FIX)
        for name, (held, detail) in outcomes.items()
    ]

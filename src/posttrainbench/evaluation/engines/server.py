"""One `vllm serve` process: started, watched and stopped by us, reachable by nobody else.

It listens on 127.0.0.1 at a random port, wants a random key and calls its model by a random name, so that neither can an
answer of another server be taken for its own, nor can another process use it (the reference's binds 0.0.0.0 with a public
key, reference.md 8.10). One server serves all benchmarks and seeds of a model; for another model, or the same directory
with other files, it is stopped and a new one started.
"""

from __future__ import annotations

import atexit
import hashlib
import os
import secrets
import shutil
import signal
import socket
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path

import httpx

from posttrainbench.errors import ConfigurationError, SubmissionError
from posttrainbench.evaluation.retry import EngineError, Failure
from posttrainbench.files import walk_files

HOST = "127.0.0.1"
_POLL_S = 0.5
_STOP_S = 15.0
_PORT_TRIES = 3

_MEMORY_SIGNS = (
    "out of memory",
    "outofmemoryerror",
    "no available memory for the cache blocks",
    "larger than the available kv cache memory",
    "larger than the maximum number of tokens that can be stored in kv cache",
    "less than desired gpu memory utilization",
    "estimated maximum model length",
)
_PORT_SIGNS = ("address already in use",)
# what vLLM says when the directory is at fault; all else that ends it at the start is taken for the machine's fault
_SUBMISSION_SIGNS = (
    "safetensors",
    "are not supported for now",
    "does not appear to have",
    "there is no module or parameter named",
    "weights were not initialized from checkpoint",
    "size mismatch",
    "unrecognized model",
    "can't load tokenizer",
)

# Ends the server when this process dies in any way, and only then becomes the server: a vLLM that survives its harness
# keeps the whole GPU. (A pre-exec function in a process full of threads can deadlock; a small program cannot.)
_BOUND_TO_PARENT = (
    "import ctypes, os, signal, sys\n"
    "ctypes.CDLL(None).prctl(1, signal.SIGTERM)\n"
    "if os.getppid() != int(sys.argv[1]): sys.exit(1)\n"
    "os.execvp(sys.argv[2], sys.argv[2:])\n"
)


def fingerprint(model: Path) -> str:
    """Identity of a model directory's files: real path, names, sizes, inodes and change times.

    The kernel sets change times, so a file that was replaced shows even if its modification time was set back. Reading
    gigabytes of weights for a hash would cost more than the server's start saves.
    """
    digest = hashlib.sha256(str(model.resolve()).encode())
    for path in walk_files(model):
        status = path.stat()
        state = (path.relative_to(model), status.st_size, status.st_ino, status.st_ctime_ns, status.st_mtime_ns)
        digest.update(repr(state).encode())
    return digest.hexdigest()


@dataclass(frozen=True, kw_only=True)
class ServerSpec:
    """What a server is started with; two equal specs may share one server.

    Attributes:
        files: `fingerprint` of the model directory.
        max_sequences: sequences that it runs at once.
        memory_share: fraction of the GPU's memory.
    """

    model: Path
    files: str
    max_sequences: int
    memory_share: float


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind((HOST, 0))
        port: int = probe.getsockname()[1]
        return port


class Server:
    """A running server.

    Args:
        spec: what to serve.
        log: file that its output is appended to.
        start_limit_s: seconds until it must answer.

    Raises:
        ConfigurationError: there is no `vllm` here.
        EngineError: out of memory, not ready in time, ended by itself.
        SubmissionError: it says that the model cannot be loaded.
    """

    def __init__(self, spec: ServerSpec, *, log: Path, start_limit_s: float) -> None:
        program = shutil.which("vllm")
        if program is None:
            raise ConfigurationError(
                "engine 'vllm' needs the program vllm (pip install 'posttrainbench[vllm]'); use --engine transformers"
            )
        self.spec = spec
        self.log = log
        self.key = secrets.token_urlsafe(32)
        self.name = f"ptb-{secrets.token_hex(8)}"
        for attempt in range(1, _PORT_TRIES + 1):
            self.port = _free_port()
            try:
                self._start(program, start_limit_s)
                return
            except EngineError as error:
                # another process took the port between our look and the server's bind
                if attempt == _PORT_TRIES or not any(sign in str(error).lower() for sign in _PORT_SIGNS):
                    raise

    @property
    def url(self) -> str:
        """Base address."""
        return f"http://{HOST}:{self.port}"

    @property
    def headers(self) -> dict[str, str]:
        """What every request must carry."""
        return {"Authorization": f"Bearer {self.key}"}

    @property
    def alive(self) -> bool:
        """Whether the process runs."""
        return self.process.poll() is None

    def _command(self, program: str) -> list[str]:
        return [
            *(sys.executable, "-c", _BOUND_TO_PARENT, str(os.getpid())),
            *(program, "serve", str(self.spec.model)),
            *("--host", HOST, "--port", str(self.port), "--served-model-name", self.name),
            # its defaults instead of the file's: all sampling parameters come with each request
            *("--generation-config", "vllm"),
            *("--max-num-seqs", str(self.spec.max_sequences)),
            *("--gpu-memory-utilization", str(self.spec.memory_share)),
        ]

    def _start(self, program: str, limit_s: float) -> None:
        self.log.parent.mkdir(parents=True, exist_ok=True)
        with self.log.open("ab") as output:
            self._log_start = output.tell()
            self.process = subprocess.Popen(
                self._command(program),
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=subprocess.STDOUT,
                # the key goes by environment: arguments can be read by every process of the machine
                env={**os.environ, "VLLM_API_KEY": self.key, "VLLM_NO_USAGE_STATS": "1", "HF_HUB_OFFLINE": "1"},
                start_new_session=True,
            )
        try:
            self._await_health(limit_s)
        except BaseException:
            self.stop()
            raise

    def _await_health(self, limit_s: float) -> None:
        end = time.monotonic() + limit_s
        # no proxy of the environment may come between
        with httpx.Client(base_url=self.url, headers=self.headers, timeout=5.0, trust_env=False) as client:
            while time.monotonic() < end:
                if not self.alive:
                    raise self._death("while it started")
                try:
                    if client.get("/health").status_code == 200:
                        models = client.get("/v1/models").json()
                        if [entry["id"] for entry in models["data"]] == [self.name]:
                            return
                        raise EngineError(Failure.OTHER, f"another server answers at {self.url}")
                except (httpx.HTTPError, ValueError, KeyError, TypeError):
                    pass  # not up yet
                time.sleep(_POLL_S)
        raise EngineError(Failure.START_TIMEOUT, f"vllm did not answer within {limit_s:.0f} s: {self.last_words()}")

    def said(self) -> str:
        """The end of its output since it was started."""
        with self.log.open("rb") as file:
            size = file.seek(0, os.SEEK_END)
            file.seek(max(self._log_start, size - 50_000))
            return file.read().decode(errors="replace")

    def last_words(self) -> str:
        """The line of its output that says most: the last error, else the last line."""
        lines = [line.strip() for line in self.said().splitlines() if line.strip()]
        errors = [line for line in lines if "error" in line.lower()]
        return (errors or lines or ["no output"])[-1][-300:]

    def _death(self, when: str) -> Exception:
        """The typed error for a process that ended by itself."""
        said = self.said().lower()
        message = f"vllm ended {when} (status {self.process.poll()}): {self.last_words()}"
        if any(sign in said for sign in _MEMORY_SIGNS) or self.process.poll() == -signal.SIGKILL:
            return EngineError(Failure.OUT_OF_MEMORY, message)
        if when == "while it started":
            if any(sign in said for sign in _SUBMISSION_SIGNS):
                return SubmissionError(f"the model does not load: {self.last_words()}")
            return EngineError(Failure.OTHER, message)
        return EngineError(Failure.SERVER_LOST, message)

    def failure(self, error: Exception) -> Exception:
        """The typed error for a request that failed with `error`."""
        # a dying server closes its connections a moment before it ends
        end = time.monotonic() + 2.0
        while self.alive and time.monotonic() < end:
            time.sleep(0.1)
        if not self.alive:
            return self._death("during the evaluation")
        return EngineError(Failure.SERVER_LOST, f"vllm does not answer: {type(error).__name__}: {str(error)[:200]}")

    def stop(self) -> None:
        """End the server and its workers: its own process group, and no other process."""
        for number, patience in ((signal.SIGTERM, _STOP_S), (signal.SIGKILL, _STOP_S)):
            try:
                os.killpg(self.process.pid, number)
            except ProcessLookupError:
                break
            end = time.monotonic() + patience
            while time.monotonic() < end and _group_lives(self.process):
                time.sleep(0.05)
            if not _group_lives(self.process):
                break
        self.process.wait(timeout=_STOP_S)


def _group_lives(process: subprocess.Popen[bytes]) -> bool:
    process.poll()  # reaps the leader, which would otherwise keep the group alive as a zombie
    try:
        os.killpg(process.pid, 0)
    except ProcessLookupError:
        return False
    return True


_running: Server | None = None


def get_server(spec: ServerSpec, *, log: Path, start_limit_s: float) -> Server:
    """The running server if it is one of `spec`; otherwise it is stopped and one is started.

    Raises:
        ConfigurationError, EngineError, SubmissionError: as `Server`.
    """
    global _running
    if _running is not None and _running.alive and _running.spec == spec:
        return _running
    stop_server()
    _running = Server(spec, log=log, start_limit_s=start_limit_s)
    return _running


def stop_server() -> None:
    """Stop the running server, if there is one."""
    global _running
    server, _running = _running, None
    if server is not None:
        server.stop()


atexit.register(stop_server)

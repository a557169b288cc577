"""A stand-in for the `vllm` program: the part of its command line and HTTP interface that the engine uses, on loopback.

vLLM needs a GPU and 5 GB of packages. What must be right on our side is how the process is started, found healthy, asked,
and stopped, and what each of its ways to fail is taken for; those ways are played here, chosen by `FAKE_VLLM_*`:

- `FAKE_VLLM_LOG`: file that gets one line of JSON for the start and for every request;
- `FAKE_VLLM_START`: `memory` (out of memory unless --max-num-seqs is at most 64), `broken` (complains about the weights),
  `crash` (ends without a reason) or `hang` (never healthy);
- `FAKE_VLLM_DIE_AFTER`: ends in the middle of the request with this number, in its first life only.
"""

from __future__ import annotations

import hashlib
import json
import os
import sys
import threading
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any


def _option(name: str) -> str:
    return sys.argv[sys.argv.index(name) + 1]


def _note(**entry: Any) -> None:
    path = os.environ.get("FAKE_VLLM_LOG")
    if path:
        with Path(path).open("a") as file:
            file.write(json.dumps(entry) + "\n")


def answer(prompt: list[int], seed: int, limit: int, stop: list[int]) -> tuple[list[int], str]:
    """Tokens that depend on prompt and seed only; every other answer ends by itself, as vLLM reports it."""
    digest = hashlib.sha256(f"{prompt}{seed}".encode()).digest()
    tokens = [10 + byte for byte in digest][: limit if digest[0] % 2 else min(limit, 5)]
    if len(tokens) < limit:
        return [*tokens, stop[0]], "stop"
    return tokens, "length"


class Handler(BaseHTTPRequestHandler):
    """`/health`, `/v1/models` and `/v1/completions`."""

    protocol_version = "HTTP/1.1"
    count = 0
    lock = threading.Lock()

    def log_message(self, format: str, *args: Any) -> None:
        return

    def _send(self, status: int, value: Any) -> None:
        body = json.dumps(value).encode()
        self.send_response(status)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def _allowed(self) -> bool:
        if self.headers.get("Authorization") == f"Bearer {os.environ['VLLM_API_KEY']}":
            return True
        self._send(401, {"error": "Unauthorized"})
        return False

    def do_GET(self) -> None:
        if self.path == "/health":
            self._send(503 if os.environ.get("FAKE_VLLM_START") == "hang" else 200, {})
        elif self._allowed():
            self._send(200, {"data": [{"id": _option("--served-model-name")}]})

    def do_POST(self) -> None:
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        if not self._allowed():
            return
        with Handler.lock:
            Handler.count += 1
            number = Handler.count
        _note(pid=os.getpid(), path=self.path, body=body)
        die = os.environ.get("FAKE_VLLM_DIE_AFTER")
        mark = Path(os.environ.get("FAKE_VLLM_LOG", "/nonexistent") + ".died")
        if die is not None and number >= int(die) and not mark.exists():
            mark.touch()
            print("ERROR: engine core proc died unexpectedly", flush=True)
            os._exit(1)
        tokens, reason = answer(body["prompt"], body["seed"], body["max_tokens"], body["stop_token_ids"])
        choice = {"text": "", "token_ids": tokens, "finish_reason": reason}
        self._send(200, {"id": "x", "choices": [choice]})


def main() -> None:
    """Play `vllm serve`."""
    _note(
        start=sys.argv[1:],
        pid=os.getpid(),
        group=os.getpgid(0),
        key_in_arguments=os.environ["VLLM_API_KEY"] in sys.argv,
    )
    how = os.environ.get("FAKE_VLLM_START")
    if how == "memory" and int(_option("--max-num-seqs")) > 64:
        print(
            "INFO loading\ntorch.OutOfMemoryError: CUDA out of memory. Tried to allocate 2.00 GiB\nINFO bye", flush=True
        )
        sys.exit(1)
    if how == "broken":
        print("ValueError: There is no module or parameter named 'evil' in Qwen3ForCausalLM", flush=True)
        sys.exit(1)
    if how == "crash":
        print("RuntimeError: CUDA driver initialization failed", flush=True)
        sys.exit(1)
    # a worker of its own, as vLLM has: it must be gone too when the server is stopped
    if os.fork() == 0:
        time.sleep(600)
        os._exit(0)
    ThreadingHTTPServer.request_queue_size = 256
    ThreadingHTTPServer((_option("--host"), int(_option("--port"))), Handler).serve_forever()


if __name__ == "__main__":
    main()

"""A scripted OpenAI-compatible grader on loopback: answers in order, or fails in the ways that services fail."""

from __future__ import annotations

import json
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

RATE_LIMIT = (
    429,
    {"error": {"message": "Rate limit reached, slow down", "type": "requests", "code": "rate_limit_exceeded"}},
)
SERVER_ERROR = (500, {"error": {"message": "The server had an error", "type": "server_error", "code": None}})
QUOTA = (
    429,
    {
        "error": {
            "message": "You exceeded your current quota, please check your plan and billing details.",
            "type": "insufficient_quota",
            "code": "insufficient_quota",
        }
    },
)
AUTH = (
    401,
    {"error": {"message": "Incorrect API key provided", "type": "invalid_request_error", "code": "invalid_api_key"}},
)
REFUSED = (
    400,
    {"error": {"message": "maximum context length exceeded", "type": "invalid_request_error", "code": None}},
)

Reply = str | tuple[int, dict[str, Any]]


class Grader:
    """What the server does, and what it was asked.

    Attributes:
        reply: from a question's text to an answer, or to a status with a body.
        asked: every question, failed ones included.
        peak: most requests in flight at once.
    """

    def __init__(self, reply: Callable[[str], Reply]) -> None:
        self.reply = reply
        self.asked: list[str] = []
        self.paths: list[str] = []
        self.now = self.peak = 0
        self.lock = threading.Lock()
        self.url = ""


def _text(body: dict[str, Any]) -> str:
    """The last message, of a chat completion or of the responses API."""
    items = body.get("messages") or body["input"]
    content = items[-1]["content"]
    return content if isinstance(content, str) else "".join(part["text"] for part in content)


def _body(path: str, text: str, model: str) -> dict[str, Any]:
    if path.endswith("/responses"):
        part = {"type": "output_text", "text": text, "annotations": []}
        message = {"type": "message", "id": "msg_1", "role": "assistant", "status": "completed", "content": [part]}
        return {
            "id": "resp_1",
            "object": "response",
            "created_at": 0,
            "status": "completed",
            "model": model,
            "output": [message],
            "parallel_tool_calls": False,
            "tool_choice": "auto",
            "tools": [],
            "usage": {
                "input_tokens": 10,
                "output_tokens": 5,
                "total_tokens": 15,
                "input_tokens_details": {"cached_tokens": 0},
                "output_tokens_details": {"reasoning_tokens": 0},
            },
        }
    choice = {"index": 0, "message": {"role": "assistant", "content": text}, "finish_reason": "stop"}
    usage = {"prompt_tokens": 10, "completion_tokens": 5, "total_tokens": 15}
    return {"id": "c", "object": "chat.completion", "created": 0, "model": model, "choices": [choice], "usage": usage}


@contextmanager
def grader_server(reply: Callable[[str], Reply]) -> Iterator[Grader]:
    """Serve `reply` at `grader.url` (to be set as OPENAI_BASE_URL)."""
    grader = Grader(reply)

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def log_message(self, format: str, *args: Any) -> None:
            return

        def do_POST(self) -> None:
            body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
            question = _text(body)
            with grader.lock:
                grader.asked.append(question)
                grader.paths.append(self.path)
                grader.now += 1
                grader.peak = max(grader.peak, grader.now)
                said = grader.reply(question)
            status, value = (200, _body(self.path, said, body["model"])) if isinstance(said, str) else said
            raw = json.dumps(value).encode()
            with grader.lock:
                grader.now -= 1
            self.send_response(status)
            self.send_header("Content-Type", "application/json")
            self.send_header("Content-Length", str(len(raw)))
            if status == 429:
                self.send_header("Retry-After", "0.01")
            self.end_headers()
            self.wfile.write(raw)

    class Server(ThreadingHTTPServer):
        daemon_threads = True
        request_queue_size = 256  # many connect at once; the default of 5 would refuse some

    server = Server(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    grader.url = f"http://127.0.0.1:{server.server_address[1]}/v1"
    try:
        yield grader
    finally:
        server.shutdown()
        server.server_close()

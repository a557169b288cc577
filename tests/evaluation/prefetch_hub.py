"""A model hub on loopback: enough of its protocol for listing and downloading, and for failing as hubs and networks do."""

from __future__ import annotations

import hashlib
import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from urllib.parse import urlsplit

COMMIT = "c" * 40


@dataclass
class Hub:
    """Its repositories and what goes wrong.

    Attributes:
        files: `org/name` or `datasets/org/name` -> path -> content.
        gated: repositories whose licence has not been accepted.
        large: paths stored as large files (listed with a SHA-256).
        cut: path -> bytes after which the connection breaks, once.
        lies: path -> content that is sent instead of what the listing says.
        got: method, path and range of every request for a file.
    """

    files: dict[str, dict[str, bytes]]
    gated: set[str] = field(default_factory=set)
    large: set[str] = field(default_factory=set)
    cut: dict[str, int] = field(default_factory=dict)
    lies: dict[str, bytes] = field(default_factory=dict)
    got: list[tuple[str, str, str | None]] = field(default_factory=list)
    url: str = ""


def _entry(hub: Hub, path: str, content: bytes) -> dict[str, Any]:
    oid = hashlib.sha1(b"blob %d\0" % len(content) + content).hexdigest()
    found: dict[str, Any] = {"type": "file", "path": path, "size": len(content), "oid": oid}
    if path in hub.large:
        found["lfs"] = {"oid": hashlib.sha256(content).hexdigest(), "size": len(content), "pointerSize": 130}
    return found


def _handler(hub: Hub) -> type[BaseHTTPRequestHandler]:
    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def log_message(self, format: str, *args: Any) -> None:
            return

        def _send(self, status: int, body: bytes, headers: dict[str, str], length: int | None = None) -> None:
            self.send_response(status)
            for name, value in {"X-Repo-Commit": COMMIT, **headers}.items():
                self.send_header(name, value)
            self.send_header("Content-Length", str(len(body) if length is None else length))
            self.end_headers()
            if self.command != "HEAD":
                self.wfile.write(body)

        def _json(self, value: Any, status: int = 200, **headers: str) -> None:
            self._send(status, json.dumps(value).encode(), {"Content-Type": "application/json", **headers})

        def _refused(self, key: str) -> bool:
            if key in hub.gated:
                self._send(
                    403, b"{}", {"X-Error-Code": "GatedRepo", "X-Error-Message": f"Access to {key} is restricted"}
                )
                return True
            if key not in hub.files:
                self._send(404, b"{}", {"X-Error-Code": "RepoNotFound", "X-Error-Message": "Repository not found"})
                return True
            return False

        def do_HEAD(self) -> None:
            self.do_GET()

        def do_GET(self) -> None:
            parts = urlsplit(self.path).path.strip("/").split("/")
            if parts[0] == "files":
                self._file(hub.files["files"], "/".join(parts[1:]))
            elif parts[0] == "api":
                prefix = "datasets/" if parts[1] == "datasets" else ""
                self._api(prefix + "/".join(parts[2:4]), parts[4:])
            elif "resolve" in parts:
                place = parts.index("resolve")
                key = "/".join(parts[:place])
                if not self._refused(key):
                    self._file(hub.files[key], "/".join(parts[place + 2 :]))
            else:
                self._json({}, 404)

        def _api(self, key: str, rest: list[str]) -> None:
            # a gated repository shows its name and commit to everybody, and its files to nobody
            if rest[:1] != ["tree"]:
                if key in hub.files:
                    commit = rest[1] if len(rest) > 1 else COMMIT
                    self._json({"id": key.removeprefix("datasets/"), "sha": commit, "siblings": [], "tags": []})
                else:
                    self._refused(key)
            elif not self._refused(key):
                self._json([_entry(hub, path, content) for path, content in hub.files[key].items()])

        def _file(self, files: dict[str, bytes], path: str) -> None:
            asked = self.headers.get("Range")
            hub.got.append((self.command, path, asked))
            if path not in files:
                self._json({}, 404, **{"X-Error-Code": "EntryNotFound"})
                return
            content = hub.lies.get(path, files[path])
            listed = _entry(hub, path, files[path])
            headers = {"ETag": f'"{listed["oid"]}"', "Accept-Ranges": "bytes"}
            if "lfs" in listed:
                headers |= {"X-Linked-Etag": f'"{listed["lfs"]["oid"]}"', "X-Linked-Size": str(listed["size"])}
            begin = int(asked.removeprefix("bytes=").split("-")[0]) if asked else 0
            if begin:
                headers["Content-Range"] = f"bytes {begin}-{len(content) - 1}/{len(content)}"
            body = content[begin:]
            if self.command == "GET" and path in hub.cut:
                # promise all, send a part, break off
                self._send(206 if begin else 200, body[: hub.cut.pop(path)], headers, length=len(body))
                self.close_connection = True
                return
            self._send(206 if begin else 200, body, headers)

    return Handler


@contextmanager
def hub_server(hub: Hub) -> Iterator[Hub]:
    """Serve `hub` at `hub.url`."""
    server = ThreadingHTTPServer(("127.0.0.1", 0), _handler(hub))
    server.daemon_threads = True
    threading.Thread(target=server.serve_forever, daemon=True).start()
    hub.url = f"http://127.0.0.1:{server.server_address[1]}"
    try:
        yield hub
    finally:
        server.shutdown()
        server.server_close()

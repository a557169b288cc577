"""Tricks at the gateway: each asks for what the policy refuses, in a way that might be read differently."""

from __future__ import annotations

import re
import socket

from .common import ORDERS, Escaped, add

_CONNECT = "CONNECT {0} HTTP/1.1\r\nHost: {0}\r\n\r\n"
_GET = "GET http://{0}/ HTTP/1.1\r\nHost: {0}\r\n\r\n"
_OWN = "GET {0} HTTP/1.1\r\nHost: 127.0.0.1:3128\r\nx-api-key: " + "ptb-run-" + "0" * 48 + "\r\n\r\n"
_PLACE = "HTTP/1.1\r\nHost: pypi.org\r\n"

# Nothing here may be allowed: it would leave the machine. Refusals come before any name is looked up.
TRICKS = {
    "tunnel to the host's loopback": _CONNECT.format("127.0.0.1:443"),
    "loopback by name": _CONNECT.format("localhost:443"),
    "loopback as one number": _CONNECT.format("2130706433:443"),
    "loopback in hexadecimal": _CONNECT.format("0x7f000001:443"),
    "loopback in octal": _CONNECT.format("0177.0.0.1:443"),
    "loopback cut short": _CONNECT.format("127.1:443"),
    "loopback over IPv6": _CONNECT.format("[::1]:443"),
    "loopback mapped into IPv6": _CONNECT.format("[::ffff:127.0.0.1]:443"),
    "the address 0.0.0.0": _CONNECT.format("0.0.0.0:443"),
    "loopback as a URL": _GET.format("127.0.0.1"),
    "the gateway through itself": _GET.format("127.0.0.1:3128"),
    "the metadata service as a URL": _GET.format("169.254.169.254"),
    "the metadata service by name": _GET.format("metadata.google.internal"),
    "a private network": _CONNECT.format("10.0.0.1:443"),
    "ssh": _CONNECT.format("github.com:22"),
    "mail": _CONNECT.format("pypi.org:25"),
    "a model API": _CONNECT.format("api.openai.com:443"),
    "a model API in other letters": _CONNECT.format("API.OpenAI.com.:443"),
    "a user part before the host": _CONNECT.format("pypi.org@api.openai.com:443"),
    "another Host than the tunnel's": "CONNECT pypi.org:443 HTTP/1.1\r\nHost: api.openai.com:443\r\n\r\n",
    "another Host than the URL's": "GET http://pypi.org/ HTTP/1.1\r\nHost: api.openai.com\r\n\r\n",
    "two Host headers": f"GET http://pypi.org/ {_PLACE}Host: api.openai.com\r\n\r\n",
    "two lengths": f"POST http://pypi.org/ {_PLACE}Content-Length: 4\r\nContent-Length: 0\r\n\r\nabcd",
    "length beside chunks": (
        f"POST http://pypi.org/ {_PLACE}Content-Length: 4\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n"
    ),
    "line feeds in the target": f"GET http://pypi.org/\r\nHost: api.openai.com\r\n\r\n {_PLACE}\r\n",
    "a folded header": f"GET http://pypi.org/ {_PLACE}X: 1\r\n Host: api.openai.com\r\n\r\n",
    "HTTP/2 without TLS": "PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n" + "\0" * 9,
    "a web socket": f"GET http://pypi.org/ {_PLACE}Upgrade: websocket\r\nConnection: upgrade\r\n\r\n",
    "a file as a URL": "GET file:///etc/shadow HTTP/1.1\r\nHost: x\r\n\r\n",
    "gopher and ftp": "GET ftp://pypi.org/ HTTP/1.1\r\nHost: pypi.org\r\n\r\n",
    "TRACE": "TRACE http://127.0.0.1/ HTTP/1.1\r\nHost: 127.0.0.1\r\n\r\n",
    "control paths of the gateway": _OWN.format("/control/adopt"),
    "the grader without its benchmark": _OWN.format("/grader/status"),
    "another run's token": _OWN.format("/anthropic/v1/models"),
    "dots in a path of the hub door": _OWN.format("/hub/org/name/resolve/main/../../../../etc/passwd"),
    "escaped dots in a path of the hub door": _OWN.format("/hub/org/name/resolve/main/%2e%2e/%2e%2e/etc/passwd"),
    "slashes escaped within the hub's path": _OWN.format("/hub/org/name/resolve/..%2f..%2frefs/main"),
    "uploading by the hub door": "POST /hub/api/repos/create HTTP/1.1\r\nHost: 127.0.0.1:3128\r\nContent-Length: 0\r\n\r\n",
    "an endless head": f"GET http://pypi.org/ {_PLACE}X: {'a' * 40_000}\r\n\r\n",
}
"""What is tried -> the bytes."""


def _ask(raw: str) -> str:
    with socket.create_connection(("127.0.0.1", 3128), timeout=15) as client:
        client.sendall(raw.encode())
        answer = b""
        while b"\r\n\r\n" not in answer and (piece := client.recv(65536)):
            answer += piece
    if not answer:
        return "closed without a word"
    status = int(answer.split()[1])
    rule = re.search(rb"X-PTB-Rule: (\S+)", answer)
    if status < 400 or status in (502, 504):
        raise Escaped(answer[:200].decode("ascii", "replace"))
    return f"{status} {rule[1].decode()}" if rule else str(status)


for _name, _raw in TRICKS.items():
    add(f"door: {_name}", "the gateway reads strictly and decides by host", lambda raw=_raw: _ask(raw), gateway=True)  # type: ignore[misc]


def _many() -> str:
    refused = 0
    held = []
    for _ in range(400):
        try:
            held.append(socket.create_connection(("127.0.0.1", 3128), timeout=5))
        except OSError:
            refused += 1
    for each in held:
        each.close()
    return f"{len(held)} connections held, {refused} refused, and it answers: {_ask(TRICKS['ssh'])}"


add("door: using up the gateway's connections", "it counts them", _many, gateway=True)


def _newline_in_log() -> str:
    path = 'x"}\\n{"allowed": true, "host": "' + ORDERS["token"]
    return _ask(f"GET http://127.0.0.1/{path.replace(' ', '')} HTTP/1.1\r\nHost: 127.0.0.1\r\n\r\n")


add("door: a forged line in its log", "each line is made as JSON", _newline_in_log, gateway=True)

"""Ways around the web door, each tried over a real connection: refused by the rule that names it, and nothing gets out."""

from __future__ import annotations

import ipaddress
import json
import socket
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import pytest

from posttrainbench.gateway import Provider
from posttrainbench.gateway.web_addresses import is_public
from posttrainbench.gateway.web_tls import NotTLS, read_hello
from tests.gateway.web_door import HOST, Recorder, RunningDoor, client_hello, read_all, running_door, server

# the port of the server behind the door stands for PORT
CONNECT = "CONNECT {0} HTTP/1.1\r\nHost: {0}\r\n\r\n"
GET = "GET http://{0}/ HTTP/1.1\r\nHost: {0}\r\n\r\n"
OK = f"{HOST}:PORT"
API = Provider(
    name="anthropic", wire="anthropic", upstream="https://llm.company.example/v1", auth="x-api-key", models=("m",)
)


@pytest.fixture(scope="module")
def behind() -> Iterator[Recorder]:
    with server() as recorder:
        yield recorder


@pytest.fixture(scope="module")
def door(behind: Recorder, tmp_path_factory: pytest.TempPathFactory) -> Iterator[RunningDoor]:
    table = {
        "rebinding.example.org": [["127.0.0.1"]],
        "two-faced.example.org": [["93.184.215.14", "10.0.0.1"]],
        "metadata.example.org": [["169.254.169.254"]],
        "internal-metadata.example.org": [["169.254.169.254"]],
        "mapped.example.org": [["::ffff:127.0.0.1"]],
        "nat64.example.org": [["64:ff9b::7f00:1"]],
        "sixtofour.example.org": [["2002:7f00:1::1"]],
    }
    internal = (f"{HOST}:{behind.port}", f"internal-metadata.example.org:{behind.port}")
    with running_door(
        tmp_path_factory.mktemp("door"), internal=internal, table=table, head_s=3.0, providers=(API,)
    ) as found:
        yield found


TRICKS: list[tuple[str, str, str]] = [
    # refused hosts in other spellings
    ("plain", CONNECT.format("api.openai.com:443"), "llm-api"),
    ("upper case", CONNECT.format("API.OpenAI.COM:443"), "llm-api"),
    ("trailing dot", CONNECT.format("api.openai.com.:443"), "llm-api"),
    ("two trailing dots", CONNECT.format("api.openai.com..:443"), "bad-name"),
    ("full-width letters", CONNECT.format("ａｐｉ.openai.com:443"), "llm-api"),
    ("ideographic full stops", CONNECT.format("api。openai。com:443"), "llm-api"),
    ("soft hyphen", CONNECT.format("api.open\u00adai.com:443"), "llm-api"),
    ("escapes", CONNECT.format("api%2eopenai%2ecom:443"), "bad-name"),
    ("null byte", CONNECT.format("pypi.org\x00.openai.com:443"), "malformed"),
    ("user part", CONNECT.format("pypi.org@api.openai.com:443"), "bad-name"),
    ("user part in a URL", GET.format("pypi.org:80@api.openai.com"), "bad-name"),
    ("backslash", GET.format("api.openai.com\\@pypi.org"), "bad-name"),
    ("below a refused name", CONNECT.format("eu.api.openai.com:443"), "llm-api"),
    ("pattern within a label", CONNECT.format("us-central1-aiplatform.googleapis.com:443"), "llm-api"),
    ("plain http", GET.format("openrouter.ai"), "llm-api"),
    ("the benchmark's own pages", CONNECT.format("www.posttrainbench.com:443"), "benchmark-pages"),
    ("a reader that fetches other pages", CONNECT.format("r.jina.ai:443"), "relay"),
    ("the API of the run itself", CONNECT.format("api.anthropic.com:443"), "model-api"),
    ("the API's upstream at the company", CONNECT.format("llm.company.example:443"), "model-api"),
    # addresses in the place of names
    ("address", CONNECT.format("104.18.6.192:443"), "address"),
    ("IPv6 address", CONNECT.format("[2606:4700::6812:6c0]:443"), "address"),
    ("loopback", CONNECT.format("127.0.0.1:443"), "address"),
    ("one number", CONNECT.format("2130706433:443"), "bad-name"),
    ("hexadecimal", CONNECT.format("0x7f000001:443"), "bad-name"),
    ("hexadecimal parts", CONNECT.format("0x7f.0.0.1:443"), "bad-name"),
    ("octal", CONNECT.format("0177.0.0.1:443"), "bad-name"),
    ("short", CONNECT.format("127.1:443"), "bad-name"),
    ("full-width digits", CONNECT.format("１２７.0.0.1:443"), "address"),
    ("address with a trailing dot", CONNECT.format("127.0.0.1.:443"), "address"),
    ("IPv6 without brackets", CONNECT.format("::1:443"), "bad-name"),
    ("IPv6 with a zone", CONNECT.format("[fe80::1%25eth0]:443"), "bad-name"),
    ("mapped IPv4", CONNECT.format("[::ffff:127.0.0.1]:443"), "address"),
    # names of the machine and of its network
    ("localhost", CONNECT.format("localhost:443"), "local-name"),
    ("below localhost", CONNECT.format("x.localhost:443"), "local-name"),
    ("a name without a dot", CONNECT.format("metadata:443"), "local-name"),
    ("a metadata service", GET.format("metadata.google.internal"), "local-name"),
    ("a public name with a private address", CONNECT.format("rebinding.example.org:443"), "private-address"),
    ("one public and one private address", CONNECT.format("two-faced.example.org:443"), "private-address"),
    ("a metadata address", GET.format("metadata.example.org"), "private-address"),
    ("a metadata address of an internal host", CONNECT.format("internal-metadata.example.org:PORT"), "private-address"),
    ("IPv4 within IPv6", GET.format("mapped.example.org"), "private-address"),
    ("IPv4 behind NAT64", GET.format("nat64.example.org"), "private-address"),
    ("IPv4 in 6to4", GET.format("sixtofour.example.org"), "private-address"),
    # ports
    ("ssh", CONNECT.format("github.com:22"), "port"),
    ("a tunnel to port 80", CONNECT.format("pypi.org:80"), "port"),
    ("mail in a URL", GET.format("pypi.org:25"), "port"),
    ("https port in an http URL", GET.format("pypi.org:443"), "port"),
    ("no port", CONNECT.format("pypi.org"), "bad-port"),
    ("port 0", CONNECT.format("pypi.org:0"), "bad-port"),
    ("port too large", CONNECT.format("pypi.org:65979"), "bad-port"),
    ("port with a sign", CONNECT.format("pypi.org:+443"), "bad-port"),
    ("a service's name as port", CONNECT.format("pypi.org:https"), "bad-port"),
    # the request as such
    ("https URL without a tunnel", GET.replace("http://", "https://").format(OK), "https-url"),
    ("ftp", GET.replace("http://", "ftp://").format(OK), "scheme"),
    ("file", "GET file:///etc/passwd HTTP/1.1\r\nHost: x.org\r\n\r\n", "scheme"),
    ("CONNECT with a URL", CONNECT.format(f"http://{OK}/"), "bad-port"),
    ("other Host header", f"GET http://{OK}/ HTTP/1.1\r\nHost: api.openai.com\r\n\r\n", "host-mismatch"),
    ("other Host header of a tunnel", f"CONNECT {OK} HTTP/1.1\r\nHost: api.openai.com:443\r\n\r\n", "host-mismatch"),
    ("two Host headers", f"GET http://{OK}/ HTTP/1.1\r\nHost: {OK}\r\nHost: api.openai.com\r\n\r\n", "malformed"),
    ("no Host header", f"GET http://{OK}/ HTTP/1.1\r\n\r\n", "malformed"),
    ("blank before the colon", f"GET http://{OK}/ HTTP/1.1\r\nHost: {OK}\r\nX-A : 1\r\n\r\n", "malformed"),
    ("folded header", f"GET http://{OK}/ HTTP/1.1\r\nHost: {OK}\r\nX-A: 1\r\n Host: b\r\n\r\n", "malformed"),
    ("bare line feeds", f"GET http://{OK}/ HTTP/1.1\nHost: {OK}\n\n", "malformed"),
    ("carriage return in a header", f"GET http://{OK}/ HTTP/1.1\r\nHost: {OK}\r\nA: b\rHost: c\r\n\r\n", "malformed"),
    ("fragment", f"GET http://{OK}/#@api.openai.com HTTP/1.1\r\nHost: {OK}\r\n\r\n", "malformed"),
    ("blank in the target", f"GET http://{OK}/ x HTTP/1.1\r\nHost: {OK}\r\n\r\n", "malformed"),
    ("old protocol", f"GET http://{OK}/\r\n\r\n", "malformed"),
    ("HTTP/2 in name", f"GET http://{OK}/ HTTP/2.0\r\nHost: {OK}\r\n\r\n", "malformed"),
    ("websocket", f"GET http://{OK}/ HTTP/1.1\r\nHost: {OK}\r\nUpgrade: websocket\r\nConnection: upgrade\r\n\r\n", "upgrade"),
    # smuggling
    ("two lengths", f"POST http://{OK}/ HTTP/1.1\r\nHost: {OK}\r\nContent-Length: 4\r\nContent-Length: 0\r\n\r\nabcd", "malformed"),
    ("length and encoding", f"POST http://{OK}/ HTTP/1.1\r\nHost: {OK}\r\nContent-Length: 4\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n", "malformed"),
    ("encoding twice", f"POST http://{OK}/ HTTP/1.1\r\nHost: {OK}\r\nTransfer-Encoding: chunked, identity\r\n\r\n0\r\n\r\n", "malformed"),
    ("odd encoding", f"POST http://{OK}/ HTTP/1.1\r\nHost: {OK}\r\nTransfer-Encoding: xchunked\r\n\r\n0\r\n\r\n", "malformed"),
    ("signed length", f"POST http://{OK}/ HTTP/1.1\r\nHost: {OK}\r\nContent-Length: +4\r\n\r\nabcd", "malformed"),
    ("chunks in HTTP/1.0", f"POST http://{OK}/ HTTP/1.0\r\nHost: {OK}\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n", "malformed"),
    ("a tunnel with a body", f"CONNECT {OK} HTTP/1.1\r\nHost: {OK}\r\nContent-Length: 3\r\n\r\nabc", "malformed"),
    ("endless head", f"GET http://{OK}/ HTTP/1.1\r\nHost: {OK}\r\n" + "X-A: " + "a" * 40_000 + "\r\n\r\n", "malformed"),
]  # fmt: skip


@pytest.mark.parametrize(("request_text", "rule"), [row[1:] for row in TRICKS], ids=[row[0] for row in TRICKS])
def test_refused_with_nothing_sent(door: RunningDoor, behind: Recorder, request_text: str, rule: str) -> None:
    before, lines = behind.connections, len(door.log(count=0))
    raw = request_text.replace("PORT", str(behind.port)).encode()
    reply = door.ask(raw)
    head, _, text = reply.partition(b"\r\n\r\n")
    assert f"X-PTB-Rule: {rule}".encode() in head, reply
    status = int(head.split(b" ")[1])
    assert 400 <= status < 600 and status not in (502, 504)
    assert len(text) > 20, "it says what is wrong"
    assert behind.connections == before, "nothing reached the server behind"
    last = door.log(count=lines + 1)[-1]
    assert (last["allowed"], last["rule"], last["up"], last["down"]) == (False, rule, 0, 0)


def test_many_tricks_are_tried() -> None:
    assert len(TRICKS) >= 60


def ask_in_tunnel(door: RunningDoor, port: int, first: bytes, *, pieces: int = 1) -> bytes:
    """Open a tunnel, send the first bytes, read the answer to them."""
    with door.connect() as connection:
        connection.sendall(CONNECT.format(f"{HOST}:{port}").encode())
        head = b""
        while not head.endswith(b"\r\n\r\n"):
            head += connection.recv(1)
        assert head.startswith(b"HTTP/1.1 200")
        size = len(first) // pieces + 1
        for at in range(0, len(first), size):
            connection.sendall(first[at : at + size])
        with suppress(OSError):  # it may have closed already
            connection.shutdown(socket.SHUT_WR)
        return read_all(connection)


def in_records(hello: bytes, size: int) -> bytes:
    """The same hello, its message cut over records of `size` bytes."""
    message = hello[5:]
    parts = [message[at : at + size] for at in range(0, len(message), size)]
    return b"".join(hello[:3] + len(part).to_bytes(2) + part for part in parts)


HELLO_TRICKS = [
    ("other server name", client_hello("api.openai.com"), "sni-mismatch"),
    ("other server name over many records", in_records(client_hello("api.openai.com"), 7), "sni-mismatch"),
    ("no server name", client_hello(None), "no-sni"),
    ("encrypted name", client_hello(HOST, extra=bytes.fromhex("fe0d0004deadbeef")), "hidden-name"),
    ("a second server name", client_hello(HOST, extra=bytes.fromhex("0000000400020000")), "not-tls"),
    ("plain HTTP", b"POST /v1/chat/completions HTTP/1.1\r\nHost: api.openai.com\r\n\r\n", "not-tls"),
    ("HTTP/2 without TLS", b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n", "not-tls"),
    ("ssh", b"SSH-2.0-OpenSSH_9.2\r\n", "not-tls"),
    ("data behind the hello in its record", client_hello(HOST)[:3] + b"\x40\x00" + client_hello(HOST)[5:] + b"x" * 16_384, "not-tls"),
    ("an alert first", b"\x15\x03\x03\x00\x02\x01\x00" + client_hello(HOST), "not-tls"),
    ("SSL 2", b"\x80\x2e\x01\x00\x02\x00\x15\x00\x00\x00\x10", "not-tls"),
    ("zeros", b"\x00" * 4096, "not-tls"),
]  # fmt: skip


@pytest.mark.parametrize(("first", "rule"), [row[1:] for row in HELLO_TRICKS], ids=[row[0] for row in HELLO_TRICKS])
def test_what_a_tunnel_begins_with(door: RunningDoor, tmp_path: Path, first: bytes, rule: str) -> None:
    lines = len(door.log(count=0))
    with server(lambda connection, recorder: recorder.data.extend(read_all(connection))) as recorder:
        # the module's door knows one port: this server gets a door of its own
        with running_door(tmp_path, internal=(f"{HOST}:{recorder.port}",)) as own:
            reply = ask_in_tunnel(own, recorder.port, first, pieces=3)
            [line] = own.log(count=1)
        assert bytes(recorder.data) == b"", "not a byte went through"
    assert (line["rule"], line["allowed"], line["up"]) == (rule, False, 0)
    if rule == "not-tls":
        assert b"403" in reply and b"Only TLS" in reply
    else:
        assert reply[:2] == b"\x15\x03", "a TLS client understands why"
    assert len(door.log(count=0)) == lines


def test_a_correct_hello_in_any_pieces_goes_through_unchanged(tmp_path: Path) -> None:
    for number, hello in enumerate(
        (client_hello(HOST), in_records(client_hello(HOST), 40), client_hello(HOST.upper()))
    ):
        with (
            server(lambda connection, recorder: recorder.data.extend(read_all(connection))) as recorder,
            running_door(tmp_path / str(number), internal=(f"{HOST}:{recorder.port}",)) as door,
        ):
            ask_in_tunnel(door, recorder.port, hello + b"more", pieces=40)
            [line] = door.log(count=1)
            assert bytes(recorder.data) == hello + b"more"
            assert line["allowed"] and line["sni"].lower() == HOST and line["up"] == len(hello) + 4


def test_a_second_request_is_not_read(door: RunningDoor, behind: Recorder) -> None:
    """Neither kept alive nor pipelined: each request has a connection, a decision and a line of its own."""
    before = behind.connections
    target = f"{HOST}:{behind.port}"
    second = GET.format(f"other.example.org:{behind.port}")
    behind.data.clear()
    reply = door.ask((GET.format(target) + second).encode())
    assert reply.count(b"HTTP/1.1 ") == 1 and reply.endswith(b"hello")
    assert b"connection: close" in reply.lower()
    assert behind.connections == before + 1
    assert behind.data.count(b"GET ") == 1 and b"other" not in behind.data


def test_headers_for_one_hop_and_their_tricks(door: RunningDoor, behind: Recorder) -> None:
    target = f"{HOST}:{behind.port}"
    behind.data.clear()
    door.ask(
        (
            f"POST http://{target}/a?b=c HTTP/1.1\r\nHost: {HOST.upper()}.:{behind.port}\r\nConnection: X-Mine, Host, Content-Length\r\n"
            "X-Mine: 1\r\nX-Other: 2\r\nProxy-Authorization: Basic abc\r\nProxy-Connection: keep-alive\r\nTE: trailers\r\n"
            "Upgrade: h2c\r\nContent-Length: 3\r\n\r\nabc"
        ).encode()
    )
    lines = bytes(behind.data).split(b"\r\n")
    assert lines[0] == b"POST /a?b=c HTTP/1.1"
    assert f"Host: {target}".encode() in lines and b"Content-Length: 3" in lines and b"X-Other: 2" in lines
    assert b"Connection: close" in lines
    for gone in (b"X-Mine", b"Proxy-", b"TE:", b"Upgrade"):
        assert not any(line.startswith(gone) for line in lines)


def test_chunks_are_read_strictly_and_encoded_anew(tmp_path: Path) -> None:
    def read_to_end(connection: socket.socket, recorder: Recorder) -> None:
        while not recorder.data.endswith(b"0\r\n\r\n"):
            piece = connection.recv(65536)
            if not piece:
                return
            recorder.data += piece
        connection.sendall(b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok")

    head = "POST http://{0}/ HTTP/1.1\r\nHost: {0}\r\nTransfer-Encoding: chunked\r\n\r\n"
    with server(read_to_end) as recorder, running_door(tmp_path, internal=(f"{HOST}:{recorder.port}",)) as door:
        target = f"{HOST}:{recorder.port}"
        reply = door.ask(
            head.format(target).encode() + b"0005;x=y\r\nhello\r\n0\r\n\r\nGET http://other.org/ HTTP/1.1\r\n\r\n"
        )
        assert reply.endswith(b"ok")
        assert bytes(recorder.data).endswith(b"\r\n\r\n5\r\nhello\r\n0\r\n\r\n")
        for broken in (b"5\nhello\r\n0\r\n\r\n", b"5\r\nhelloX\r\n", b"-1\r\n", b"0\r\nHost: b\r\n\r\n", b"\r\n"):
            recorder.data.clear()
            assert b"X-PTB-Rule: malformed" in door.ask(head.format(target).encode() + broken), broken


@pytest.mark.parametrize(
    ("text", "public"),
    [
        ("1.1.1.1", True), ("2606:4700:4700::1111", True), ("64:ff9b::101:101", True), ("127.0.0.1", False), ("10.1.2.3", False),
        ("172.20.0.1", False), ("192.168.1.1", False), ("169.254.169.254", False), ("100.64.0.1", False), ("0.0.0.0", False),
        ("255.255.255.255", False), ("224.0.0.1", False), ("192.0.2.1", False), ("203.0.113.80", False), ("240.0.0.1", False),
        ("::", False), ("::1", False), ("fe80::1", False), ("fd00::1", False), ("fec0::1", False), ("ff02::1", False),
        ("::ffff:10.0.0.1", False), ("::ffff:1.1.1.1", True), ("64:ff9b::a00:1", False), ("64:ff9b:1::a00:1", False),
        ("2002:a00:1::", False), ("2001:0:a00:1::f5ff:fffe", False), ("2001:db8::1", False), ("168.63.129.16", False),
        ("100.100.100.200", False), ("::127.0.0.1", False),
    ],
)  # fmt: skip
def test_public_addresses(text: str, public: bool) -> None:
    assert is_public(ipaddress.ip_address(text)) is public


def test_a_name_that_answers_differently_gains_nothing(tmp_path: Path) -> None:
    """Resolved once, and connected to the address that was looked at."""
    with server() as good, running_door(
        tmp_path, internal=(f"rebinding.example.org:{good.port}",), table={"rebinding.example.org": [["127.0.0.1"], ["169.254.169.254"]]}
    ) as door:  # fmt: skip
        assert door.ask(GET.format(f"rebinding.example.org:{good.port}").encode()).endswith(b"hello")
        assert door.names.asked == ["rebinding.example.org"]
        assert b"private-address" in door.ask(GET.format(f"rebinding.example.org:{good.port}").encode())
        assert [line["allowed"] for line in door.log(count=2)] == [True, False]
        assert door.log()[0]["address"] == "127.0.0.1"


def test_the_log_is_json_whatever_was_asked(door: RunningDoor) -> None:
    lines = len(door.log(count=0))
    door.ask(b'GET http://x"\xff\xfe.org/\x80 HTTP/1.1\r\nHost: a\r\n\r\n')
    door.ask(("GET http://pypi.org:1/" + "é" * 5000 + " HTTP/1.1\r\nHost: pypi.org:1\r\n\r\n").encode())
    found = door.log(count=lines + 2)[lines:]
    assert len(found) == 2
    assert all(len(json.dumps(line)) < 2000 for line in found)


def test_a_hello_in_tiny_records_takes_no_time() -> None:
    """Every byte had all of them gone through again, with the gateway's other work waiting."""
    message = b"\x01" + (60_000).to_bytes(3, "big") + bytes(50_000)
    data = b"".join(b"\x16\x03\x01\x00\x01" + bytes([each]) for each in message)
    with pytest.raises(NotTLS):
        read_hello(data)

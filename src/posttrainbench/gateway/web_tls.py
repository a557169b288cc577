"""The first message of a TLS client: which server it names. Nothing is decrypted; only what every client says openly."""

from __future__ import annotations

from dataclasses import dataclass

LARGEST_HELLO = 65_536
"""Bytes. Hellos have 0.2 to 2 kB, with post-quantum keys; one record has at most 16 kB."""

ALERT_ACCESS_DENIED = bytes.fromhex("15030300020231")
"""A fatal `access_denied`, which clients report by that name."""
ALERT_UNRECOGNISED_NAME = bytes.fromhex("15030300020270")
_MOST_RECORDS = 256
"""Clients use one or two. They are gone through again with every byte that comes, which took 0.1 s for 65,000 of them."""

_HANDSHAKE, _CLIENT_HELLO = 22, 1
_SERVER_NAME, _ENCRYPTED_HELLO, _OLD_ENCRYPTED_NAME = 0x0000, 0xFE0D, 0xFFCE


class NotTLS(ValueError):
    """The bytes are no TLS client hello."""


@dataclass(frozen=True)
class Hello:
    """What a client says.

    Attributes:
        server_name: as the client wrote it; `None` where it names none.
        hidden: whether it also carries an encrypted hello, which may name another server.
    """

    server_name: str | None
    hidden: bool


class _Cursor:
    """Reads big-endian fields; past the end is an error."""

    def __init__(self, data: bytes) -> None:
        self.data, self.at = data, 0

    def take(self, count: int) -> bytes:
        part = self.data[self.at : self.at + count]
        if len(part) != count:
            raise NotTLS("a field is cut off")
        self.at += count
        return part

    def number(self, size: int) -> int:
        return int.from_bytes(self.take(size))

    def block(self, size: int) -> _Cursor:
        return _Cursor(self.take(self.number(size)))

    def rest(self) -> bool:
        return self.at < len(self.data)


def read_hello(data: bytes) -> Hello | None:
    """Read a hello from the first bytes of a connection; `None` while more are needed.

    Raises:
        NotTLS: it is none, or it is malformed.
    """
    message, at = b"", 0
    for _ in range(_MOST_RECORDS):
        if len(data) > at and data[at] != _HANDSHAKE:
            raise NotTLS("no handshake record")
        if len(data) > at + 1 and data[at + 1] != 3:
            raise NotTLS("no version of TLS")
        if len(data) < at + 5:
            return None
        size = int.from_bytes(data[at + 3 : at + 5])
        if not 0 < size <= 16_384:
            raise NotTLS("a record of an impossible size")
        message += data[at + 5 : at + 5 + size]
        if message[0:1] not in (b"", bytes([_CLIENT_HELLO])):
            raise NotTLS("no client hello")
        if len(message) >= 4:
            need = int.from_bytes(message[1:4])
            if need > LARGEST_HELLO:
                raise NotTLS("a hello of an impossible size")
            if len(message) > 4 + need:
                raise NotTLS("more than a hello in its records")
            if len(message) == 4 + need:
                return _parse(message[4:])
        if len(data) < at + 5 + size:
            return None
        at += 5 + size
    raise NotTLS("a hello in too many records")


def _parse(body: bytes) -> Hello:
    cursor = _Cursor(body)
    cursor.take(2 + 32)  # version, random
    cursor.block(1)  # session
    cursor.block(2)  # cipher suites
    cursor.block(1)  # compression
    name: str | None = None
    hidden = False
    seen: set[int] = set()
    extensions = cursor.block(2) if cursor.rest() else _Cursor(b"")
    while extensions.rest():
        kind, content = extensions.number(2), extensions.block(2)
        if kind in seen:
            raise NotTLS("an extension twice")
        seen.add(kind)
        hidden = hidden or kind in (_ENCRYPTED_HELLO, _OLD_ENCRYPTED_NAME)
        if kind == _SERVER_NAME:
            name = _server_name(content.block(2))
    return Hello(name, hidden)


def _server_name(entries: _Cursor) -> str:
    kind, content = entries.number(1), entries.block(2)
    if kind != 0 or entries.rest():
        raise NotTLS("a server name of an unknown kind, or several")
    try:
        return content.data.decode("ascii")
    except UnicodeDecodeError:
        raise NotTLS("a server name that is not ASCII") from None

"""Answers to `http://` requests: passed on as they come; the last piece is kept back until it is clear what the file is."""

from __future__ import annotations

from asyncio import StreamWriter
from collections.abc import AsyncIterator, Callable
from typing import Any

from posttrainbench.gateway.interceptor.content import STREAMED_TYPES, Held, Recogniser, is_hidden_part
from posttrainbench.gateway.web_http import Head, encode, end_to_end, malformed, read_head
from posttrainbench.gateway.web_messages import COPY, PART, Record
from posttrainbench.gateway.web_names import Refused
from posttrainbench.gateway.web_upstream import BUFFER, Upstream

_WHOLE = 2**20
"""Bytes of an answer that is read whole first, so that a refusal can stand in its place (as in interceptor/proxy.py)."""


async def relay_answer(
    request: Head, upstream: Upstream, writer: StreamWriter, record: Record, known: frozenset[str]
) -> None:
    """Pass an answer on.

    Raises:
        Refused: there is none, or it is a file that is in `known`.
    """
    head, status = await _head(upstream, writer, record)
    kept = end_to_end(head.headers, keep=frozenset((b"content-length", b"transfer-encoding", b"trailer")))
    raw = encode(b" ".join(head.line), [*kept, (b"Connection", b"close")])
    record.status = status
    if request.line[0] == b"HEAD" or status in (204, 304):
        record.answering = True
        writer.write(raw)
        return
    lengths = head.all(b"content-length")
    chunked = bool(head.all(b"transfer-encoding"))
    length = int(lengths[0]) if len(lengths) == 1 and lengths[0].isdigit() and not chunked else None
    if known and is_hidden_part(status, b" ".join(head.all(b"content-range")).decode("latin-1")):
        raise Refused("test-data-part", PART)
    look = _look(head, status, length, known)
    first: list[bytes] = []
    if look is not None and length is not None and length <= _WHOLE:
        async for piece in _pieces(upstream, length):
            look.feed(piece)
            first.append(piece)
        _check(look, record)
        look = None
        length = 0
    record.answering = True
    writer.write(raw)
    for piece in first:
        await _write(writer, piece, record)
    chunks = _Chunks(look.feed) if look is not None and chunked else None
    feed = chunks.feed if chunks is not None else look.feed if look is not None else None
    held = Held()
    async for piece in _pieces(upstream, length):
        if feed is None:
            await _write(writer, piece, record)
            continue
        before = chunks.size if chunks is not None else -1
        feed(piece)
        # the end of the chunks alone: the last of the data stays here with it
        for each in held.add(piece, alone=chunks is None or chunks.size != before):
            await _write(writer, each, record)
        if chunks is not None and chunks.over:
            break
    if look is not None:
        _check(look, record)
        for each in held.rest():
            await _write(writer, each, record)


async def _head(upstream: Upstream, writer: StreamWriter, record: Record) -> tuple[Head, int]:
    try:
        while True:
            head = await read_head(upstream.reader, response=True)
            status = int(head.line[1])
            if status >= 200 or status == 101:
                break
            writer.write(encode(b" ".join(head.line), end_to_end(head.headers)))
            record.answering = True
    except EOFError:
        raise Refused("no-answer", "The server closed the connection without an answer.", status=502) from None
    except Refused as error:
        raise Refused("no-answer", f"The server's answer cannot be used. {error.message}", status=502) from None
    if status == 101:
        raise malformed("the server changes to another protocol, unasked", status=502)
    return head, status


async def _pieces(upstream: Upstream, left: int | None) -> AsyncIterator[bytes]:
    while left is None or left > 0:
        piece = await upstream.reader.read(BUFFER if left is None else min(left, BUFFER))
        if not piece:
            return
        left = None if left is None else left - len(piece)
        yield piece


def _look(head: Head, status: int, length: int | None, known: frozenset[str]) -> Recogniser | None:
    kind = b" ".join(head.all(b"content-type")).decode("latin-1").lower()
    if not known or status == 206 or kind.startswith(STREAMED_TYPES):
        return None
    encoding = b",".join(head.all(b"content-encoding")).decode("latin-1")
    look = Recogniser(known, size=length, encoding=encoding, decoders={"zstd": _zstd})
    return None if look.idle else look


def _zstd() -> Any:
    import zstandard

    return zstandard.ZstdDecompressor().decompressobj()


def _check(look: Recogniser, record: Record) -> None:
    known = look.end()
    record.sha256 = look.sha256()
    if known:
        raise Refused("test-data-copy", COPY)


async def _write(writer: StreamWriter, piece: bytes, record: Record) -> None:
    if piece:
        writer.write(piece)
        record.moved("down", len(piece))
        await writer.drain()


class _Chunks:
    """Takes a chunked body apart; what is no such body is not looked at.

    Attributes:
        size: bytes of the body so far.
        over: whether all of it has come.
    """

    def __init__(self, feed: Callable[[bytes], None]) -> None:
        self._feed = feed
        self._line = b""
        self._left = 0
        self._between = self._ending = self._lost = False
        self.size = 0
        self.over = False

    def feed(self, data: bytes) -> None:
        """Take the next bytes of the connection."""
        while data and not self.over and not self._lost:
            if self._left:
                piece, data = data[: self._left], data[self._left :]
                self._left -= len(piece)
                self._between = True
                self.size += len(piece)
                self._feed(piece)
                continue
            line, end, data = data.partition(b"\n")
            self._line += line
            if not end:
                self._lost = len(self._line) > 1000
                return
            self._take(self._line.rstrip(b"\r"))
            self._line = b""

    def _take(self, line: bytes) -> None:
        if self._ending:
            self.over = not line
        elif self._between and not line:
            self._between = False
        else:
            try:
                self._left = int(line.partition(b";")[0].strip(), 16)
            except ValueError:
                self._lost = True
            self._ending = not self._left

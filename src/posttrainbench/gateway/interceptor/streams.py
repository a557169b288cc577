"""Small things between asyncio's streams and mitmproxy."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from typing import Any

READ = 2**18
"""Bytes read at a time: mitmproxy itself takes 64 kB, and its layers cost the same for each piece."""


def decoders() -> dict[str, Callable[[], Any]]:
    """What undoes the encodings of bodies that the standard library does not know."""
    import brotli
    import zstandard

    class Brotli:
        def __init__(self) -> None:
            self._inner = brotli.Decompressor()

        def decompress(self, data: bytes) -> bytes:
            return bytes(self._inner.process(data))

    return {"br": Brotli, "zstd": lambda: zstandard.ZstdDecompressor().decompressobj()}


class Wide:
    """A reader that reads more at a time than it is asked to, after the bytes that were read before."""

    def __init__(
        self, reader: asyncio.StreamReader, first: bytes = b"", *, seen: Callable[[int], Awaitable[None]] | None = None
    ) -> None:
        self._reader, self._first, self._seen = reader, first, seen

    async def read(self, size: int) -> bytes:
        data, self._first = self._first, b""
        data = data or await self._reader.read(READ)
        if self._seen is not None:
            await self._seen(len(data))
        return data


class Named:
    """A writer with an address, as mitmproxy expects; the client's may be a Unix socket."""

    def __init__(self, writer: asyncio.StreamWriter) -> None:
        self._writer = writer

    def __getattr__(self, name: str) -> Any:
        return getattr(self._writer, name)

    def get_extra_info(self, name: str, default: Any = None) -> Any:
        return ("127.0.0.1", 1) if name in ("peername", "sockname") else default

"""What a served file is, told by its hashes while it passes: as it is, unpacked, and the members of archives.

Known test data is found by SHA-256 or by git's SHA-1 of the whole. A renamed copy has the same hashes; so has a copy in a
`.gz`, in a wheel or in a source archive, as long as it is byte for byte the known file.
"""

from __future__ import annotations

import hashlib
import struct
import time
import zlib
from collections import deque
from collections.abc import Callable
from typing import Any

LARGEST = 256 * 2**20
"""Bytes of a file that is looked at: no known copy is larger, and hashing would only slow what is."""
_LARGEST_GIT = 16 * 2**20
"""Bytes of a file that is hashed as git does as well: known copies that are larger are known by SHA-256."""
LARGEST_ARCHIVE = 64 * 2**20
"""Bytes of a packed file that is unpacked to look at its members: unpacking takes 3 to 10 ms per MB."""
STREAMED_TYPES = ("text/event-stream", "application/x-ndjson", "application/grpc")
"""Content types of answers that come as things happen: nothing of them may be kept back."""
ENCODINGS = frozenset(("gzip", "identity"))
"""Encodings of bodies that a server may be asked for where copies are looked for: those that are undone in every form. There
are two kinds of `deflate`."""
_UNPACKED = 512 * 2**20
HELD = 2**20
_PATIENCE_S = 10.0
"""From then on answers go on as they come, but for their last piece: some are made slowly, and somebody waits for them."""
_PIECE = 2**18
_DEPTH = 2

Sink = Callable[[bytes], None]


class Held:
    """What of a body stays here until it is clear what it is: the last MiB, at first; the last piece of a slow one.

    So a known file of up to that size goes nowhere, also where its size is not said before.
    """

    def __init__(self) -> None:
        self._pieces: deque[bytes] = deque()
        self._size = 0
        self._until = time.monotonic() + _PATIENCE_S

    def add(self, data: bytes, *, alone: bool = True) -> list[bytes]:
        """Take a piece, which belongs to the one before if not `alone`; returns what may go on."""
        self._size += len(data)
        if self._pieces and not alone:
            data = self._pieces.pop() + data
        self._pieces.append(data)
        out = []
        while len(self._pieces) > 1 and (self._size > HELD or time.monotonic() > self._until):
            out.append(self._pieces.popleft())
            self._size -= len(out[-1])
        return out

    def rest(self) -> list[bytes]:
        """All that is left."""
        out = list(self._pieces)
        self._pieces.clear()
        self._size = 0
        return out


def acceptable(value: str, known: frozenset[str] = ENCODINGS) -> str:
    """An `Accept-Encoding` without the encodings that nobody here undoes: a copy would pass in one of them."""
    kept = [each.strip() for each in value.split(",") if each.partition(";")[0].strip().lower() in known]
    return ", ".join(kept) or "identity"


class Hashes:
    """SHA-256 and, where the size is known before, git's SHA-1 of what passes."""

    def __init__(self, size: int | None) -> None:
        self.size = 0
        self._sha256 = hashlib.sha256()
        self._git = (
            None if size is None or size > _LARGEST_GIT else hashlib.sha1(b"blob %d\0" % size, usedforsecurity=False)
        )

    def feed(self, data: bytes) -> None:
        """Take the next piece."""
        self.size += len(data)
        self._sha256.update(data)
        if self._git is not None:
            self._git.update(data)

    def found(self) -> set[str]:
        """The hashes of all that came."""
        return {self.sha256(), *([] if self._git is None else [self._git.hexdigest()])}

    def sha256(self) -> str:
        """SHA-256 of all that came."""
        return self._sha256.hexdigest()


class Recogniser:
    """Looks at one body.

    Args:
        known: hashes of what must not pass.
        size: of the body, where it is known before.
        encoding: value of `Content-Encoding`.
        decoders: what undoes further encodings (`br`, `zstd`): makes an object with `decompress(bytes)`.
        pieces: whether only a part of the file passes; then there is nothing to compare.
    """

    def __init__(
        self,
        known: frozenset[str],
        *,
        size: int | None = None,
        encoding: str = "",
        decoders: dict[str, Callable[[], Any]] | None = None,
        part: bool = False,
    ) -> None:
        self.known = known
        self.idle = part or (size or 0) > LARGEST
        self._raw = Hashes(size)
        self._bounded = (size or 0) <= LARGEST_ARCHIVE
        self._budget = _UNPACKED
        self._seen: set[str] = set()
        self._inner: _Unpacked | None = None
        self._decoder: Any = None
        self._first = True
        encoding = encoding.strip().lower()
        if encoding and encoding != "identity":
            self._decoder = _decoder(encoding, decoders or {})

    def feed(self, data: bytes) -> None:
        """Take the next piece. Never raises for what the data is."""
        if self.idle or not data:
            return
        self._raw.feed(data)
        if self._raw.size > LARGEST:
            self.idle = True
            return
        if self._first:
            self._first = False
            if self.known and self._bounded:
                self._inner = _Unpacked(self, self._decoder, depth=0)
        if self._inner is not None:
            if self._raw.size > LARGEST_ARCHIVE:
                self._inner = None
            else:
                self._inner.feed(data)

    def spend(self, size: int) -> bool:
        """Count unpacked bytes; false when there have been too many (a bomb)."""
        self._budget -= size
        return self._budget >= 0

    def add(self, hashes: set[str]) -> None:
        """Note the hashes of something within."""
        self._seen |= hashes & self.known

    def sha256(self) -> str | None:
        """Of the body as it came; `None` where it was not looked at as a whole."""
        return None if self.idle else self._raw.sha256()

    def end(self) -> bool:
        """Whether something known has passed, with all of the body here. `feed` may follow."""
        if self.idle:
            return False
        if self._inner is not None:
            self._inner.end()
        return bool(self._seen) or bool(self._raw.found() & self.known)


def _decoder(encoding: str, others: dict[str, Callable[[], Any]]) -> Any:
    if encoding in ("gzip", "x-gzip"):
        return zlib.decompressobj(31)
    if encoding == "deflate":
        return zlib.decompressobj()
    return others[encoding]() if encoding in others else None


class _Unpacked:
    """A stream of bytes that may be encoded, packed or an archive; everything in it is hashed."""

    def __init__(self, owner: Recogniser, decoder: Any, *, depth: int) -> None:
        self._owner, self._decoder, self._depth = owner, decoder, depth
        # what is not decoded is what the owner hashes itself, at depth 0
        self._hashes = Hashes(None) if decoder is not None or depth else None
        self._begin = b""
        self._sink: Sink | None = None
        self._reader: _Tar | _Zip | _Unpacked | None = None
        self._told = False

    def feed(self, data: bytes) -> None:
        for start in range(0, len(data), _PIECE):
            piece = data[start : start + _PIECE]
            if self._decoder is None:
                self._plain(piece)
                continue
            while piece:
                try:
                    # in bounded pieces where the decoder can: a bomb must not fill the memory
                    if isinstance(self._decoder, type(_ZLIB)):
                        plain = self._decoder.decompress(piece, 4 * _PIECE)
                        piece = self._decoder.unconsumed_tail
                    else:
                        plain, piece = self._decoder.decompress(piece), b""
                except Exception:  # of whatever library: what cannot be unpacked is not looked into
                    self._decoder, self._sink, piece, plain = _Broken(), None, b"", b""
                if plain:
                    if not self._owner.spend(len(plain)):
                        self._decoder, piece = _Broken(), b""
                    self._plain(plain)

    def _plain(self, data: bytes) -> None:
        if self._hashes is not None:
            self._hashes.feed(data)
        if self._told:
            if self._sink is not None:
                self._sink(data)
            return
        self._begin += data
        if len(self._begin) < 265:
            return
        self._tell()

    def _tell(self) -> None:
        """See by its beginning what it is."""
        self._told = True
        begin, self._begin = self._begin, b""
        if self._depth < _DEPTH and begin.startswith(b"\x1f\x8b"):
            self._reader = _Unpacked(self._owner, zlib.decompressobj(31), depth=self._depth + 1)
        elif begin.startswith(b"PK\x03\x04"):
            self._reader = _Zip(self._owner)
        elif begin[257:262] == b"ustar":
            self._reader = _Tar(self._owner)
        if self._reader is not None:
            self._sink = self._reader.feed
            self._sink(begin)

    def end(self) -> None:
        if not self._told:
            self._tell()
        if isinstance(self._reader, _Unpacked):
            self._reader.end()
        if self._hashes is not None:
            self._owner.add(self._hashes.found())


class _Broken:
    def decompress(self, data: bytes) -> bytes:
        return b""


_ZLIB = zlib.decompressobj()


# a test file is smaller; of larger files parts are common (resumed downloads, columns of a table)
_PARTS_OF = 64 << 20


def is_hidden_part(status: int, content_range: str) -> bool:
    """Whether an answer is a part of a file that could be test data, which only the whole would show.

    Args:
        status: of the answer.
        content_range: its header, such as `bytes 1-99/100`; empty for several parts in one answer.
    """
    if status != 206:
        return False
    total = content_range.rpartition("/")[2].strip()
    return not (total.isdigit() and len(total) < 16 and int(total) > _PARTS_OF)


class _Tar:
    """Members of a tar archive."""

    def __init__(self, owner: Recogniser) -> None:
        self._owner = owner
        self._buffer = b""
        self._left = self._padding = 0
        self._hashes: Hashes | None = None

    def feed(self, data: bytes) -> None:
        buffer, at = self._buffer + data, 0
        while at < len(buffer):
            if self._left:
                piece = buffer[at : at + self._left]
                at += len(piece)
                self._left -= len(piece)
                if self._hashes is not None:
                    self._hashes.feed(piece)
                    if not self._left:
                        self._owner.add(self._hashes.found())
                continue
            if self._padding:
                skip = min(self._padding, len(buffer) - at)
                at, self._padding = at + skip, self._padding - skip
                continue
            if len(buffer) - at < 512:
                break
            header = buffer[at : at + 512]
            at += 512
            self._left = _octal(header[124:136])
            self._padding = -self._left % 512
            self._hashes = Hashes(self._left) if header[156:157] in (b"0", b"\0", b"7") and self._left else None
        self._buffer = buffer[at:]


def _octal(field: bytes) -> int:
    if field[:1] == b"\x80":
        return int.from_bytes(field[1:])
    try:
        return int(field.strip(b" \0") or b"0", 8)
    except ValueError:
        return 0


class _Zip:
    """Members of a zip archive, read from its local headers as it passes.

    Members that are stored with their size behind them cannot be found so; what comes after one is not looked at. Writers
    that can seek (those of wheels) put the size before.
    """

    def __init__(self, owner: Recogniser) -> None:
        self._owner = owner
        self._buffer = b""
        self._left: int | None = None
        self._decoder: Any = None
        self._hashes: Hashes | None = None
        self._seek = self._over = False

    def feed(self, data: bytes) -> None:
        if self._over:
            return
        self._buffer += data
        while self._buffer and not self._over and self._step():
            pass

    def _step(self) -> bool:
        """Read on; false when more is needed."""
        if self._hashes is None:
            return self._header()
        if self._decoder is not None:
            return self._deflated()
        assert self._left is not None
        piece, self._buffer = self._buffer[: self._left], self._buffer[self._left :]
        self._left -= len(piece)
        self._hashes.feed(piece)
        if not self._left:
            self._done()
        return True

    def _header(self) -> bool:
        at = self._buffer.find(b"PK\x03\x04") if self._seek else 0
        if at < 0:
            self._buffer = self._buffer[-3:]
            return False
        self._buffer = self._buffer[at:]
        if len(self._buffer) < 30:
            return False
        if not self._buffer.startswith(b"PK\x03\x04"):
            self._over = True
            return False
        flags, method = struct.unpack_from("<HH", self._buffer, 6)
        packed, size, name, extra = struct.unpack_from("<IIHH", self._buffer, 18)
        if len(self._buffer) < 30 + name + extra:
            return False
        if flags & 1 or packed == 0xFFFFFFFF or (flags & 8 and method == 0) or method not in (0, 8):
            # encrypted, huge, or of a size or kind that cannot be told here: on to the next
            self._buffer, self._seek = self._buffer[30 + name + extra :], True
            return True
        self._buffer, self._seek = self._buffer[30 + name + extra :], False
        # the size is the whole file's only where it is not behind it
        self._hashes = Hashes(None if flags & 8 else size)
        self._decoder = zlib.decompressobj(-15) if method == 8 else None
        self._left = packed
        if method == 0 and not packed:
            self._done()
        return True

    def _deflated(self) -> bool:
        assert self._hashes is not None
        try:
            plain = self._decoder.decompress(self._buffer, 4 * _PIECE)
        except zlib.error:
            self._over = True
            return False
        self._buffer = self._decoder.unconsumed_tail
        if not self._owner.spend(len(plain)):
            self._over = True
            return False
        self._hashes.feed(plain)
        if self._decoder.eof:
            self._buffer, self._seek = self._decoder.unused_data, True
            self._done()
        return True

    def _done(self) -> None:
        assert self._hashes is not None
        self._owner.add(self._hashes.found())
        self._hashes = self._decoder = None

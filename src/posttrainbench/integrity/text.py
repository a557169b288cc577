"""From the files of a workspace to streams of words, whatever they are packed in."""

from __future__ import annotations

import bz2
import gzip
import lzma
import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import IO, Any

_PIECE = 8 * 2**20
_OPENERS: Mapping[bytes, Any] = {b"\x1f\x8b": gzip.open, b"BZh": bz2.open, b"\xfd7zXZ\0": lzma.open}
# Formats whose text cannot be seen without a decoder that we do not have; named in the record.
OPAQUE = (".zip", ".zst", ".7z", ".rar", ".tgz")
# Soft hyphens, zero-width blanks and joiners, byte-order marks: nobody sees them, and they would tear every word.
_INVISIBLE = re.compile(rb"\xc2\xad|\xe2\x80[\x8b-\x8f]|\xe2\x81\xa0|\xef\xbb\xbf")
_ESCAPE = re.compile(rb"\\u[0-9a-fA-F]{4}|\\[nrtbf\"/]")
_WORD = re.compile(rb"[0-9a-z\x80-\xff]+")


def words_of(text: str) -> list[bytes]:
    """Lower-cased words and numbers of a text, punctuation dropped."""
    return _WORD.findall(text.lower().encode())


def _open(path: Path) -> IO[bytes]:
    with path.open("rb") as plain:
        head = plain.read(6)
    # by what it is, not by what it is called
    opener = next((opener for magic, opener in _OPENERS.items() if head.startswith(magic)), open)
    file: IO[bytes] = opener(path, "rb")
    return file


def _words(raw: bytes) -> list[bytes]:
    if raw[:2] in (b"\xff\xfe", b"\xfe\xff") or raw[:4096].count(0) > len(raw[:4096]) // 4:
        # UTF-16 or -32, of which only the zeros stand between us and the words of languages like the benchmarks'
        raw = raw.replace(b"\0", b"")
    return _WORD.findall(_INVISIBLE.sub(b"", _ESCAPE.sub(b" ", raw)).lower())


def _parquet(path: Path) -> Iterator[list[bytes]]:
    import pyarrow.parquet  # type: ignore[import-untyped]

    for batch in pyarrow.parquet.ParquetFile(path).iter_batches(batch_size=1000):
        yield words_of("\n".join(str(value) for column in batch.to_pydict().values() for value in column))


def pieces(path: Path, *, limit: int) -> Iterator[list[bytes]]:
    """The words of a file in pieces of some MiB; binary formats give what readable words they hold.

    A piece ends at a line where there is one, so that items are rarely torn. Escapes of JSON strings count as blanks.

    Args:
        path: the file.
        limit: bytes, unpacked, after which it is given up: a compressed file can go on for ever.

    Raises:
        OSError, EOFError, ValueError, lzma.LZMAError, zlib.error: a broken or endless file.
    """
    if path.suffix == ".parquet":
        yield from _parquet(path)
        return
    with _open(path) as file:
        rest, seen = b"", 0
        while block := file.read(_PIECE):
            seen += len(block)
            if seen > limit:
                raise ValueError(f"more than {limit} bytes of text")
            block = rest + block
            cut = block.rfind(b"\n") + 1 or len(block)
            block, rest = block[:cut], block[cut:]
            yield _words(block)
        if rest:
            yield _words(rest)

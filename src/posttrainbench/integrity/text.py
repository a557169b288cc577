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
# Of one file, unpacked. What goes on longer (a compressed file can, for ever) is named as not read to its end.
_LONGEST = 2 * 2**30
_OPENERS: Mapping[str, Any] = {".gz": gzip.open, ".bz2": bz2.open, ".xz": lzma.open}
# Formats whose text cannot be seen without a decoder that we do not have; named in the record.
OPAQUE = (".parquet", ".zip", ".zst", ".7z", ".rar", ".tar", ".tgz")
_ESCAPE = re.compile(rb"\\u[0-9a-fA-F]{4}|\\[nrtbf\"/]")
_WORD = re.compile(rb"[0-9a-z\x80-\xff]+")


def words_of(text: str) -> list[bytes]:
    """Lower-cased words and numbers of a text, punctuation dropped."""
    return _WORD.findall(text.lower().encode())


def _open(path: Path) -> IO[bytes]:
    opener = _OPENERS.get(path.suffix, open)
    file: IO[bytes] = opener(path, "rb")
    return file


def pieces(path: Path) -> Iterator[list[bytes]]:
    """The words of a file in pieces of some MiB; binary formats give what readable words they hold.

    Raises:
        OSError, EOFError, ValueError: a broken or endless file.

    A piece ends at a line where there is one, so that items are rarely torn. Escapes of JSON strings count as blanks.
    """
    with _open(path) as file:
        rest, seen = b"", 0
        while block := file.read(_PIECE):
            seen += len(block)
            if seen > _LONGEST:
                raise ValueError(f"more than {_LONGEST} bytes of text")
            block = rest + block
            cut = block.rfind(b"\n") + 1 or len(block)
            block, rest = block[:cut], block[cut:]
            yield _WORD.findall(_ESCAPE.sub(b" ", block).lower())
        if rest:
            yield _WORD.findall(_ESCAPE.sub(b" ", rest).lower())

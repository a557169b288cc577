"""Globs over paths, matched in a time that grows with the text only, whatever the text is.

As regular expressions, three stars took 36 s for a path of 16,000 characters that an agent had chosen, in the process that
serves all its doors. Without braces the first place where each piece between two stars fits is always a right one, so
there is nothing to go back to.
"""

from __future__ import annotations

import re
from collections.abc import Iterable

_MOST = 2000
"""Readings of one glob's braces; shipped ones have at most 24."""


class Globs:
    """Some globs, as one: `*` stands for any characters, `?` for one, `{a,b}` for a or b. Case is that of folded text.

    Raises:
        ValueError: braces that do not match, or too many of them.
    """

    def __init__(self, globs: Iterable[str]) -> None:
        plain = dict.fromkeys(each for glob in globs for each in _without_braces(glob.casefold()))
        self._all = tuple(tuple(map(_Piece, each.split("*"))) for each in plain)

    def matches(self, text: str) -> bool:
        """Whether one of them is the whole text."""
        return any(_fits(pieces, text) for pieces in self._all)


class _Piece:
    """What stands between two stars."""

    def __init__(self, glob: str) -> None:
        self.size = len(glob)
        self._text = glob
        self._pattern = re.compile(re.escape(glob).replace(r"\?", "."), re.DOTALL) if "?" in glob else None

    def at(self, text: str, place: int) -> bool:
        return text.startswith(self._text, place) if self._pattern is None else bool(self._pattern.match(text, place))

    def find(self, text: str, begin: int, end: int) -> int:
        if self._pattern is None:
            return text.find(self._text, begin, end)
        found = self._pattern.search(text, begin, end)
        return -1 if found is None else found.start()


def _fits(pieces: tuple[_Piece, ...], text: str) -> bool:
    first, last = pieces[0], pieces[-1]
    if len(pieces) == 1:
        return len(text) == first.size and first.at(text, 0)
    place, end = first.size, len(text) - last.size
    if place > end or not last.at(text, end) or not first.at(text, 0):
        return False
    for piece in pieces[1:-1]:
        found = piece.find(text, place, end)
        if found < 0:
            return False
        place = found + piece.size
    return True


def _without_braces(glob: str) -> list[str]:
    found, rest = _sequence(glob, 0, nested=False)
    assert rest == len(glob)
    return found


def _sequence(glob: str, at: int, *, nested: bool) -> tuple[list[str], int]:
    """All readings from `at` to the end, or to the comma or brace that ends an alternative."""
    found = [""]
    while at < len(glob) and not (nested and glob[at] in ",}"):
        options, after = [glob[at]], at + 1
        if glob[at] == "{":
            options = []
            while True:
                more, after = _sequence(glob, after, nested=True)
                options += more
                if after == len(glob):
                    raise ValueError(f"{glob!r} has a brace that nothing closes")
                after += 1
                if glob[after - 1] == "}":
                    break
        if len(found) * len(options) > _MOST:
            raise ValueError(f"{glob!r} has too many braces")
        found = [begin + option for begin in found for option in options]
        at = after
    return found, at

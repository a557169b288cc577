"""Repetition limiting, as the published evaluation does before LLM grading (reference.md 1.8). For `paper` only.

It keeps a degenerate answer from costing the grader, and cuts legitimate long rules and tables as well (40 dashes become
16), which is why `strict` does without.
"""

from __future__ import annotations

import re

MOST = 5  # repetitions that stay
_ROUNDS = 10
_BLOCKS = range(2, 30)  # lines
_UNITS = ((3, 30), (30, 60), (60, 120), (120, 250), (250, 500))  # characters
_REPEATED_UNITS = [re.compile(rf"(.{{{low},{high}}}?)\1{{{MOST},}}", re.DOTALL) for low, high in _UNITS]
_LONGEST = 200_000  # characters; the backreferences take more than linear time


def _lines(lines: list[str]) -> list[str]:
    """At most `MOST` equal lines in a row."""
    kept: list[str] = []
    row = 0
    for line in lines:
        row = row + 1 if kept and line == kept[-1] else 1
        if row <= MOST:
            kept.append(line)
    return kept


def _blocks(lines: list[str], size: int) -> list[str]:
    """At most `MOST` equal blocks of `size` lines in a row; a piece of the block that follows them is dropped too."""
    kept: list[str] = []
    position = 0
    while position < len(lines):
        block = lines[position : position + size]
        end = position + size
        while len(block) == size and lines[end : end + size] == block:
            end += size
        count = (end - position) // size
        if len(block) < size or count <= MOST:
            kept.append(lines[position])
            position += 1
            continue
        kept += block * MOST
        while end < len(lines) and lines[end] == block[(end - position) % size]:
            end += 1
        position = end
    return kept


def limit_repetitions(text: str) -> str:
    """At most five repetitions of lines, of blocks of 2 to 29 lines, and of units of 3 to 500 characters."""
    for _ in range(_ROUNDS):
        lines = _lines(text.split("\n"))
        for size in _BLOCKS:
            if size >= len(lines) / MOST + 1:
                break
            lines = _blocks(lines, size)
        limited = "\n".join(lines)
        if len(limited) <= _LONGEST:
            for pattern in _REPEATED_UNITS:
                limited = pattern.sub(lambda match: match.group(1) * MOST, limited)
        if limited == text:
            break
        text = limited
    return text

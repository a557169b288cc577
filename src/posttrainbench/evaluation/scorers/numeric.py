"""Numeric answers (GSM8K, AIME, smoke-math): the paper's suffix match and our strict equality, as plain functions."""

from __future__ import annotations

import re
from fractions import Fraction

_MARKUP = re.compile(r"[$,£€*_]")
_LONE_POINT = re.compile(r"\.(?=\s|$|\D)")


def _five_digits(token: str) -> str:
    # the reference compares after rounding to 5 significant digits: 123456 equals 123457 there (reference.md 1.1)
    try:
        return format(float(token), ".5g")
    except (ValueError, OverflowError):
        return token


def paper_numeric(completion: str, target: str) -> bool:
    """The published scoring: Inspect 0.3.150 `match(numeric=True, location="end")`, quirks included (reference.md 1.1).

    The last bare number anywhere in the completion counts, and it is correct when it *ends with* the target, so that
    18 passes for 8 and -5 for 5. For comparison with published numbers only.
    """
    value, wanted = completion.strip().casefold(), target.strip().casefold()
    if not wanted.isnumeric():
        strip = " \t\r\n.,;:!?'\"()[]{}"
        return value.strip(strip).endswith(wanted.strip(strip))
    value = _LONE_POINT.sub("", _MARKUP.sub("", value))
    wanted = _five_digits(_LONE_POINT.sub("", _MARKUP.sub("", wanted)))
    tokens = value.split()
    if not tokens:
        return False
    chosen = next((t for t in reversed(tokens) if t.replace(".", "").isnumeric()), tokens[-1])
    return _five_digits(chosen).endswith(wanted)


_THINK_END = "</think>"
_ANSWER = re.compile(r"^[\s*_#>`$-]*answer\s*(?:\*\*|__)?\s*:\s*(.*)$", re.IGNORECASE)
_NUMBER = re.compile(r"[-+\u2212]?(?:\d{1,3}(?:,\d{3})+|\d+)(?:\.\d+)?(?:/\d+)?|[-+\u2212]?\.\d+")
_LONGEST = 64  # digits; no benchmark's answer comes near, and arithmetic on a million digits is a denial of service


def visible_text(completion: str) -> str:
    """The completion without its thinking: what follows the last `</think>`; nothing if a `<think>` is never closed."""
    head, found, tail = completion.rpartition(_THINK_END)
    text = tail if found else head + tail
    return text.partition("<think>")[0]


def parse_number(text: str) -> Fraction | None:
    """The one number in `text`; `None` if it holds none, several, or one that cannot be parsed."""
    found = _NUMBER.findall(text)
    if len(found) != 1 or len(found[0]) > _LONGEST:
        return None
    token = found[0].replace(",", "").replace("\u2212", "-")
    rest = text.replace(found[0], " ", 1)
    # 1e5, 3x, x3: part of a larger expression, not the number itself
    position = text.find(found[0])
    before = text[position - 1 : position]
    after = text[position + len(found[0]) :][:1]
    if before.isalnum() or after.isalnum() or after == "^" or any(c.isdigit() for c in rest):
        return None
    try:
        return Fraction(token)
    except (ValueError, ZeroDivisionError):
        return None


def strict_answer(completion: str) -> str | None:
    """The stated answer: the rest of the last line that begins with `ANSWER:` outside of thinking, `None` without one."""
    answer = None
    for line in visible_text(completion).splitlines():
        matched = _ANSWER.match(line)
        if matched:
            answer = matched.group(1).strip()
    return answer


def strict_numeric(completion: str, target: str) -> bool:
    """Equality as numbers of the stated answer (`strict_answer`) and the target.

    The line must hold exactly one number; currency signs, units and markup around it do not matter.
    """
    answer = strict_answer(completion)
    wanted = parse_number(target)
    if answer is None or wanted is None:
        return False
    return parse_number(answer) == wanted

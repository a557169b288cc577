"""Numeric answers (GSM8K, AIME, smoke-math): the paper's suffix match and our strict equality, as plain functions."""

from __future__ import annotations

import re
import string
from fractions import Fraction

from inspect_ai._util.text import str_to_float  # these two read ½ and 2² as the reference did
from inspect_ai.scorer._unicode import unicode_number_to_float

from posttrainbench.evaluation.scorers.text import paper_text, strict_answer, visible_text

_MARKUP = re.compile(r"[$,£€*_]")
_LONE_POINT = re.compile(r"\.(?=\s|$|\D)")
_BOXED = re.compile(r"\\boxed\{(.+)\}")


def _is_numeric(token: str) -> bool:
    return token.replace(".", "").isnumeric()


def _five_digits(token: str) -> str:
    # The reference compares after rounding to 5 significant digits: 123456 equals 123457 there (reference.md 1.1).
    # A token such as 1.2.3, which cannot be converted, made its whole evaluation end; here it is just not right.
    if not _is_numeric(token):
        return token
    for convert in (str_to_float, unicode_number_to_float):
        try:
            return format(convert(token), ".5g")
        except (ValueError, OverflowError):
            continue
    return ""


def paper_numeric(completion: str, target: str) -> bool:
    """The published scoring: Inspect 0.3.150 `match(numeric=True, location="end")`, quirks included (reference.md 1.1).

    The last bare number anywhere in the completion counts, and it is correct when it *ends with* the target, so that
    18 passes for 8 and -5 for 5. A target that is not made of digits alone (1,000 or -5) is compared as text, at the end
    of the completion. For comparison with published numbers only.
    """
    value, wanted = paper_text(completion).strip().casefold(), target.strip().casefold()
    if not wanted.isnumeric():
        strip = string.whitespace + string.punctuation
        return value.strip(strip).endswith(wanted.strip(strip))
    value = _LONE_POINT.sub("", _MARKUP.sub("", value))
    wanted = _five_digits(_LONE_POINT.sub("", _MARKUP.sub("", wanted)))
    tokens = re.split(r"\s+", value)
    chosen = next((token for token in reversed(tokens) if _is_numeric(token)), tokens[-1])
    return _five_digits(chosen).endswith(wanted)


def paper_aime(completion: str, target: str) -> bool:
    r"""The published AIME scoring: `\boxed{...}` replaced by its content everywhere, then `paper_numeric`."""
    return paper_numeric(_BOXED.sub(r"\1", paper_text(completion)), target)


# Line starts that carry no meaning: markup, list marks, quote marks, a display-math delimiter.
# A group of digits with its sign; a sign may stand before or behind a currency mark and apart from the digits.
_NUMBER = re.compile(
    r"(?:[-+\u2212]\s*)?[$£€\\]*(?:[-+\u2212]\s*)?(?:\d{1,3}(?:,\d{3})+(?!\d)|\d+)?(?:\.\d+)?(?:/\d+)?"
)
_LONGEST = 64  # characters; no answer comes near, and arithmetic on a million digits is a denial of service
# Beside the number these make another statement of it: bounds, powers, exponents, products, a choice of two.
_DEGREES = re.compile(r"\^\s*\{?\s*\\circ\s*\}?|°")
_BOUND = re.compile(r"[<>≤≥≠^!|]|\\(?:le|ge|leq|geq|lt|gt|ne|neq|frac|sqrt|times|cdot|pm)\b")


def parse_number(text: str) -> Fraction | None:
    """The one number in `text`; `None` if it holds none, several, or something else than a plain number.

    Read: `18`, `-3`, `$1,250.50`, `7/2`, `**42**`, `\\boxed{42}`, `18 dollars`, `50%` (as 50), `x = 42`, `336^\\circ`.
    Not read: `5e3`, `3x`, `2^10`, `>= 4`, `4 or 5`, `1,00`, `1 000`, `1.2.3`, `½`.
    """
    text = _DEGREES.sub("", text[: 11 * _LONGEST])
    if len(text) > 10 * _LONGEST or _BOUND.search(text):
        return None
    found = [match for match in _NUMBER.finditer(text) if any(character.isdigit() for character in match.group())]
    if len(found) != 1 or len(found[0].group()) > _LONGEST:
        return None
    before, token, after = text[: found[0].start()], found[0].group(), text[found[0].end() :]
    rest = before + after
    # other digits (², ½, Arabic-Indic ones) beside it, or letters that touch it: part of a larger expression
    if any(character.isnumeric() for character in rest) or before[-1:].isalnum() or after[:1].isalnum():
        return None
    if after[:1] == "." and after[1:2].isalnum():
        return None
    plain = re.sub(r"[\s$£€\\,]", "", token.replace("\u2212", "-"))
    if not plain.isascii() or plain.count("-") + plain.count("+") > 1:
        return None
    try:
        return Fraction(plain)
    except (ValueError, ZeroDivisionError):
        return None


def last_boxed(completion: str) -> str | None:
    r"""Content of the last `\boxed{...}` outside of thinking, braces balanced; `None` without one."""
    text = visible_text(completion)
    start = text.rfind("\\boxed{")
    if start < 0:
        return None
    depth = 0
    for position in range(start + len("\\boxed"), len(text)):
        depth += {"{": 1, "}": -1}.get(text[position], 0)
        if depth == 0:
            return text[start + len("\\boxed{") : position]
    return None


def after_hashes(completion: str) -> str | None:
    """The rest of the last line that begins with `####`, as GSM8K's own solutions end; `None` without one."""
    lines = [line.strip() for line in visible_text(completion).splitlines()]
    return next((line[4:].strip() for line in reversed(lines) if re.match(r"####(?!#)", line)), None)


def strict_numeric(completion: str, target: str) -> bool:
    r"""Equality as numbers of the stated answer and the target.

    The stated answer is the last `ANSWER:` line (`strict_answer`); only where there is none, the last `\boxed{...}`; and
    only where there is neither, the last `####` line, the form of GSM8K's own solutions. It must hold exactly one number;
    currency signs, units and markup around it do not matter. Anything that cannot be read as one number is wrong.
    """
    answer = strict_answer(completion)
    if answer is None:
        answer = last_boxed(completion)
    if answer is None:
        answer = after_hashes(completion)
    wanted = parse_number(target)
    if answer is None or wanted is None:
        return False
    return parse_number(answer) == wanted

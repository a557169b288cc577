"""Multiple choice (GPQA): the paper's first match and our last stated letter, as plain functions."""

from __future__ import annotations

import re

from posttrainbench.evaluation.scorers.text import paper_text, strict_answer

# spec/reference.md 1.3: tried in this order, and of each the first match counts
_PAPER_LINE = re.compile(r"^ANSWER\s*:\s*([A-Za-z\d ,]+)\s*(?:$|\n|\.)", re.IGNORECASE | re.MULTILINE)
_PAPER_ANYWHERE = re.compile(r"ANSWER\s*:\s*([A-Za-z\d ,]+)(?:[^\w]|\n|$|\.)", re.IGNORECASE)


def paper_choice(completion: str, target: str, *, letters: str = "ABCD") -> bool:
    """The published scoring: Inspect 0.3.150 `multiple_choice` + `choice`, quirks included (reference.md 1.3).

    The first `ANSWER: X` counts, a lower-case letter or markup around it is wrong. For comparison with published numbers.
    """
    text = paper_text(completion)
    found = _PAPER_LINE.search(text) or _PAPER_ANYWHERE.search(text)
    if found is None:
        return False
    letter = found.group(1).strip().rstrip(".")
    return len(letter) == 1 and letter in letters and letter == target


_WRAPPED = re.compile(r"\\(?:boxed|text|textbf|mathrm|mathbf)\s*\{")
# a letter alone, or with the option's text behind a bracket, point, colon or dash
_LETTER = re.compile(r"^[(\[{]*([A-Za-z])[)\]}]*(?:\s*([).:,(/\[–—-])\s*(.*))?$")


def strict_letter(completion: str, *, letters: str = "ABCD") -> str | None:
    """The stated letter: from the last line that begins with `ANSWER:` outside of thinking; `None` without exactly one.

    Case and markup do not matter (`**answer: (b)**`, `ANSWER: $\\boxed{B}$`), and the text of the option may follow
    (`ANSWER: B) the second`). `A or B`, `A, B`, `AB`, `none` and letters that are no option are no answer; neither is an
    earlier line, so that hedging over several lines gains nothing.
    """
    answer = strict_answer(completion)
    if answer is None:
        return None
    plain = re.sub(r"[*_`$\\]", "", _WRAPPED.sub("{", answer)).strip().rstrip(".").strip()
    matched = _LETTER.match(plain)
    if matched is None or matched.group(1).upper() not in letters:
        return None
    mark, rest = matched.group(2) or "", matched.group(3) or ""
    # "A, B", "A/B", "A) or B)": a second letter, and not the text of the option
    joined = r"" if mark in (",", "/") else r"(?:and|or|&|/|\+)\s+"
    if re.match(rf"{joined}(?:(?:and|or)\s+)?[(\[]?[{letters}](?![A-Za-z\d])", rest, re.IGNORECASE):
        return None
    return matched.group(1).upper()


def strict_choice(completion: str, target: str, *, letters: str = "ABCD") -> bool:
    """Whether the stated letter (`strict_letter`) is the target."""
    return strict_letter(completion, letters=letters) == target

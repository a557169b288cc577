"""Tokens that a submission adds to the vocabulary. A tokenizer is code: nothing of it is taken but these strings.

A normaliser or pre-tokeniser can put hints into every prompt (spec/integrity.md 5 measured one that added the answer to a
question), and a token that is a whole test question could hold its answer in one row of the embedding. So the base model's
tokenizer is used, extended by declared tokens that look like markers, and these match exactly, with every option off.
"""

from __future__ import annotations

import json
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from posttrainbench.files import sha256_file

# Gemma 3's tokenizer.json has 33 MB, Qwen3's 11 MB.
_LARGEST_TOKENIZER = 64 * 2**20
_LARGEST_TABLE = 2**20
MOST = 256
# Gemma 3 lists 6,415. Of empty objects 64 MiB hold 22 million, and a sentence on each took 3.7 GB of the harness.
_MOST_LISTED = 100_000
_MARKER = re.compile(r"<[|/]?[A-Za-z0-9_.:-]{1,40}[|/]?>|\[/?[A-Za-z0-9_.:-]{1,40}\]", re.ASCII)


@dataclass(frozen=True)
class AddedToken:
    """A token beyond the base's vocabulary.

    Attributes:
        special: left out of answers when they are decoded.
    """

    id: int
    content: str
    special: bool


class BadTokenizer(ValueError):
    """A tokenizer file that cannot be read."""


def _object(path: Path, limit: int) -> dict[str, Any]:
    try:
        if path.stat().st_size > limit:
            raise BadTokenizer(f"{path.name} has more than {limit} bytes")
        value = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise error if isinstance(error, BadTokenizer) else BadTokenizer(f"{path.name} cannot be read") from None
    if not isinstance(value, dict):
        raise BadTokenizer(f"{path.name} is not a JSON object")
    return value


def _listed(tokenizer: dict[str, Any]) -> list[dict[str, Any]]:
    entries = tokenizer.get("added_tokens") or []
    if not isinstance(entries, list) or not all(isinstance(entry, dict) for entry in entries):
        raise BadTokenizer("added_tokens is not a list of objects")
    if len(entries) > _MOST_LISTED:
        raise BadTokenizer(f"added_tokens has more than {_MOST_LISTED} entries")
    return entries


def vocabulary(base: Path) -> dict[str, int]:
    """All tokens of the base model's tokenizer.

    Raises:
        BadTokenizer: it has no readable tokenizer.json.
    """
    tokenizer = _object(base / "tokenizer.json", _LARGEST_TOKENIZER)
    model = tokenizer.get("model") or {}
    found: dict[str, int] = {}
    table = model.get("vocab")
    if isinstance(table, dict):
        found |= {str(token): int(number) for token, number in table.items()}
    elif isinstance(table, list):  # unigram: pairs of token and score
        found |= {str(entry[0]): number for number, entry in enumerate(table)}
    return found | {str(entry["content"]): int(entry["id"]) for entry in _listed(tokenizer)}


def size(base: Path) -> int:
    """Ids that the base model's tokenizer uses: its largest one plus one; 0 if that cannot be read."""
    try:
        return max(vocabulary(base).values(), default=-1) + 1
    except (BadTokenizer, KeyError, TypeError, ValueError):
        return 0


def _declared(submission: Path) -> list[tuple[Any, Any, bool]]:
    found: list[tuple[Any, Any, bool]] = []
    if (submission / "tokenizer.json").is_file():
        for entry in _listed(_object(submission / "tokenizer.json", _LARGEST_TOKENIZER)):
            found.append((entry.get("content"), entry.get("id"), entry.get("special") is True))
    if (submission / "added_tokens.json").is_file():
        known = {content for content, _, _ in found}
        table = _object(submission / "added_tokens.json", _LARGEST_TABLE)
        found += [(content, number, False) for content, number in table.items() if content not in known]
    return found


def _differs(submission: Path, base: Path) -> bool:
    own, wanted = submission / "tokenizer.json", base / "tokenizer.json"
    if not own.is_file() or not wanted.is_file():
        return False
    return own.stat().st_size != wanted.stat().st_size or sha256_file(own) != sha256_file(wanted)


def added(submission: Path, base: Path) -> tuple[tuple[AddedToken, ...], list[str]]:
    """The tokens that a submission declares beyond the base's.

    Returns:
        Those that are taken over, by id, and what cannot be, one sentence each.
    """
    if not (submission / "added_tokens.json").is_file() and not _differs(submission, base):
        return (), []
    try:
        known = vocabulary(base)
        entries = _declared(submission)
    except (BadTokenizer, KeyError, TypeError, ValueError) as error:
        # the base's tokenizer is used, and it is complete: a broken one of the submission's is no loss
        return (), [] if isinstance(error, BadTokenizer) else [f"added tokens cannot be read: {type(error).__name__}"]
    start, problems, found = max(known.values(), default=-1) + 1, [], []
    for content, number, special in entries:
        if isinstance(content, str) and known.get(content) == number:
            continue
        shown = ascii(content)[:60]
        if not isinstance(content, str) or type(number) is not int:
            problems.append(f"added token {shown} is no string with a number")
        elif content in known:
            problems.append(f"token {shown} has id {number}, the base model's has {known[content]}")
        elif not _MARKER.fullmatch(content):
            problems.append(f"added token {shown} is not taken over: only markers like <|name|>, <name>, [name] are")
        else:
            found.append(AddedToken(number, content, special))
    found.sort(key=lambda token: token.id)
    if len(found) > MOST:
        problems.append(f"{len(found)} added tokens, at most {MOST} are taken over")
    elif [token.id for token in found] != list(range(start, start + len(found))):
        problems.append(f"added tokens must have the ids that follow the base's vocabulary, {start} and on")
    return tuple(found), problems[:20]


def extend(base: Path, target: Path, tokens: tuple[AddedToken, ...]) -> None:
    """Write the base model's tokenizer files with further tokens to `target`."""
    entries = [
        {
            "id": token.id,
            "content": token.content,
            "single_word": False,
            "lstrip": False,
            "rstrip": False,
            "normalized": False,
            "special": token.special,
        }
        for token in tokens
    ]
    tokenizer = _object(base / "tokenizer.json", _LARGEST_TOKENIZER)
    tokenizer["added_tokens"] = [*_listed(tokenizer), *entries]
    (target / "tokenizer.json").write_text(json.dumps(tokenizer, ensure_ascii=False), encoding="utf-8")
    settings = base / "tokenizer_config.json"
    if settings.is_file():
        value = _object(settings, _LARGEST_TOKENIZER)
        if isinstance(value.get("added_tokens_decoder"), dict):
            for entry in entries:
                rest = {key: part for key, part in entry.items() if key != "id"}
                value["added_tokens_decoder"][str(entry["id"])] = rest
        (target / "tokenizer_config.json").write_text(json.dumps(value, ensure_ascii=False), encoding="utf-8")

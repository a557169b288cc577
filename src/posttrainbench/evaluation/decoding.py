"""How answers are sampled: the submission's `generation_config.json`, within declared bounds, and nothing else of it.

The reference inherits whatever that file says (reference.md part 1.0); here every honoured key has a bound, values outside
are replaced by the default and reported, and a cap on generated tokens is never taken over. Every engine is driven by the
`Sampling` of each answer alone, so that two engines cannot read the file in two ways.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

# key -> (lowest, highest, default). The defaults are vLLM's when the file or the key is missing (reference.md part 1.0).
BOUNDS: Mapping[str, tuple[float, float, float]] = {
    "temperature": (0.0, 2.0, 1.0),
    "top_p": (0.01, 1.0, 1.0),
    "top_k": (0, 1_000_000, 0),
    "min_p": (0.0, 1.0, 0.0),
    "repetition_penalty": (0.5, 2.0, 1.0),
}

# Keys that transformers' own `generate` would follow and the published evaluation (vLLM) never did, with the value at
# which they do nothing. A file that sets one otherwise is told that it has no effect.
_WITHOUT_EFFECT: Mapping[str, tuple[Any, ...]] = {
    "num_beams": (1,),
    "no_repeat_ngram_size": (0,),
    "encoder_no_repeat_ngram_size": (0,),
    "min_length": (0,),
    "min_new_tokens": (0,),
    "typical_p": (1.0,),
    "epsilon_cutoff": (0.0,),
    "eta_cutoff": (0.0,),
    "guidance_scale": (1.0,),
    "bad_words_ids": (),
    "suppress_tokens": (),
    "begin_suppress_tokens": (),
    "forced_bos_token_id": (),
    "forced_eos_token_id": (),
    "sequence_bias": (),
    "stop_strings": (),
}


@dataclass(frozen=True, kw_only=True)
class Decoding:
    """Sampling parameters of one evaluation, as used.

    Attributes:
        eos_token_ids: generation stops at any of these (token ids).
        ignored: what the file asked for and did not get, each with the reason; empty when all was in bounds.
    """

    temperature: float = 1.0
    top_p: float = 1.0
    top_k: int = 0
    min_p: float = 0.0
    repetition_penalty: float = 1.0
    eos_token_ids: tuple[int, ...] = ()
    ignored: tuple[str, ...] = ()

    @property
    def greedy(self) -> bool:
        """True when temperature 0 makes the other sampling parameters idle."""
        return self.temperature == 0.0

    def stopping_at(self, token_ids: Iterable[int | None]) -> Decoding:
        """The same with further end-of-sequence ids (the tokenizer's own); `None` entries are skipped."""
        merged = {*self.eos_token_ids, *(token for token in token_ids if token is not None)}
        return dataclasses.replace(self, eos_token_ids=tuple(sorted(merged)))


@dataclass(frozen=True, kw_only=True)
class Sampling:
    """All that an engine may know about how to sample one answer.

    Attributes:
        seed: 63 bits, this answer's own.
        max_tokens: generated tokens at most, the protocol's limit and the model's context taken together.
        stop_token_ids: sorted; the one that ends an answer is not part of it.
    """

    temperature: float
    top_p: float
    top_k: int
    min_p: float
    repetition_penalty: float
    seed: int
    max_tokens: int
    stop_token_ids: tuple[int, ...]

    @classmethod
    def of(cls, decoding: Decoding, *, seed: int, max_tokens: int) -> Sampling:
        """The parameters of one answer under `decoding`."""
        return cls(
            temperature=decoding.temperature,
            top_p=decoding.top_p,
            top_k=decoding.top_k,
            min_p=decoding.min_p,
            repetition_penalty=decoding.repetition_penalty,
            seed=seed,
            max_tokens=max_tokens,
            stop_token_ids=decoding.eos_token_ids,
        )


def derive_seed(base: int, *parts: str) -> int:
    """A 63-bit seed from the base seed and identifying strings (such as the prompt), stable across machines."""
    digest = hashlib.sha256("\x1f".join([str(base), *parts]).encode()).digest()
    return int.from_bytes(digest[:8], "big") >> 1


def _number(value: Any) -> float | None:
    if isinstance(value, bool) or not isinstance(value, int | float):
        return None
    try:
        return float(value)
    except OverflowError:
        return None


def _shown(value: Any) -> str:
    """A value of the submission's, short and in ASCII: it goes into records and onto terminals."""
    return ascii(value)[:80]


# Of what was ignored, this much is told.
_MOST_TOLD = 20


def from_config(config: Mapping[str, Any], *, vocab_size: int, protocol_max_tokens: int | None = None) -> Decoding:
    """Take the decoding parameters from the content of a generation_config.json.

    Args:
        config: the parsed file.
        vocab_size: number of token ids of the model; an eos id outside is refused.
        protocol_max_tokens: the protocol's limit; a lower `max_new_tokens` in the file is reported, and not used.
    """
    ignored: list[str] = []
    values: dict[str, float] = {}
    for key, (low, high, default) in BOUNDS.items():
        raw = config.get(key)
        if raw is None:
            values[key] = default
            continue
        number = _number(raw)
        # top_k = -1 is vLLM's spelling of "off"
        if key == "top_k" and number == -1:
            number = 0.0
        if number is None or not low <= number <= high or (key == "top_k" and number != int(number)):
            ignored.append(f"{key}={_shown(raw)} is outside [{low:g}, {high:g}]; {default:g} used")
            number = default
        values[key] = number
    raw_eos = config.get("eos_token_id")
    listed = raw_eos if isinstance(raw_eos, list) else [] if raw_eos is None else [raw_eos]
    eos: list[int] = []
    for item in listed:
        if isinstance(item, int) and not isinstance(item, bool) and 0 <= item < vocab_size:
            eos.append(item)
        else:
            ignored.append(f"eos_token_id {_shown(item)} is not a token id of the model")
    cap = config.get("max_new_tokens")
    if protocol_max_tokens is not None and cap is not None:
        wanted = _number(cap)
        if wanted is None or wanted < protocol_max_tokens:
            ignored.append(f"max_new_tokens={_shown(cap)}; the protocol's {protocol_max_tokens} used")
    for key, idle in _WITHOUT_EFFECT.items():
        raw = config.get(key)
        if raw is not None and raw not in idle:
            ignored.append(f"{key}={_shown(raw)} has no effect here")
    return Decoding(
        temperature=values["temperature"],
        top_p=values["top_p"],
        top_k=int(values["top_k"]),
        min_p=values["min_p"],
        repetition_penalty=values["repetition_penalty"],
        eos_token_ids=tuple(sorted(set(eos))),
        ignored=tuple(ignored[:_MOST_TOLD]),
    )


def from_directory(
    model: Path,
    *,
    vocab_size: int,
    protocol_max_tokens: int | None = None,
    override: Mapping[str, float] | None = None,
) -> Decoding:
    """Decoding parameters of the model directory `model`; defaults where it has no readable generation_config.json.

    Args:
        model: model directory.
        vocab_size: number of token ids of the model.
        protocol_max_tokens: the protocol's limit of generated tokens.
        override: keys of `BOUNDS` set by the harness (few-shot baselines), in the place of the file's.
    """
    path = model / "generation_config.json"
    config: Any = {}
    if path.is_file():
        try:
            config = json.loads(path.read_text(encoding="utf-8"))
        except (ValueError, OSError):
            config = None
    unreadable = not isinstance(config, dict)
    content = {**({} if unreadable else config), **(override or {})}
    decoding = from_config(content, vocab_size=vocab_size, protocol_max_tokens=protocol_max_tokens)
    if unreadable:
        note = "generation_config.json is not a JSON object; defaults used"
        return dataclasses.replace(decoding, ignored=(note, *decoding.ignored))
    return decoding

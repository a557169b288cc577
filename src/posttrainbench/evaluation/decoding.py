"""How answers are sampled: the submission's `generation_config.json`, within declared bounds, and nothing else of it.

The reference inherits whatever that file says (reference.md part 1.0); here every honoured key has a bound, values outside
are replaced by the default and reported, and a cap on generated tokens is never taken over.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
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


def _number(value: Any) -> float | None:
    if isinstance(value, bool) or not isinstance(value, int | float):
        return None
    return float(value)


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
        if number is None or not low <= number <= high:
            ignored.append(f"{key}={raw!r} is outside [{low:g}, {high:g}]; {default:g} used")
            number = default
        values[key] = number
    raw_eos = config.get("eos_token_id")
    listed = raw_eos if isinstance(raw_eos, list) else [] if raw_eos is None else [raw_eos]
    eos: list[int] = []
    for item in listed:
        if isinstance(item, int) and not isinstance(item, bool) and 0 <= item < vocab_size:
            eos.append(item)
        else:
            ignored.append(f"eos_token_id {item!r} is not a token id of the model")
    cap = config.get("max_new_tokens")
    if protocol_max_tokens is not None and cap is not None and _number(cap) != protocol_max_tokens:
        ignored.append(f"max_new_tokens={cap!r}; the protocol's {protocol_max_tokens} used")
    return Decoding(
        temperature=values["temperature"],
        top_p=values["top_p"],
        top_k=int(values["top_k"]),
        min_p=values["min_p"],
        repetition_penalty=values["repetition_penalty"],
        eos_token_ids=tuple(sorted(set(eos))),
        ignored=tuple(ignored),
    )


def from_directory(model: Path, *, vocab_size: int, protocol_max_tokens: int | None = None) -> Decoding:
    """Decoding parameters of the model directory `model`; defaults where it has no readable generation_config.json."""
    path = model / "generation_config.json"
    config: Any = {}
    if path.is_file():
        try:
            config = json.loads(path.read_text(encoding="utf-8"))
        except (ValueError, OSError):
            config = None
    if not isinstance(config, dict):
        decoding = from_config({}, vocab_size=vocab_size)
        return Decoding(
            **{**decoding.__dict__, "ignored": ("generation_config.json is not a JSON object; defaults used",)}
        )
    return from_config(config, vocab_size=vocab_size, protocol_max_tokens=protocol_max_tokens)

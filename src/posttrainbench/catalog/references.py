"""Reference scores: the base and instruct models themselves, measured by us (smoke suite) or published (paper suite)."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache
from pathlib import Path

from posttrainbench.catalog import _table

__all__ = ["Reference", "references"]
_FILE = Path("references.toml")


@dataclass(frozen=True, kw_only=True)
class Reference:
    """Score of a reference model as it is, without any training.

    Attributes:
        kind: `base` or `instruct`.
        score: fraction in [0, 1].
        source: where the figure comes from.
    """

    kind: str
    base_model: str
    benchmark: str
    score: float
    source: str


@cache
def references() -> tuple[Reference, ...]:
    """All reference scores of the catalogue."""
    found = []
    for block in _table(str(_FILE))["reference"]:
        for benchmark, score in block["scores"].items():
            found.append(
                Reference(
                    kind=block["kind"],
                    base_model=block["base_model"],
                    benchmark=benchmark,
                    score=score,
                    source=block["source"],
                )
            )
    return tuple(found)

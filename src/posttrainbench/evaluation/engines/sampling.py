"""Sampling with a seed per sequence: the answer to one prompt does not depend on what else is in the batch.

transformers draws all rows of a batch from one global generator. Adding Gumbel noise from a generator per row to the
warped log-probabilities and taking the maximum is the same as sampling from them, row by row.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence

import torch
from transformers import LogitsProcessor


def derive_seed(base: int, *parts: str) -> int:
    """A 63-bit seed from the base seed and identifying strings (such as the prompt), stable across machines."""
    digest = hashlib.sha256("\x1f".join([str(base), *parts]).encode()).digest()
    return int.from_bytes(digest[:8], "big") >> 1


class SeededSampling(LogitsProcessor):
    """Last processor of a greedy `generate`: turns the maximum into a sample.

    Args:
        seeds: one seed per row of the batch.
    """

    def __init__(self, seeds: Sequence[int]) -> None:
        self._generators = [torch.Generator().manual_seed(seed) for seed in seeds]

    def __call__(self, input_ids: torch.LongTensor, scores: torch.FloatTensor) -> torch.FloatTensor:
        """Shapes: input_ids (rows, length), scores (rows, vocabulary)."""
        exponential = torch.stack([torch.empty(scores.shape[-1]).exponential_(generator=g) for g in self._generators])
        gumbel = -torch.log(exponential.clamp_min(1e-20))
        # torch types the sum as Tensor
        return torch.log_softmax(scores.float(), dim=-1) + gumbel.to(scores.device)  # type: ignore[return-value]

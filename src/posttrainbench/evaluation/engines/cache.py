"""Key-value cache of a running batch whose rows come and go.

All rows end at the same column; a row's tokens are the contiguous block before it and padding is on the left, as in any
left-padded batch. A finished row's place is taken by the next prompt without touching its neighbours, and room is made in
steps instead of copying the whole cache for every token, which is what transformers' own dynamic cache does.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from transformers.cache_utils import Cache, DynamicCache, DynamicLayer

_STEP = 256  # columns added at once: one copy of the cache every 256 tokens, where transformers makes one per token


class _Layer(DynamicLayer):  # type: ignore[no-untyped-call]
    """One layer: buffers (rows, heads, capacity, size per head), of which `width` columns are in use."""

    def __init__(self, **_: Any) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.width = 0
        self.key_buffer: Tensor
        self.value_buffer: Tensor

    def show(self) -> tuple[Tensor, Tensor]:
        """Point the attributes that transformers reads to the columns in use."""
        self.keys = self.key_buffer[:, :, : self.width]
        self.values = self.value_buffer[:, :, : self.width]
        return self.keys, self.values

    def start(self, like: Tensor, value_like: Tensor, rows: int, capacity: int) -> None:
        """Allocate the buffers, with shapes and types of these key and value states."""
        self.lazy_initialization(like, value_like)
        self.key_buffer = like.new_zeros((rows, like.shape[1], capacity, like.shape[3]))
        self.value_buffer = value_like.new_zeros((rows, value_like.shape[1], capacity, value_like.shape[3]))

    def update(self, key_states: Tensor, value_states: Tensor, *args: Any, **kwargs: Any) -> tuple[Tensor, Tensor]:
        end = self.width + key_states.shape[-2]
        self.key_buffer[:, :, self.width : end] = key_states
        self.value_buffer[:, :, self.width : end] = value_states
        self.width = end
        return self.show()

    def move(self, rows: Tensor | None, *, drop: int, lead: int, capacity: int) -> None:
        """Copy to new buffers: keep `rows`, drop `drop` columns on the left or put `lead` empty ones there."""
        for name in ("key_buffer", "value_buffer"):
            old: Tensor = getattr(self, name)
            kept = old[:, :, drop : self.width] if rows is None else old[rows, :, drop : self.width]
            new = old.new_zeros((kept.shape[0], old.shape[1], capacity, old.shape[3]))
            new[:, :, lead : lead + kept.shape[2]] = kept
            setattr(self, name, new)
        self.width = self.width - drop + lead
        self.show()


class RowCache(Cache):
    """The cache of one batch, with its attention mask.

    Attributes:
        mask: long, (rows, capacity); 1 where a row has a token. A free row keeps its old mask: a row without any key
            would be all NaN.
    """

    def __init__(self, layers: int, rows: int, device: torch.device) -> None:
        self.own = [_Layer() for _ in range(layers)]
        super().__init__(layers=[*self.own])
        self.rows = rows
        self.width = 0
        self.capacity = 0
        self.mask = torch.zeros((rows, 0), dtype=torch.long, device=device)

    def _move(self, rows: Tensor | None, *, drop: int, lead: int, capacity: int) -> None:
        for layer in self.own:
            layer.move(rows, drop=drop, lead=lead, capacity=capacity)
        kept = self.mask[:, drop : self.width] if rows is None else self.mask[rows, drop : self.width]
        mask = self.mask.new_zeros((kept.shape[0], capacity))
        mask[:, lead : lead + kept.shape[1]] = kept
        self.mask, self.rows = mask, kept.shape[0]
        self.width, self.capacity = self.width - drop + lead, capacity

    def admit(self, prefilled: DynamicCache, mask: Tensor, rows: list[int]) -> None:
        """Put prefilled prompts into free rows.

        Args:
            prefilled: their own cache, all of one width, left-padded.
            mask: (prompts, width).
            rows: where each goes.
        """
        length = mask.shape[1]
        states = [(keys, values) for keys, values, _ in prefilled]
        if self.capacity == 0:
            self.capacity = length + _STEP
            for layer, (keys, values) in zip(self.own, states, strict=True):
                layer.start(keys, values, self.rows, self.capacity)
                layer.width = length
            self.mask = self.mask.new_zeros((self.rows, self.capacity))
            # rows that nobody has taken yet need one valid key
            self.mask[:, length - 1] = 1
            self.width = length
        elif length > self.width:
            lead = length - self.width
            self._move(None, drop=0, lead=lead, capacity=max(self.capacity, length + _STEP))
        places = torch.tensor(rows, device=self.mask.device)
        begin = self.width - length
        for layer, (keys, values) in zip(self.own, states, strict=True):
            layer.key_buffer[places, :, begin : self.width] = keys
            layer.value_buffer[places, :, begin : self.width] = values
            layer.show()
        self.mask[places] = 0
        self.mask[places, begin : self.width] = mask

    def make_room(self, longest: int) -> None:
        """Room for one more column; `longest` is the number of tokens of the longest row in use.

        What lies left of all rows is dropped when there is enough of it to be worth the copy.
        """
        spare = self.width - longest
        if self.width < self.capacity and spare < max(_STEP, longest):
            return
        capacity = longest + _STEP + longest // 8
        self._move(None, drop=spare, lead=0, capacity=capacity)

    def step(self) -> Tensor:
        """Extend every row by the token about to be fed; returns the mask for the forward pass."""
        self.mask[:, self.width] = 1
        self.width += 1
        return self.mask[:, : self.width]

    def keep(self, rows: list[int], longest: int) -> None:
        """Shrink to `rows`."""
        index = torch.tensor(rows, device=self.mask.device)
        self._move(index, drop=self.width - longest, lead=0, capacity=longest + _STEP + longest // 8)

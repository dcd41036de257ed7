"""Attention contexts of a decoder whose tensors keep their shapes and addresses.

They take the place of training's contexts (`attention_context.py`), so that a new position of every
row runs through the same `Stage` as in training, with one position of each row laid flat.

Shapes:
    B   rows                     H   heads of c channels
    m   positions in a sequence of the stage: a row for stage 0, else a position of its parent
    r   positions of the preceding sequence that a position attends to
    Q   sequences of a prompt    n   positions of a sequence
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from einops import rearrange
from torch import Tensor

from bytelm.model.attention_context import AttentionContext


@dataclass(frozen=True)
class RowCaches:
    """Keys and values of one layer in all rows: r of the preceding sequence, then m."""

    keys: Tensor
    """[B, H, r + m, c]."""
    values: Tensor
    """[B, H, r + m, c]."""
    previous: int
    """r."""

    def rows(self, rows: slice) -> RowCaches:
        """A view of some rows."""
        return RowCaches(self.keys[rows], self.values[rows], self.previous)


class DocumentContext:
    """Attention of a new position of stage 0 to its row, whose place only the device knows.

    Args:
        cache: of the layer.
        position: [1] int64, the new position of all rows.
        bias: [m], added to the scores; see `position_bias`.
    """

    def __init__(self, cache: RowCaches, position: Tensor, bias: Tensor) -> None:
        self.cache, self.position, self.bias = cache, position, bias

    def attend(self, queries: Tensor, keys: Tensor, values: Tensor) -> Tensor:
        """Store keys and values and attend with scaled queries, [B, H, c] to [B, H, c]."""
        for cached, new in ((self.cache.keys, keys), (self.cache.values, values)):
            cached.index_copy_(2, self.position, new[:, :, None].to(cached.dtype))
        return _attend(queries, self.cache.keys, self.cache.values, self.bias)


def position_bias(position: Tensor, slots: int, window: int, dtype: torch.dtype) -> Tensor:
    """[slots], 0 for `position` [1] and up to `window` (0: all) slots that end there, else -inf."""
    slot = torch.arange(slots, device=position.device)
    is_masked = slot > position
    if window:
        is_masked |= slot <= position - window
    return torch.zeros_like(slot, dtype=dtype).masked_fill(is_masked, -torch.inf)


class SequenceContext:
    """Attention of a new position below stage 0, at an offset that is the same in every step.

    No row is in its first sequence, so that all r positions of the preceding one exist.
    """

    def __init__(self, cache: RowCaches, offset: int) -> None:
        self.cache, self.offset = cache, offset

    def attend(self, queries: Tensor, keys: Tensor, values: Tensor) -> Tensor:
        """Store keys and values and attend with scaled queries, [B, H, c] to [B, H, c]."""
        r = self.cache.previous
        slot = r + self.offset
        for cached, new in ((self.cache.keys, keys), (self.cache.values, values)):
            if self.offset == 0 and r:  # the newest sequence becomes the preceding one
                cached[:, :, :r] = cached[:, :, -r:]
            cached[:, :, slot] = new
        keys, values = self.cache.keys[:, :, : slot + 1], self.cache.values[:, :, : slot + 1]
        return _attend(queries, keys, values, None)


@dataclass(frozen=True)
class PromptContext:
    """Attention over Q sequences of n positions of each row's prompt, which fills the caches."""

    cache: RowCaches
    context: AttentionContext
    """The context of training for these positions, row after row."""
    n: int
    newest: int
    """The sequence of Q in which the rows stand."""

    def attend(self, queries: Tensor, keys: Tensor, values: Tensor) -> Tensor:
        """Causal attention of scaled queries, [B Q n, H, c] to [B Q n, H, c]."""
        r, rows = self.cache.previous, len(self.cache.keys)
        for cached, new in ((self.cache.keys, keys), (self.cache.values, values)):
            by_sequence = rearrange(new, "(B Q n) H c -> B Q H n c", B=rows, n=self.n)
            cached[:, :, r : r + self.n] = by_sequence[:, self.newest]
            cached[:, :, :r] = by_sequence[:, max(self.newest - 1, 0), :, self.n - r :]
        return self.context.attend(queries, keys, values)


def _attend(queries: Tensor, keys: Tensor, values: Tensor, bias: Tensor | None) -> Tensor:
    """Queries [B, H, c] to [B, H, c], over keys and values [B, H, slots, c] and a bias [slots]."""
    q = queries[:, :, None].to(keys.dtype)
    mask = None if bias is None else bias[None, None, None]
    return F.scaled_dot_product_attention(q, keys, values, attn_mask=mask, scale=1.0)[:, :, 0]

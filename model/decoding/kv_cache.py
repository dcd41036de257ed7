"""Key-value caches of the decoder, and how new positions attend to them.

Shapes:
    B   rows of the decoder      R   rows that a stage advances
    m   positions in a sequence of the stage: a row for stage 0, else a position of its parent
    r   positions of the preceding sequence that a position attends to
    Q   sequences of a prompt    n   positions of a sequence
    H   heads of c channels      D   width of the stage
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

import torch
from einops import rearrange
from torch import Tensor

from bytelm.model.attention_context import AttentionContext
from bytelm.model.stage import Stage


@dataclass(frozen=True)
class CacheSlots:
    """Slots of a stage's caches: r of the preceding sequence, then m of the current one."""

    previous: int
    """r."""
    current: int
    """m."""
    window: int
    """Positions that one attends to, its own among them."""

    @classmethod
    def of(cls, stage: Stage, sequence_length: int) -> "CacheSlots":
        """Slots of a stage whose sequences have `sequence_length` positions."""
        previous = stage.cross_patch_keys
        window = stage.attention_window or previous + sequence_length
        return cls(previous, sequence_length, window)


@dataclass(frozen=True)
class KVCache:
    """Keys and values of one layer, for all rows or for one."""

    keys: Tensor
    """[B H, r + m, c]."""
    values: Tensor
    """[B H, r + m, c]."""

    def row(self, row: int, heads: int) -> "KVCache":
        """A view of one row's keys and values, [H, r + m, c] each."""
        of_row = slice(row * heads, (row + 1) * heads)
        return KVCache(self.keys[of_row], self.values[of_row])


class CachedRows(Protocol):
    """Rows that a stage advances by one position each."""

    def attend(self, cache: KVCache, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        """Store k and v and attend, [R, H, c] each; returns [R, D]."""


class AlignedRows:
    """All rows of a cache, at the same position.

    Args:
        slots: of the stage.
        offset: the new position within its sequence.
        is_first: whether the sequence is the row's first, without a preceding one.
    """

    def __init__(self, slots: CacheSlots, offset: int, *, is_first: bool) -> None:
        r = slots.previous
        self.slot = r + offset
        low = max(r if is_first else 0, self.slot + 1 - slots.window)
        self.attended = slice(low, self.slot + 1)
        # Where a new sequence begins, the last r slots move to those of the preceding sequence.
        self.ending = slice(slots.current, None) if offset == 0 and r else None

    def attend(self, cache: KVCache, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        """Store k and v and attend, [R, H, c] each; returns [R, D]."""
        keys, values = cache.keys, cache.values
        if self.ending is not None:
            r = self.slot
            keys[:, :r] = keys[:, self.ending]
            values[:, :r] = values[:, self.ending]
        keys.select(1, self.slot).copy_(k.flatten(0, 1))
        values.select(1, self.slot).copy_(v.flatten(0, 1))
        keys, values = keys[:, self.attended], values[:, self.attended]
        q = q.reshape(-1, 1, q.shape[-1]).to(keys.dtype)  # [R H, 1, c]
        weights = torch.bmm(q, keys.mT).softmax(-1)  # [R H, 1, attended]
        return torch.bmm(weights, values).view(len(k), -1)


class RaggedRows:
    """Some rows, each at its own position. Slower, because they attend one after another.

    Args:
        slots: of the stage.
        rows: numbers of the rows.
        offsets, is_first: as in `AlignedRows`, for each of them.
    """

    def __init__(
        self,
        slots: CacheSlots,
        rows: Sequence[int],
        offsets: Sequence[int],
        is_first: Sequence[bool],
    ) -> None:
        self.rows = rows
        self.single_rows = [
            AlignedRows(slots, offset, is_first=first)
            for offset, first in zip(offsets, is_first, strict=True)
        ]

    def attend(self, cache: KVCache, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        """Store k and v and attend, [R, H, c] each; returns [R, D]."""
        heads = q.shape[1]
        parts = zip(self.rows, self.single_rows, q.split(1), k.split(1), v.split(1), strict=True)
        return torch.cat(
            [single.attend(cache.row(row, heads), *qkv) for row, single, *qkv in parts]
        )


@dataclass(frozen=True)
class PrefillContext:
    """Attention over Q sequences of n positions of a prompt, which fills one row's cache."""

    cache: KVCache
    """The row's, [H, r + m, c]."""
    slots: CacheSlots
    context: AttentionContext
    """The context of training for these positions."""
    n: int
    newest: int
    """The position of Q * n at which the row stands; the cache receives its sequence."""

    def attend(self, queries: Tensor, keys: Tensor, values: Tensor) -> Tensor:
        """Causal attention of scaled queries, [Q n, H, c] to [Q n, H, c]."""
        r, sequence = self.slots.previous, self.newest // self.n
        for cached, new in ((self.cache.keys, keys), (self.cache.values, values)):
            by_sequence = rearrange(new, "(Q n) H c -> Q H n c", n=self.n)
            cached[:, r : r + self.n] = by_sequence[sequence]
            cached[:, :r] = by_sequence[max(sequence - 1, 0), :, self.n - r :]
        return self.context.attend(queries, keys, values)

"""What each position of a stage may attend to."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

import torch
from einops import rearrange
from torch import Tensor

from bytelm.model.attention import causal_attention, causal_bias, masked_attention

Groups = Sequence[tuple[int, int]]
"""(M, n) of each run of equally long segments, in the order in which they lie in S."""


class AttentionContext(Protocol):
    """What a layer sees of other positions: in training, or from a decoder's cache."""

    def attend(self, queries: Tensor, keys: Tensor, values: Tensor) -> Tensor:
        """Causal attention of queries that are scaled already, [S, H, c] to [S, H, c]."""


class PackedContext:
    """Attention inside each segment; its cost is that of the segments run alone.

    window: how many positions one sees, its own among them; 0 = all of its segment.
    """

    def __init__(self, groups: Groups, window: int = 0) -> None:
        self.groups = groups
        self.window = window

    def attend(self, queries: Tensor, keys: Tensor, values: Tensor) -> Tensor:
        sizes = [count * length for count, length in self.groups]
        parts = zip(*(each.split(sizes) for each in (queries, keys, values)), strict=True)
        outputs = []
        for (count, _), part in zip(self.groups, parts, strict=True):
            q, k, v = (rearrange(each, "(M n) H c -> M H n c", M=count) for each in part)
            output = causal_attention(q, k, v, self.window)
            outputs.append(rearrange(output, "M H n c -> (M n) H c"))
        return outputs[0] if len(outputs) == 1 else torch.cat(outputs)


class CrossPatchContext(PackedContext):
    """Attention inside each of M sequences and to the last r positions of the one before.

    opens [M] bool: the sequences that open a document, which have none before.
    carry [2, H, r, c]: the last keys and values before the first sequence, None where there are
        none; those of the last sequence once the layer has run.
    room [2, H, r, c]: for the latter, made before the layer runs: what stays must not lie between
        what goes, which keeps the allocator from using that again.
    """

    def __init__(self, opens: Tensor, length: int, carry: Tensor | None, room: Tensor) -> None:
        super().__init__([(len(opens), length)])
        self.back = room.shape[2]
        self.opens = opens
        self.carry = carry
        self.room = room

    def attend(self, queries: Tensor, keys: Tensor, values: Tensor) -> Tensor:
        q, k, v = (
            rearrange(each, "(M n) H c -> M H n c", M=len(self.opens))
            for each in (queries, keys, values)
        )
        n = q.shape[2]
        last = torch.stack([k[:, :, n - self.back :], v[:, :, n - self.back :]])  # [2, M, H, r, c]
        carry = torch.zeros_like(last[:, 0]) if self.carry is None else self.carry
        self.carry = self.room.copy_(last[:, -1])
        k_back, v_back = torch.cat([carry[:, None], last[:, :-1]], dim=1)  # [M, H, r, c]
        k, v = torch.cat([k_back, k], dim=2), torch.cat([v_back, v], dim=2)
        bias = causal_bias(q, n, self.back).repeat(len(self.opens), 1, 1)  # [M, n, r + n]
        bias[:, :, : self.back].masked_fill_(self.opens[:, None, None], -torch.inf)
        output = masked_attention(q, k, v, rearrange(bias, "M n k -> M 1 n k"))
        return rearrange(output, "M H n c -> (M n) H c")

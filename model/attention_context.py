"""Attention contexts: what each position of a stage may attend to.

Shapes:
    S   positions of a stage laid flat, sequence after sequence
    M   sequences of equal length
    n   positions of a sequence
    r   last positions of the preceding sequence that a position also attends to
    H   heads, each of c channels
"""

from __future__ import annotations

from typing import Protocol

import torch
from einops import rearrange
from torch import Tensor

from bytelm.model.attention import (
    causal_attention,
    causal_bias,
    masked_attention,
    takes_documents,
    varlen_causal_attention,
)
from bytelm.model.attention_short import is_short, short_attention
from bytelm.model.layout import Groups


class AttentionContext(Protocol):
    """The keys and values that a layer's positions attend to, in training or from a cache."""

    def attend(self, queries: Tensor, keys: Tensor, values: Tensor) -> Tensor:
        """Causal attention of scaled queries, [S, H, c] to [S, H, c]."""


class PackedContext:
    """Attention within each of the sequences packed into S, at the cost of running them alone.

    A GPU runs all of them in one call: documents in one for sequences of any lengths, patches in
    one for short sequences. A CPU runs a group of equal lengths after the other.

    Args:
        groups: lengths of the sequences.
        window: positions that one attends to, its own among them; 0 = all of its sequence.
        cu_seqlens: [sequences + 1] int32, first position of each sequence, then S; None where a
            GPU gets short sequences of one length, or long ones a group at a time.
    """

    def __init__(self, groups: Groups, window: int = 0, cu_seqlens: Tensor | None = None) -> None:
        self.groups = groups
        self.window = window
        self.cu_seqlens = cu_seqlens

    def attend(self, queries: Tensor, keys: Tensor, values: Tensor) -> Tensor:
        """Causal attention of scaled queries, [S, H, c] to [S, H, c]."""
        longest = max(length for _, length in self.groups)
        if self.cu_seqlens is not None and takes_documents(queries):
            return varlen_causal_attention(
                queries, keys, values, self.cu_seqlens, longest, self.window
            )
        if len(self.groups) == 1 and not self.window and is_short(queries, longest):
            return short_attention(queries, keys, values, longest)
        return self._attend_by_group(queries, keys, values)

    def _attend_by_group(self, queries: Tensor, keys: Tensor, values: Tensor) -> Tensor:
        """The same, one group of sequences of equal length after the other."""
        sizes = [count * length for count, length in self.groups]
        parts = zip(*(x.split(sizes) for x in (queries, keys, values)), strict=True)
        outputs = []
        for (count, _), part in zip(self.groups, parts, strict=True):
            q, k, v = (rearrange(x, "(M n) H c -> M H n c", M=count) for x in part)
            output = causal_attention(q, k, v, self.window)
            outputs.append(rearrange(output, "M H n c -> (M n) H c"))
        return outputs[0] if len(outputs) == 1 else torch.cat(outputs)


class CrossPatchContext:
    """Attention within each of M sequences and to the last r positions of the preceding one.

    Args:
        opens_document: [M] bool, sequences that open a document; they attend to no preceding one.
        carried: [2, H, r, c], keys and values of the last r positions before the first sequence;
            None where it opens a document.
        buffer: [2, H, r, c], receives those of the last sequence. The caller allocates it before
            the layer runs: a tensor that outlives the layer must not lie among those that it
            frees, or the allocator cannot reuse their space.
    """

    def __init__(self, opens_document: Tensor, carried: Tensor | None, buffer: Tensor) -> None:
        self.opens_document = opens_document
        self.carried = carried
        self.buffer = buffer

    def attend(self, queries: Tensor, keys: Tensor, values: Tensor) -> Tensor:
        """Causal attention of scaled queries, [S, H, c] to [S, H, c]; fills `buffer`."""
        sequences, r = len(self.opens_document), self.buffer.shape[2]
        n = len(queries) // sequences
        if is_short(queries, n):
            last = torch.stack([keys[-r:], values[-r:]])
            self.buffer.copy_(rearrange(last, "t r H c -> t H r c"))
            return short_attention(queries, keys, values, n, r, self.opens_document, self.carried)
        q, k, v = (
            rearrange(x, "(M n) H c -> M H n c", M=sequences) for x in (queries, keys, values)
        )
        last = torch.stack([k[:, :, n - r :], v[:, :, n - r :]])  # [2, M, H, r, c]
        first = torch.zeros_like(last[:, 0]) if self.carried is None else self.carried
        self.buffer.copy_(last[:, -1])
        earlier_k, earlier_v = torch.cat([first[:, None], last[:, :-1]], dim=1)  # [M, H, r, c]
        k, v = torch.cat([earlier_k, k], dim=2), torch.cat([earlier_v, v], dim=2)
        bias = causal_bias(q, n, r).repeat(sequences, 1, 1)  # [M, n, r + n]
        bias[:, :, :r].masked_fill_(self.opens_document[:, None, None], -torch.inf)
        output = masked_attention(q, k, v, rearrange(bias, "M n k -> M 1 n k"))
        return rearrange(output, "M H n c -> (M n) H c")

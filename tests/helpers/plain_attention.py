"""Attention of a GPU in plain products, with the signatures of the kernels that it stands in for.

S   positions laid flat, sequence after sequence        H   heads, each of c channels
"""

from __future__ import annotations

import inspect

import torch
from torch import Tensor
from torch.nn.attention.varlen import varlen_attn


def attention(q: Tensor, k: Tensor, v: Tensor, is_attended: Tensor, scale: float = 1.0) -> Tensor:
    """Attention of q [n, H, c] to k and v [m, H, c], as far as `is_attended` [n, m]."""
    scores = torch.einsum("nHc, mHc -> Hnm", q, k) * scale
    weights = scores.masked_fill(~is_attended, -torch.inf).softmax(dim=-1)
    return torch.einsum("Hnm, mHc -> nHc", weights, v)


def plain_varlen_attn(*args: object, **kwargs: object) -> Tensor:
    """`varlen_attn` by its documentation, for sequences of one kind; its signature binds."""
    bound = inspect.signature(varlen_attn).bind(*args, **kwargs)
    bound.apply_defaults()
    a = bound.arguments
    q, k, v, starts = a["query"], a["key"], a["value"], a["cu_seq_q"]
    assert a["cu_seq_k"] is starts
    assert starts.dtype == torch.int32
    assert int(starts[-1]) == len(q)
    assert a["max_q"] == a["max_k"] == int(starts.diff().max())
    sequence = torch.arange(len(starts) - 1).repeat_interleave(starts.diff())
    left, right = a["window_size"]
    position = torch.arange(len(q))
    distance = position[:, None] - position  # of a key before its query
    is_attended = (sequence[:, None] == sequence) & (distance >= -right)
    if left >= 0:
        is_attended &= distance <= left
    return attention(q, k, v, is_attended, a["scale"])


def plain_short_attention(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    n: int,
    r: int = 0,
    opens_document: Tensor | None = None,
    carried: Tensor | None = None,
) -> Tensor:
    """`attention_short.short_attention` by its docstring."""
    sequence = torch.arange(len(q)) // n
    first_key = sequence * n
    if opens_document is not None:
        first_key = torch.where(opens_document[sequence], first_key, first_key - r)
        before = k.new_zeros(2, r, *k.shape[1:]) if carried is None else carried.transpose(1, 2)
        k, v = torch.cat([before[0], k]), torch.cat([before[1], v])
    key, query = torch.arange(-r, len(q)), torch.arange(len(q))[:, None]
    return attention(q, k, v, (key <= query) & (key >= first_key[:, None]))

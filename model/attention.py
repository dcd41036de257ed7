"""Causal attention whose cost in time and memory is that of what is seen.

Shapes:
    M   sequences of one length
    H   heads, each of c channels
    n   queries of a sequence
    k   keys of a sequence; the last n of them are the queries' own places
    C   queries of a block

PyTorch's fused kernels have no fast way for the two cases that matter on a CPU: sequences of a
patch (n = 8: plain products take a third of the time) and long ones in bf16 (products of whole
blocks run at the speed of the matrix units, the fused kernel at half of that). On a GPU the
fused kernels are the fast way, and are taken where they apply.

Queries come scaled (by 1 / sqrt(c), and by what a norm of theirs gains).
"""

from typing import Any

import torch
import torch.nn.functional as F
from einops import rearrange
from torch import Tensor
from torch.autograd.function import once_differentiable

SHORT = 128
"""Up to so many queries the scores of all of them are held."""
QUERY_BLOCK = 256
"""C, above that."""


def causal_attention(q: Tensor, k: Tensor, v: Tensor, window: int = 0) -> Tensor:
    """Attention of q [M, H, n, c] to k and v [M, H, n, c] at places up to its own; [M, H, n, c].

    window: how many places a query sees, its own among them; 0 = all.
    """
    n = q.shape[2]
    if 0 < n <= window:
        window = 0
    if q.is_cuda and not window:
        return F.scaled_dot_product_attention(q, k, v, is_causal=True, scale=1.0)
    if n <= SHORT and not window:
        return masked_attention(q, k, v, causal_bias(q, n))
    output: Tensor = _BlockAttention.apply(q, k, v, window)
    return output


def masked_attention(q: Tensor, k: Tensor, v: Tensor, bias: Tensor) -> Tensor:
    """Attention of q [M, H, n, c] to k and v [M, H, k, c], for short sequences.

    bias [..., n, k]: 0 where a key is seen, -inf where it is not.
    """
    if q.is_cuda:
        return F.scaled_dot_product_attention(q, k, v, attn_mask=bias, scale=1.0)
    return (q @ k.mT + bias).softmax(dim=-1) @ v


def causal_bias(like: Tensor, n: int, back: int = 0) -> Tensor:
    """[n, back + n] of `like`'s type: each place sees those before it, and itself."""
    bias = torch.full((n, back + n), -torch.inf, dtype=like.dtype, device=like.device)
    return bias.triu(back + 1)


class _BlockAttention(torch.autograd.Function):
    """Causal attention in blocks of C queries; the backward pass computes the shares again, so
    that no more than C * n scores of a head exist at any time."""

    @staticmethod
    def forward(ctx: Any, q: Tensor, k: Tensor, v: Tensor, window: int) -> Tensor:
        shape = q.shape
        q, k, v = (rearrange(each, "M H n c -> (M H) n c").contiguous() for each in (q, k, v))
        ctx.save_for_backward(q, k, v)
        ctx.window, ctx.shape = window, shape
        output = torch.empty_like(v)
        for rows, seen in _blocks(q.shape[1], window):
            shares = _shares(q, k, rows, seen, window)
            torch.bmm(shares, v[:, seen], out=output[:, rows])
        return output.view(shape)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, Tensor, Tensor, None]:
        q, k, v = ctx.saved_tensors
        window, shape = ctx.window, ctx.shape
        gradient = rearrange(gradient, "M H n c -> (M H) n c").contiguous()
        # Blocks add up in at least float32.
        exact = torch.promote_types(q.dtype, torch.float32)
        q_gradient = torch.empty_like(q)
        k_gradient, v_gradient = (torch.zeros_like(each, dtype=exact) for each in (k, v))
        for rows, seen in _blocks(q.shape[1], window):
            shares = _shares(q, k, rows, seen, window)
            v_gradient[:, seen] += shares.mT @ gradient[:, rows]
            of_shares = gradient[:, rows] @ v[:, seen].mT
            of_scores = torch._softmax_backward_data(of_shares, shares, -1, shares.dtype)
            torch.bmm(of_scores, k[:, seen], out=q_gradient[:, rows])
            k_gradient[:, seen] += of_scores.mT @ q[:, rows]
        gradients = (q_gradient, k_gradient.to(k.dtype), v_gradient.to(v.dtype))
        of_q, of_k, of_v = (each.view(shape) for each in gradients)
        return of_q, of_k, of_v, None


def _blocks(n: int, window: int) -> list[tuple[slice, slice]]:
    """(queries, keys that some of them see) of each block."""
    blocks = []
    for start in range(0, n, QUERY_BLOCK):
        end = min(start + QUERY_BLOCK, n)
        first = max(0, start - window + 1) if window else 0
        blocks.append((slice(start, end), slice(first, end)))
    return blocks


def _shares(q: Tensor, k: Tensor, rows: slice, seen: slice, window: int) -> Tensor:
    """The softmax of a block's scores, [M H, C, keys that are seen]."""
    scores = q[:, rows] @ k[:, seen].mT
    own = scores[..., rows.start - seen.start :]
    own += causal_bias(own, own.shape[-1])
    if window:
        at = torch.arange(seen.start, seen.stop, device=k.device)
        too_far = at <= at[rows.start - seen.start :, None] - window  # [C, keys]
        scores.masked_fill_(too_far, -torch.inf)
    return scores.softmax(dim=-1)

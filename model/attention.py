"""Causal attention whose time and memory grow only with the keys that queries attend to.

Shapes:
    S   positions laid flat, sequence after sequence
    M   sequences of equal length
    H   heads, each of c channels
    n   queries of a sequence
    k   keys of a sequence; the last n of them are at the queries' own positions
    C   queries of a block

PyTorch's fused kernels are slow in the two cases that matter on a CPU: for sequences of one patch
(n = 8) plain matrix products take a third of their time, and for long sequences in bf16 products of
whole blocks run at the speed of the matrix units, the fused kernel at half of it. On a GPU the
fused kernels are the fastest, and are used where they apply: FlashAttention takes all documents of
a batch in one call, whatever their lengths (`varlen_causal_attention`), and kernels of our own take
the short sequences (`attention_short.py`).

Queries arrive scaled: by 1 / sqrt(c), and by the gain of QK norm where there is one.
"""

from typing import Any

import torch
import torch.nn.functional as F
from einops import rearrange
from torch import Tensor
from torch.autograd.function import once_differentiable

MAX_DENSE_QUERIES = 128
"""Longest sequence whose [n, n] attention weights are held at once, on a CPU."""
QUERY_BLOCK = 256
"""C, the queries of a block in longer sequences."""


def causal_attention(q: Tensor, k: Tensor, v: Tensor, window: int = 0) -> Tensor:
    """Attention of each query to the keys up to its own position.

    Args:
        q, k, v: [M, H, n, c].
        window: keys that a query attends to, its own among them; 0 = all.

    Returns:
        [M, H, n, c].
    """
    n = q.shape[2]
    if 0 < n <= window:
        window = 0
    if q.is_cuda and not window:
        return F.scaled_dot_product_attention(q, k, v, is_causal=True, scale=1.0)
    if n <= MAX_DENSE_QUERIES and not window:
        return masked_attention(q, k, v, causal_bias(q, n))
    output: Tensor = BlockwiseAttention.apply(q, k, v, window)
    return output


def takes_documents(q: Tensor) -> bool:
    """Whether `varlen_causal_attention` takes queries [S, H, c]: of 16 bits, on a GPU alone."""
    return q.is_cuda and q.dtype.itemsize == 2 and q.shape[-1] % 8 == 0 and q.shape[-1] <= 256


def varlen_causal_attention(
    q: Tensor, k: Tensor, v: Tensor, cu_seqlens: Tensor, longest: int, window: int = 0
) -> Tensor:
    """Attention of each query to the keys of its own sequence up to itself, in one call for all.

    Args:
        q, k, v: [S, H, c], float16 or bfloat16.
        cu_seqlens: [sequences + 1] int32, first position of each sequence, then S.
        longest: positions of the longest sequence.
        window: keys that a query attends to, its own among them; 0 = all.

    Returns:
        [S, H, c].
    """
    # Takes most of a second to import.
    from torch.nn.attention.varlen import varlen_attn

    output = varlen_attn(
        *(q, k, v, cu_seqlens, cu_seqlens, longest, longest),
        scale=1.0,
        # Keys before and after the query's own.
        window_size=(window - 1 if 0 < window < longest else -1, 0),
    )
    assert isinstance(output, Tensor)
    return output


def masked_attention(q: Tensor, k: Tensor, v: Tensor, bias: Tensor) -> Tensor:
    """Attention of q [M, H, n, c] to k and v [M, H, k, c], for short sequences.

    Args:
        bias: [..., n, k], added to the scores: 0, or -inf where a key is masked.
    """
    if q.is_cuda:
        return F.scaled_dot_product_attention(q, k, v, attn_mask=bias, scale=1.0)
    return (q @ k.mT + bias).softmax(dim=-1) @ v


def causal_bias(like: Tensor, queries: int, earlier_keys: int = 0) -> Tensor:
    """Causal mask [queries, earlier_keys + queries] with the type and device of `like`.

    Every query attends to all earlier keys and to those up to its own position.
    """
    shape = (queries, earlier_keys + queries)
    bias = torch.full(shape, -torch.inf, dtype=like.dtype, device=like.device)
    return bias.triu(earlier_keys + 1)


class BlockwiseAttention(torch.autograd.Function):
    """Causal attention in blocks of C queries.

    The backward pass recomputes the attention weights, so that at most C * n scores of a head
    exist at any time.
    """

    @staticmethod
    def forward(ctx: Any, q: Tensor, k: Tensor, v: Tensor, window: int) -> Tensor:
        """q, k, v [M, H, n, c] to [M, H, n, c]."""
        shape = q.shape
        q, k, v = (rearrange(x, "M H n c -> (M H) n c").contiguous() for x in (q, k, v))
        ctx.save_for_backward(q, k, v)
        ctx.window, ctx.shape = window, shape
        output = torch.empty_like(v)
        for queries, keys in _blocks(q.shape[1], window):
            weights = _attention_weights(q, k, queries, keys, window)
            torch.bmm(weights, v[:, keys], out=output[:, queries])
        return output.view(shape)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, Tensor, Tensor, None]:
        """Gradients of q, k and v, [M, H, n, c] each."""
        q, k, v = ctx.saved_tensors
        window, shape = ctx.window, ctx.shape
        gradient = rearrange(gradient, "M H n c -> (M H) n c").contiguous()
        # Sums over blocks need at least float32.
        accum_dtype = torch.promote_types(q.dtype, torch.float32)
        grad_q = torch.empty_like(q)
        grad_k, grad_v = (torch.zeros_like(x, dtype=accum_dtype) for x in (k, v))
        for queries, keys in _blocks(q.shape[1], window):
            weights = _attention_weights(q, k, queries, keys, window)
            grad_v[:, keys] += weights.mT @ gradient[:, queries]
            grad_weights = gradient[:, queries] @ v[:, keys].mT
            grad_scores = torch._softmax_backward_data(grad_weights, weights, -1, weights.dtype)
            torch.bmm(grad_scores, k[:, keys], out=grad_q[:, queries])
            grad_k[:, keys] += grad_scores.mT @ q[:, queries]
        grad_k, grad_v = grad_k.to(k.dtype), grad_v.to(v.dtype)
        return grad_q.view(shape), grad_k.view(shape), grad_v.view(shape), None


def _blocks(n: int, window: int) -> list[tuple[slice, slice]]:
    """(queries, keys that at least one of them attends to) of each block."""
    blocks = []
    for start in range(0, n, QUERY_BLOCK):
        end = min(start + QUERY_BLOCK, n)
        first_key = max(0, start - window + 1) if window else 0
        blocks.append((slice(start, end), slice(first_key, end)))
    return blocks


def _attention_weights(q: Tensor, k: Tensor, queries: slice, keys: slice, window: int) -> Tensor:
    """Softmax of the scores of a block, [M H, C, keys]."""
    scores = q[:, queries] @ k[:, keys].mT
    same_positions = scores[..., queries.start - keys.start :]
    same_positions += causal_bias(same_positions, same_positions.shape[-1])
    if window:
        position = torch.arange(keys.start, keys.stop, device=k.device)
        too_far = position <= position[queries.start - keys.start :, None] - window  # [C, keys]
        scores.masked_fill_(too_far, -torch.inf)
    return scores.softmax(dim=-1)

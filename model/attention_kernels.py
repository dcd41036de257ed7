"""Triton kernels of attention within short sequences, forward and backward.

A block of at most BLOCK rows holds whole sequences. Its scores are one product of all its queries
and all its keys, of which the mask leaves each query the keys of its own sequence up to itself and
the last r of the sequence before. With sequences of 16 positions most of the product is masked;
tensor cores make it in less time than q, k, v and the output need to pass through memory once, and
nothing else does. The first sequence of a block needs r keys from before the block: a small second
product. Backward, the last r keys of a block also receive gradients from the first sequence of the
next block, whose weights a third product computes again. So each row is written by one program,
without atomics, and the sums are the same in every run.

This module imports triton, and is imported only where the kernels run (`attention_short.py`).

Shapes:
    S   positions laid flat, sequence after sequence
    n   positions of a sequence
    r   last positions of the preceding sequence that a position also attends to, at most n
    H   heads, each of c channels
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

BLOCK = 64
"""Rows of a block, and the longest sequence that the kernels take."""
SMALLEST_SIDE = 16
"""Least length of each side of a product on tensor cores."""


@triton.jit
def _load(
    head,
    rows,
    valid,
    stride,
    channel,
    c: tl.constexpr,
):
    """Rows [rows, channels] of a head; zeros where `valid` is false, and beyond channel c."""
    at = rows.to(tl.int64)[:, None] * stride + channel[None, :]
    return tl.load(head + at, mask=valid[:, None] & (channel[None, :] < c), other=0.0)


@triton.jit
def _store(
    head,
    rows,
    valid,
    stride,
    channel,
    values,
    c: tl.constexpr,
) -> None:
    """Write `values` [rows, channels] to the rows of a head where `valid` is true."""
    at = rows.to(tl.int64)[:, None] * stride + channel[None, :]
    mask = valid[:, None] & (channel[None, :] < c)
    tl.store(head + at, values.to(head.dtype.element_ty), mask=mask)


@triton.jit
def _dot(a, b):
    """The product a @ b in float32; float32 inputs are not rounded to TF32."""
    return tl.dot(a, b, input_precision="ieee")


@triton.jit
def _own_mask(
    opens,
    start,
    positions,
    n: tl.constexpr,
    r: tl.constexpr,
    block: tl.constexpr,
):
    """[block, block], whether each query of the block at row `start` attends to each of its keys.

    Every query attends to itself, so that no row of the mask is empty.
    """
    row = tl.arange(0, block)
    first_key = row // n * n
    if r > 0:
        sequence = (start + row) // n
        may_cross = tl.load(opens + sequence, mask=start + row < positions, other=1) == 0
        first_key = tl.where(may_cross, first_key - r, first_key)
    return (row[None, :] <= row[:, None]) & (row[None, :] >= first_key[:, None])


@triton.jit
def _earlier(
    head, carried, carried_at, start, may_cross, stride,
    channel, c: tl.constexpr, r: tl.constexpr, earlier: tl.constexpr,
):  # fmt: skip
    """The r rows before `start`, [earlier, channels]: of the head, or the carried ones at row 0.

    Zeros where the sequence at `start` opens a document.
    """
    row = tl.arange(0, earlier)
    valid = (row < r) & may_cross
    values = _load(head, start - r + row, valid & (start > 0), stride, channel, c)
    if carried is not None:
        first = _load(carried + carried_at, row, valid & (start == 0), c, channel, c)
        values = tl.where(start > 0, values, first)
    return values


@triton.jit
def _forward(
    q_ptr, k_ptr, v_ptr, opens, carried, output_ptr, lse_ptr,
    positions, q_row, q_head, k_row, k_head, v_row, v_head,
    heads: tl.constexpr, n: tl.constexpr, r: tl.constexpr, c: tl.constexpr,
    rows: tl.constexpr, block: tl.constexpr,
    earlier: tl.constexpr, channels: tl.constexpr,
) -> None:  # fmt: skip
    """Output and log-sum-exp of the scores of `rows` positions in one head."""
    start, head = tl.program_id(0) // heads * rows, tl.program_id(0) % heads
    own, channel = start + tl.arange(0, block), tl.arange(0, channels)
    valid = (tl.arange(0, block) < rows) & (own < positions)
    k_ptr += head * k_head
    v_ptr += head * v_head
    q = _load(q_ptr + head * q_head, own, valid, q_row, channel, c)
    k = _load(k_ptr, own, valid, k_row, channel, c)
    v = _load(v_ptr, own, valid, v_row, channel, c)
    mask = _own_mask(opens, start, positions, n, r, block)
    scores = tl.where(mask, _dot(q, tl.trans(k)), float("-inf"))
    highest = tl.max(scores, 1)
    if r > 0:
        may_cross = tl.load(opens + start // n) == 0
        k_at, v_at = head * r * c, (heads + head) * r * c  # in `carried`
        k = _earlier(k_ptr, carried, k_at, start, may_cross, k_row, channel, c, r, earlier)
        key = tl.arange(0, earlier)
        crossing = (tl.arange(0, block)[:, None] < n) & (key[None, :] < r) & may_cross
        crossing_scores = tl.where(crossing, _dot(q, tl.trans(k)), float("-inf"))
        highest = tl.maximum(highest, tl.max(crossing_scores, 1))
    weights = tl.exp(scores - highest[:, None])
    total = tl.sum(weights, 1)
    output = _dot(weights.to(v.dtype), v)
    if r > 0:
        weights = tl.exp(crossing_scores - highest[:, None])
        total += tl.sum(weights, 1)
        v = _earlier(v_ptr, carried, v_at, start, may_cross, v_row, channel, c, r, earlier)
        output += _dot(weights.to(v.dtype), v)
    output = output / total[:, None]
    _store(output_ptr + head * c, own, valid, heads * c, channel, output, c)
    tl.store(lse_ptr + own * heads + head, highest + tl.log(total), mask=valid)


@triton.jit
def _gradients(
    q,
    k,
    v,
    gradient,
    lse,
    delta,
    mask,
):
    """Weights of the queries for the keys, and the gradient of their scores, in float32."""
    weights = tl.where(mask, tl.exp(_dot(q, tl.trans(k)) - lse[:, None]), 0.0)
    return weights, weights * (_dot(gradient, tl.trans(v)) - delta[:, None])


@triton.jit
def _backward(
    q_ptr, k_ptr, v_ptr, opens, carried, output_ptr, lse_ptr,
    gradient_ptr, grad_q_ptr, grad_k_ptr, grad_v_ptr, grad_carried,
    positions, q_row, q_head, k_row, k_head, v_row, v_head,
    gradient_row, gradient_head,
    heads: tl.constexpr, n: tl.constexpr, r: tl.constexpr, c: tl.constexpr,
    rows: tl.constexpr, block: tl.constexpr,
    earlier: tl.constexpr, following: tl.constexpr, channels: tl.constexpr,
) -> None:  # fmt: skip
    """Gradients of q, k and v of `rows` positions in one head, and of what was carried to them."""
    start, head = tl.program_id(0) // heads * rows, tl.program_id(0) % heads
    row, channel = tl.arange(0, block), tl.arange(0, channels)
    own = start + row
    valid = (row < rows) & (own < positions)
    q_ptr += head * q_head
    k_ptr += head * k_head
    v_ptr += head * v_head
    gradient_ptr += head * gradient_head
    output_ptr += head * c
    lse_ptr += head
    q = _load(q_ptr, own, valid, q_row, channel, c)
    k = _load(k_ptr, own, valid, k_row, channel, c)
    v = _load(v_ptr, own, valid, v_row, channel, c)
    gradient = _load(gradient_ptr, own, valid, gradient_row, channel, c)
    output = _load(output_ptr, own, valid, heads * c, channel, c)
    lse = tl.load(lse_ptr + own * heads, mask=valid, other=0.0)
    delta = tl.sum(gradient.to(tl.float32) * output.to(tl.float32), 1)
    mask = _own_mask(opens, start, positions, n, r, block) & valid[:, None]
    weights, grad_scores = _gradients(q, k, v, gradient, lse, delta, mask)
    grad_q = _dot(grad_scores.to(k.dtype), k)
    grad_k = _dot(tl.trans(grad_scores).to(q.dtype), q)
    grad_v = _dot(tl.trans(weights).to(gradient.dtype), gradient)
    if r > 0:
        # The first sequence's queries and the keys before the block.
        may_cross = tl.load(opens + start // n) == 0
        k_at, v_at = head * r * c, (heads + head) * r * c  # in `carried`
        earlier_k = _earlier(k_ptr, carried, k_at, start, may_cross, k_row, channel, c, r, earlier)
        earlier_v = _earlier(v_ptr, carried, v_at, start, may_cross, v_row, channel, c, r, earlier)
        key = tl.arange(0, earlier)
        mask = (row[:, None] < n) & (key[None, :] < r) & may_cross & valid[:, None]
        weights, grad_scores = _gradients(q, earlier_k, earlier_v, gradient, lse, delta, mask)
        grad_q += _dot(grad_scores.to(k.dtype), earlier_k)
        if carried is not None:
            is_first = (key < r) & (start == 0)
            crossing_k = _dot(tl.trans(grad_scores).to(q.dtype), q)
            crossing_v = _dot(tl.trans(weights).to(gradient.dtype), gradient)
            _store(grad_carried + k_at, key, is_first, c, channel, crossing_k, c)
            _store(grad_carried + v_at, key, is_first, c, channel, crossing_v, c)
        # The queries of the next block's first sequence and the last keys of this one.
        query = tl.arange(0, following)
        after = start + rows + query
        is_next = (query < n) & (after < positions)
        q = _load(q_ptr, after, is_next, q_row, channel, c)
        gradient = _load(gradient_ptr, after, is_next, gradient_row, channel, c)
        output = _load(output_ptr, after, is_next, heads * c, channel, c)
        lse = tl.load(lse_ptr + after * heads, mask=is_next, other=0.0)
        delta = tl.sum(gradient.to(tl.float32) * output.to(tl.float32), 1)
        next_sequence = (start + rows) // n
        may_cross = tl.load(opens + next_sequence, mask=start + rows < positions, other=1) == 0
        mask = (row[None, :] >= rows - r) & (row[None, :] < rows) & may_cross & is_next[:, None]
        weights, grad_scores = _gradients(q, k, v, gradient, lse, delta, mask)
        grad_k += _dot(tl.trans(grad_scores).to(q.dtype), q)
        grad_v += _dot(tl.trans(weights).to(gradient.dtype), gradient)
    _store(grad_q_ptr + head * c, own, valid, heads * c, channel, grad_q, c)
    _store(grad_k_ptr + head * c, own, valid, heads * c, channel, grad_k, c)
    _store(grad_v_ptr + head * c, own, valid, heads * c, channel, grad_v, c)


def _sizes(q: Tensor, n: int, r: int) -> dict[str, int]:
    """The sizes that both kernels are compiled for; products have powers of two as sides."""
    _, heads, c = q.shape
    return {
        "heads": heads,
        "n": n,
        "r": r,
        "c": c,
        "rows": BLOCK // n * n,
        "block": BLOCK,
        "earlier": max(SMALLEST_SIDE, triton.next_power_of_2(r)),
        "channels": max(SMALLEST_SIDE, triton.next_power_of_2(c)),
        "num_warps": 4 if c <= 64 else 8,
    }


def _strides(*tensors: Tensor) -> list[int]:
    """Distance of two positions and of two heads in each tensor [S, H, c]."""
    return [stride for tensor in tensors for stride in tensor.stride()[:2]]


def forward(
    q: Tensor, k: Tensor, v: Tensor, opens: Tensor | None, carried: Tensor | None, n: int, r: int
) -> tuple[Tensor, Tensor]:
    """Run the forward kernel; arguments as in `attention_short.short_attention`.

    Returns:
        Output [S, H, c], and the log-sum-exp of each query's scores, [S, H] float32.
    """
    q, k, v = (x if x.stride(-1) == 1 else x.contiguous() for x in (q, k, v))
    positions, heads, _ = q.shape
    output = torch.empty(q.shape, dtype=q.dtype, device=q.device)
    lse = torch.empty(positions, heads, dtype=torch.float32, device=q.device)
    sizes = _sizes(q, n, r)
    grid = (triton.cdiv(positions, sizes["rows"]) * heads,)
    _forward[grid](
        *(q, k, v, opens, carried, output, lse, positions, *_strides(q, k, v)),
        **sizes,
    )
    return output, lse


def backward(
    gradient: Tensor, q: Tensor, k: Tensor, v: Tensor, opens: Tensor | None,
    carried: Tensor | None, output: Tensor, lse: Tensor, n: int, r: int,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:  # fmt: skip
    """Run the backward kernel on the gradient [S, H, c] of the output of `forward`.

    Returns:
        Gradients of q, k and v, [S, H, c] each, and of `carried`; an empty tensor without it.
    """
    gradient, q, k, v = (x if x.stride(-1) == 1 else x.contiguous() for x in (gradient, q, k, v))
    positions, heads, _ = q.shape
    grads = [torch.empty(x.shape, dtype=x.dtype, device=x.device) for x in (q, k, v)]
    grad_carried = q.new_empty(0) if carried is None else torch.empty_like(carried)
    sizes = _sizes(q, n, r)
    grid = (triton.cdiv(positions, sizes["rows"]) * heads,)
    _backward[grid](
        *(q, k, v, opens, carried, output, lse, gradient, *grads, grad_carried),
        *(positions, *_strides(q, k, v, gradient)),
        **sizes,
        following=max(SMALLEST_SIDE, triton.next_power_of_2(n)),
    )
    return grads[0], grads[1], grads[2], grad_carried

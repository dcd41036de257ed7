"""Attention within short sequences on a GPU, as an operator that PyTorch knows.

Stages below stage 0 attend within a patch: tens of thousands of sequences of 8 to 32 positions.
PyTorch's fused kernels give a block of 64 or 128 queries to each, most of which are padding, and
need masks and copies for the keys of the preceding sequence. The kernels of `attention_kernels.py`
take positions as they lie in memory. `CrossPatchContext` and `PackedContext` have the same in plain
products, which a CPU runs and tests hold the kernels against.

The operator is opaque to the compiler and to fake tensors, which see its shapes alone.

Shapes:
    S   positions laid flat, sequence after sequence
    M   sequences, S / n
    n   positions of a sequence
    r   last positions of the preceding sequence that a position also attends to, at most n
    H   heads, each of c channels
"""

from __future__ import annotations

from functools import cache
from importlib.util import find_spec
from typing import Any

import torch
from torch import Tensor

LONGEST = 64
"""Longest sequence that the kernels take: they hold the scores of 64 queries and keys at once."""
WIDEST = 128
"""Most channels of a head; more would not fit into registers."""


@cache
def _has_triton() -> bool:
    """Whether triton is installed, as it is with PyTorch's builds for GPUs."""
    return find_spec("triton") is not None


def is_short(q: Tensor, n: int) -> bool:
    """Whether to run `short_attention` on queries [S, H, c] in sequences of n.

    That is on a GPU, in 16 bits: products that are exact in float32 do not run on tensor cores.
    """
    is_fit = n <= LONGEST and q.shape[-1] <= WIDEST and q.dtype.itemsize == 2
    return q.is_cuda and is_fit and _has_triton()


def short_attention(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    n: int,
    r: int = 0,
    opens_document: Tensor | None = None,
    carried: Tensor | None = None,
) -> Tensor:
    """Causal attention within sequences of n positions, and to r positions of the one before.

    Args:
        q, k, v: [S, H, c]; q is scaled.
        opens_document: [M] bool, sequences that attend to no preceding one; needed where r > 0.
        carried: [2, H, r, c], keys and values of the r positions before the first sequence; None
            where it opens a document.

    Returns:
        [S, H, c].
    """
    assert len(q) % n == 0
    assert r <= n
    assert (opens_document is None) == (r == 0)
    output: Tensor = _short_attention(q, k, v, opens_document, carried, n, r)[0]
    return output


@torch.library.custom_op("bytelm::short_attention", mutates_args=())
def _short_attention(
    q: Tensor, k: Tensor, v: Tensor, opens: Tensor | None, carried: Tensor | None, n: int, r: int
) -> tuple[Tensor, Tensor]:
    """Output, and what the backward pass needs; see `attention_kernels.forward`."""
    from bytelm.model import attention_kernels

    return attention_kernels.forward(q, k, v, opens, carried, n, r)


@torch.library.custom_op("bytelm::short_attention_backward", mutates_args=())
def _short_attention_backward(
    gradient: Tensor, q: Tensor, k: Tensor, v: Tensor, opens: Tensor | None,
    carried: Tensor | None, output: Tensor, lse: Tensor, n: int, r: int,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:  # fmt: skip
    """Gradients of q, k, v and carried; see `attention_kernels.backward`."""
    from bytelm.model import attention_kernels

    return attention_kernels.backward(gradient, q, k, v, opens, carried, output, lse, n, r)


@_short_attention.register_fake
def _(
    q: Tensor, k: Tensor, v: Tensor, opens: Tensor | None, carried: Tensor | None, n: int, r: int
) -> tuple[Tensor, Tensor]:
    return q.new_empty(q.shape), q.new_empty(q.shape[:2], dtype=torch.float32)


@_short_attention_backward.register_fake
def _(
    gradient: Tensor, q: Tensor, k: Tensor, v: Tensor, opens: Tensor | None,
    carried: Tensor | None, output: Tensor, lse: Tensor, n: int, r: int,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:  # fmt: skip
    grad_carried = q.new_empty(0) if carried is None else torch.empty_like(carried)
    return q.new_empty(q.shape), k.new_empty(k.shape), v.new_empty(v.shape), grad_carried


def _save(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor]) -> None:
    *tensors, ctx.n, ctx.r = inputs
    ctx.save_for_backward(*tensors, *output)


def _differentiate(ctx: Any, gradient: Tensor, _: Tensor) -> tuple[Tensor | None, ...]:
    carried = ctx.saved_tensors[4]
    grads = _short_attention_backward(gradient, *ctx.saved_tensors, ctx.n, ctx.r)
    return *grads[:3], None, None if carried is None else grads[3], None, None


_short_attention.register_autograd(_differentiate, setup_context=_save)

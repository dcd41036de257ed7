"""Attention within short sequences on a GPU, by operators that PyTorch knows.

Stages below stage 0 attend within a patch: tens of thousands of sequences of 8 to 32 positions.
PyTorch's fused kernels give a block of 64 or 128 queries to each, most of which are padding, and
need masks and copies for the keys of the preceding sequence. The kernels of `attention_kernels.py`
take positions as they lie in memory. `CrossPatchContext` and `PackedContext` have the same in plain
products, which a CPU runs and tests hold the kernels against.

The operators are opaque to the compiler and to fake tensors, which see their shapes alone.

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
from torch.autograd.function import once_differentiable

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
    assert opens_document is None or opens_document.is_contiguous()
    assert carried is None or carried.is_contiguous()
    output: Tensor = ShortAttention.apply(q, k, v, opens_document, carried, n, r)
    return output


class ShortAttention(torch.autograd.Function):
    """The operators with their gradient; `short_attention` has the arguments.

    `torch.library.custom_op` would join them too, and take twice the time to call, of which a small
    model's step on a GPU consists.
    """

    @staticmethod
    def forward(
        ctx: Any, q: Tensor, k: Tensor, v: Tensor, opens: Tensor | None, carried: Tensor | None,
        n: int, r: int,
    ) -> Tensor:  # fmt: skip
        """q, k, v [S, H, c] to [S, H, c]."""
        output, lse = torch.ops.bytelm.short_attention(q, k, v, opens, carried, n, r)
        ctx.save_for_backward(q, k, v, opens, carried, output, lse)
        ctx.n, ctx.r = n, r
        return output

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        """Gradients of q, k and v, [S, H, c] each, and of what was carried."""
        grad_q, grad_k, grad_v, grad_carried = torch.ops.bytelm.short_attention_backward(
            gradient, *ctx.saved_tensors, ctx.n, ctx.r
        )
        has_carried = ctx.needs_input_grad[4]
        return grad_q, grad_k, grad_v, None, grad_carried if has_carried else None, None, None


_INPUTS = "Tensor q, Tensor k, Tensor v, Tensor? opens, Tensor? carried"
torch.library.define(
    "bytelm::short_attention", f"({_INPUTS}, SymInt n, SymInt r) -> (Tensor, Tensor)"
)
torch.library.define(
    "bytelm::short_attention_backward",
    f"(Tensor gradient, {_INPUTS}, Tensor output, Tensor lse, SymInt n, SymInt r)"
    " -> (Tensor, Tensor, Tensor, Tensor)",
)


# On a CPU they run in Triton's interpreter alone, for the tests.
@torch.library.impl("bytelm::short_attention", ("CUDA", "CPU"))
def _forward(q: Tensor, *arguments: Any) -> tuple[Tensor, Tensor]:
    from bytelm.model import attention_kernels

    with torch.cuda.device_of(q):
        return attention_kernels.forward(q, *arguments)


@torch.library.impl("bytelm::short_attention_backward", ("CUDA", "CPU"))
def _backward(gradient: Tensor, *arguments: Any) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    from bytelm.model import attention_kernels

    with torch.cuda.device_of(gradient):
        return attention_kernels.backward(gradient, *arguments)


@torch.library.register_fake("bytelm::short_attention")
def _fake_forward(q: Tensor, *_: Any) -> tuple[Tensor, Tensor]:
    return q.new_empty(q.shape), q.new_empty(q.shape[:2], dtype=torch.float32)


@torch.library.register_fake("bytelm::short_attention_backward")
def _fake_backward(
    gradient: Tensor, q: Tensor, k: Tensor, v: Tensor, opens: Tensor | None,
    carried: Tensor | None, *_: Any,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:  # fmt: skip
    grad_carried = q.new_empty(0) if carried is None else torch.empty_like(carried)
    return q.new_empty(q.shape), k.new_empty(k.shape), v.new_empty(v.shape), grad_carried

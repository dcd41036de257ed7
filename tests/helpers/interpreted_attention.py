"""Kernels of short attention in Triton's interpreter, compared with plain products.

    TRITON_INTERPRET=1 python tests/helpers/interpreted_attention.py

Prints a line of JSON for each case: the case, and the greatest difference of output and gradients.
float16 stands for bfloat16, whose products the interpreter cannot make.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import asdict, dataclass

import torch
from torch import Tensor

from bytelm.model.attention_context import CrossPatchContext, PackedContext
from bytelm.model.attention_short import short_attention


@dataclass(frozen=True)
class Case:
    """M sequences of n positions that attend to r of the one before, in H heads of c channels."""

    sequences: int
    n: int
    r: int
    heads: int
    channels: int
    is_carried: bool = False
    """Whether the first sequence attends to keys and values of a preceding chunk."""
    dtype: str = "float32"


CASES = [
    Case(9, 16, 0, 2, 16),
    Case(9, 16, 4, 2, 16),
    Case(9, 16, 4, 2, 24, is_carried=True),
    Case(13, 8, 8, 1, 16, is_carried=True),
    Case(30, 3, 2, 1, 8, is_carried=True),  # blocks of 63 rows
    Case(5, 12, 5, 3, 12),
    Case(5, 32, 32, 1, 16, is_carried=True),
    Case(3, 48, 5, 2, 16),
    Case(2, 64, 20, 1, 32, is_carried=True),
    Case(1, 8, 4, 2, 16, is_carried=True),
    Case(4, 1, 1, 1, 16),
    Case(9, 16, 4, 2, 16, is_carried=True, dtype="float16"),
    Case(9, 32, 0, 1, 64, dtype="float16"),
]


def differences(case: Case) -> Iterator[float]:
    """Greatest difference of the output, then of each gradient."""
    torch.manual_seed(0)
    dtype, r = getattr(torch, case.dtype), case.r
    positions, heads = case.sequences * case.n, case.heads
    # As a layer gives them: views of one tensor, of which no row is contiguous.
    qkv = torch.randn(positions, 3 * heads, case.channels).to(dtype)
    inputs = [*(qkv * case.channels**-0.25).split(heads, dim=1)]
    gradient = torch.randn(positions, heads, case.channels).to(dtype)
    opens = torch.rand(case.sequences) < 0.3
    opens[0] = not case.is_carried
    if case.is_carried:
        inputs.append(torch.randn(2, heads, r, case.channels).to(dtype))
    ours = [x.detach().requires_grad_() for x in inputs]
    output = short_attention(
        *ours[:3], case.n, r, opens if r else None, ours[3] if case.is_carried else None
    )
    plain = [x.detach().double().requires_grad_() for x in inputs]
    expected = _plain(case, plain, opens)
    yield _greatest(output, expected)
    grads = torch.autograd.grad(output, ours, gradient)
    for grad, other in zip(
        grads, torch.autograd.grad(expected, plain, gradient.double()), strict=True
    ):
        yield _greatest(grad, other)


def _plain(case: Case, inputs: list[Tensor], opens: Tensor) -> Tensor:
    q, k, v, *carried = inputs
    if not case.r:
        return PackedContext([(case.sequences, case.n)]).attend(q, k, v)
    buffer = q.new_empty(2, case.heads, case.r, case.channels)
    return CrossPatchContext(opens, carried[0] if carried else None, buffer).attend(q, k, v)


def _greatest(found: Tensor, expected: Tensor) -> float:
    return float((found.double() - expected).abs().max())


if __name__ == "__main__":
    for case in CASES:
        print(json.dumps({**asdict(case), "differences": [*differences(case)]}))

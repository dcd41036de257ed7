"""Blockwise attention against one softmax over all keys, in float64."""

import pytest
import torch
from torch import Tensor

from bytelm.model.attention import (
    MAX_DENSE_QUERIES,
    QUERY_BLOCK,
    causal_attention,
    causal_bias,
    masked_attention,
)


def _plain(q: Tensor, k: Tensor, v: Tensor, window: int) -> Tensor:
    """Causal attention by its definition, [M, H, n, c]."""
    position = torch.arange(q.shape[2])
    is_attended = position <= position[:, None]
    if window:
        is_attended &= position > position[:, None] - window
    return (q @ k.mT).masked_fill(~is_attended, -torch.inf).softmax(dim=-1) @ v


@pytest.mark.parametrize("window", [0, 1, 40, QUERY_BLOCK, 2 * QUERY_BLOCK + 50])
@pytest.mark.parametrize(
    "n", [1, MAX_DENSE_QUERIES, MAX_DENSE_QUERIES + 1, QUERY_BLOCK, 2 * QUERY_BLOCK + 90]
)
def test_blocks_equal_one_softmax(n: int, window: int) -> None:
    q, k, v, gradient = torch.randn(4, 2, 3, n, 8, dtype=torch.float64)
    inputs = [x.requires_grad_() for x in (q, k, v)]
    output = causal_attention(q, k, v, window)
    expected = _plain(q, k, v, window)
    torch.testing.assert_close(output, expected, atol=1e-12, rtol=0.0)
    gradients = torch.autograd.grad(output, inputs, gradient)
    for ours, plain in zip(gradients, torch.autograd.grad(expected, inputs, gradient), strict=True):
        torch.testing.assert_close(ours, plain, atol=1e-12, rtol=0.0)


def test_bf16_is_as_near_as_its_rounding() -> None:
    q, k, v = torch.randn(3, 1, 2, 2 * QUERY_BLOCK, 16)
    rough = causal_attention(q.bfloat16(), k.bfloat16(), v.bfloat16())
    assert (rough - _plain(q, k, v, 0)).abs().max() < 0.1


def test_a_bias_unmasks_earlier_keys() -> None:
    q, k, v = torch.randn(3, 2, 1, 6, 4, dtype=torch.float64)
    output = masked_attention(q[:, :, 4:], k, v, causal_bias(q, 2, earlier_keys=4))
    torch.testing.assert_close(output, _plain(q, k, v, 0)[:, :, 4:], atol=1e-12, rtol=0.0)

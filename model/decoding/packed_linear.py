"""Matrix products of few rows with a fixed weight, laid out once for speed.

Shapes:
    R   rows of a product
"""

import torch
from torch import Tensor

PACKED_ROWS = 64
"""Rows that a weight is packed for, whatever their actual number: one that is packed for one row is
slow for eight."""


class PackedLinear:
    """Products of few rows with one weight, computed in `dtype`.

    In bf16 on a CPU, oneDNN packs the weight in the order in which its kernel reads it, which loads
    weights from memory three times as fast. Its calls cost 10 us more than plain ones.

    Args:
        weight: [outputs, inputs].
        dtype: type of the product; inputs of another type are cast.
    """

    def __init__(self, weight: Tensor, dtype: torch.dtype) -> None:
        self.dtype = dtype
        weight = weight.detach().to(dtype)
        self.is_packed = weight.device.type == "cpu" and _can_pack(dtype)
        if self.is_packed:
            pack = torch.ops.mkldnn._reorder_linear_weight.default
            self.weight: Tensor = pack(weight.contiguous(), PACKED_ROWS)
            self.product = torch.ops.mkldnn._linear_pointwise.default
        else:
            self.weight = weight.t().contiguous()

    def __call__(self, x: Tensor) -> Tensor:
        """x [R, inputs] to [R, outputs], in `dtype`."""
        if x.dtype != self.dtype:
            x = x.to(self.dtype)
        if not self.is_packed:
            return torch.mm(x, self.weight)
        product: Tensor = self.product(x, self.weight, None, "none", [], "")
        return product


def _can_pack(dtype: torch.dtype) -> bool:
    """Whether this processor's oneDNN has packed products of the type."""
    if dtype != torch.bfloat16 or not torch.backends.mkldnn.is_available():
        return False
    return bool(torch.ops.mkldnn._is_mkldnn_bf16_supported())

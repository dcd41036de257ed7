"""Matrix products of few rows with a fixed weight, laid out once for speed.

Shapes:
    R   rows of a product
"""

import math

import torch
from torch import Tensor

BIT_IDENTICAL_ROWS = 8
"""Largest batch in which each row's fp32 logits on a CPU are bit-identical to those of the row
alone."""
ROW_SLICES = 4
"""Slices of a weight in the product of a single row. Measured on two threads; more gain nothing."""
PACKED_ROWS = 64
"""Rows that a weight is packed for, whatever their actual number. Another layout would round in
another way, and a weight packed for one row is slow for eight."""
MAX_EXACT_INPUTS = 1024
"""Most inputs for which oneDNN adds up the fp32 product of one row in the order of several rows."""


class PackedLinear:
    """Products of few rows with one weight, computed in `dtype`.

    On a CPU, oneDNN packs the weight in the order in which its kernel reads it, which loads weights
    from memory three times as fast. In fp32 a row of such a product is bit-identical alone and
    among others, which PyTorch's own products of few rows do not guarantee. Its calls cost 10 us
    more than plain ones.

    Args:
        weight: [outputs, inputs].
        dtype: type of the product; inputs of another type are cast.
        row_by_row: only matters in fp32 on a CPU, for few rows and for small weights that are still
            in the processor's cache from the row before. Each row is then a batch of ROW_SLICES
            products with slices of the weight, which uses all threads, where one product uses one.
    """

    def __init__(self, weight: Tensor, dtype: torch.dtype, *, row_by_row: bool = False) -> None:
        self.dtype = dtype
        weight = weight.detach().to(dtype)
        on_cpu = weight.device.type == "cpu"
        self.is_sliced = row_by_row and on_cpu and dtype == torch.float32
        self.is_packed = on_cpu and _can_pack(dtype) and not self.is_sliced
        if self.is_sliced:
            slices = math.gcd(ROW_SLICES, len(weight))
            self.weight: Tensor = weight.reshape(slices, -1, weight.shape[1])
        elif self.is_packed:
            pack = torch.ops.mkldnn._reorder_linear_weight.default
            self.weight = pack(weight.contiguous(), PACKED_ROWS)
            self.product = torch.ops.mkldnn._linear_pointwise.default
            self.repeats_one_row = dtype == torch.float32 and weight.shape[1] > MAX_EXACT_INPUTS
        else:
            self.weight = weight.t().contiguous()

    def __call__(self, x: Tensor) -> Tensor:
        """x [R, inputs] to [R, outputs], in `dtype`."""
        if x.dtype != self.dtype:
            x = x.to(self.dtype)
        if self.is_sliced:
            if len(x) == 1:
                return self._sliced_product(x)
            return torch.cat([self._sliced_product(row) for row in x.split(1)])
        if not self.is_packed:
            return torch.mm(x, self.weight)
        rows = len(x)
        if rows == 1 and self.repeats_one_row:
            x = x.repeat(2, 1)
        product: Tensor = self.product(x, self.weight, None, "none", [], "")
        return product[:rows]

    def _sliced_product(self, row: Tensor) -> Tensor:
        """row [1, inputs] to [1, outputs]."""
        return torch.bmm(self.weight, row.t().expand(len(self.weight), -1, -1)).view(1, -1)


def _can_pack(dtype: torch.dtype) -> bool:
    """Whether this processor's oneDNN has packed products of the type."""
    if not torch.backends.mkldnn.is_available():
        return False
    if dtype == torch.bfloat16:
        return bool(torch.ops.mkldnn._is_mkldnn_bf16_supported())
    return dtype == torch.float32

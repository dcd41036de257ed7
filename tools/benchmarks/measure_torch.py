"""FLOPs and memory of PyTorch's operations."""

from __future__ import annotations

import itertools
from collections.abc import Callable

import torch
from torch.profiler import ProfilerActivity, profile
from torch.utils.flop_counter import FlopCounterMode, sdpa_flop_count

from bytelm.tools.benchmarks.measure import seconds_of

_PRODUCT_SIZE = 1024
_PRODUCTS = 50


def matrix_peak() -> float:
    """FLOP/s of 1024 x 1024 x 1024 products in bf16 into a preallocated output."""
    a, b = torch.randn(2, _PRODUCT_SIZE, _PRODUCT_SIZE).bfloat16()
    out = torch.empty(_PRODUCT_SIZE, _PRODUCT_SIZE, dtype=torch.bfloat16)
    torch.mm(a, b, out=out)

    def products() -> None:
        for _ in range(_PRODUCTS):
            torch.mm(a, b, out=out)

    return _PRODUCTS * 2 * _PRODUCT_SIZE**3 / seconds_of(products)


def counted_flops(function: Callable[[], object]) -> int:
    """FLOPs of a call as PyTorch counts them: 2 for each multiply-add of a product.

    PyTorch's counter has no entry for its attention kernel for CPUs. That one counts here with all
    pairs of positions, and twice as much in the backward pass as in the forward pass. For our own
    model take `training_flops_per_byte`, which counts the same from the model's equations.
    """
    ops = torch.ops.aten
    attention = {
        ops._scaled_dot_product_flash_attention_for_cpu: _attention_flops,
        ops._scaled_dot_product_flash_attention_for_cpu_backward: _attention_backward_flops,
    }
    with FlopCounterMode(display=False, custom_mapping=attention) as counter:
        function()
    return counter.get_total_flops()


def _attention_flops(q: list[int], k: list[int], v: list[int], *_: object, **__: object) -> int:
    return sdpa_flop_count(q, k, v)


def _attention_backward_flops(
    _: object, q: list[int], k: list[int], v: list[int], *__: object, **___: object
) -> int:
    return 2 * sdpa_flop_count(q, k, v)


def peak_allocated(function: Callable[[], object]) -> int:
    """Largest number of bytes that PyTorch's allocator holds at once during a call."""
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as profiler:
        function()
    assert profiler.profiler is not None
    events = profiler.profiler.kineto_results.events()
    changes = sorted((e.start_ns(), e.nbytes()) for e in events if e.name() == "[memory]")
    return max(itertools.accumulate(change for _, change in changes))

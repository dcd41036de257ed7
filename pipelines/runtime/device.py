"""The device of this process, the precision it computes in, and its measured speed."""

from __future__ import annotations

import math
import time
from typing import Literal

import torch

BF16_CPU_FEATURES = ("amx_bf16", "avx512_bf16", "sve_bf16")
"""Instruction sets that multiply bfloat16, by PyTorch's names."""
INTEL_BF16_CPU_FEATURES = ("amx_bf16",)
"""Those of Intel that save time: its products by `avx512_bf16` take as long as in float32, with
conversions around them (a step of `modern-hour` takes 1.2 to 1.3 times as long)."""
MEASURED_PRODUCTS = 5


def this_device() -> torch.device:
    """Return this rank's GPU if the machine has one, otherwise the CPU."""
    if torch.cuda.is_available():
        return torch.device("cuda", torch.cuda.current_device())
    return torch.device("cpu")


def resolve_precision(device: torch.device, precision: str) -> Literal["fp32", "bf16"]:
    """Resolve `auto` to `bf16` if the device has instructions for it, otherwise to `fp32`.

    A CPU without such instructions computes in bf16 two to three times slower than in fp32; one of
    Intel needs AMX.
    """
    if precision != "auto":
        return "bf16" if precision == "bf16" else "fp32"
    if device.type == "cuda":
        has_bf16 = torch.cuda.is_bf16_supported(including_emulation=False)
    else:
        capabilities = torch.cpu.get_capabilities()
        is_intel = "Intel" in str(capabilities.get("cpu_name", ""))
        features = INTEL_BF16_CPU_FEATURES if is_intel else BF16_CPU_FEATURES
        has_bf16 = any(capabilities.get(name) for name in features)
    return "bf16" if has_bf16 else "fp32"


def autocast(device: torch.device, precision: str) -> torch.autocast:
    """Return the autocast context of a precision: bfloat16 for `bf16`, disabled for `fp32`."""
    return torch.autocast(device.type, torch.bfloat16, enabled=precision == "bf16")


def measured_matmul_flops(device: torch.device, precision: str) -> float:
    """Measure the FLOP/s of a large matrix product on a device: the peak that MFU refers to.

    The CPU is measured with the threads of this process, under the load that it has now.
    """
    size = 1024 if device.type == "cpu" else 8192
    matrix = torch.ones(size, size, device=device)
    seconds = math.inf
    with torch.no_grad(), autocast(device, precision):
        for _ in range(MEASURED_PRODUCTS):
            start = time.perf_counter()
            (matrix @ matrix)[0, 0].item()
            seconds = min(seconds, time.perf_counter() - start)
    return 2 * size**3 / seconds

"""The device of this process, the precision it computes in, and its measured speed."""

from __future__ import annotations

import math
import time
from typing import Literal

import torch


def autocast(device: torch.device, precision: str) -> torch.autocast:
    """The context in which a model computes at `fp32` or `bf16`."""
    return torch.autocast(device.type, torch.bfloat16, enabled=precision == "bf16")


def this_device() -> torch.device:
    """The GPU of this rank where the machine has one, else the CPU."""
    if torch.cuda.is_available():
        return torch.device("cuda", torch.cuda.current_device())
    return torch.device("cpu")


def chosen_precision(device: torch.device, precision: str) -> Literal["fp32", "bf16"]:
    """`fp32` or `bf16`: as asked, or what the device is made for where `auto` is asked.

    A processor without instructions for bf16 takes twice to three times as long with it.
    """
    if precision != "auto":
        return "bf16" if precision == "bf16" else "fp32"
    if device.type == "cuda":
        has = torch.cuda.is_bf16_supported(including_emulation=False)
    else:
        held = torch.cpu.get_capabilities()
        has = any(held.get(name) for name in ("amx_bf16", "avx512_bf16", "sve_bf16"))
    return "bf16" if has else "fp32"


def product_flops(device: torch.device, precision: str) -> float:
    """FLOP/s that a large matrix product reaches on a device now: the peak that a run is held
    against. On the CPU with the threads of this process, beside whatever else runs there."""
    size = 1024 if device.type == "cpu" else 8192
    matrix = torch.ones(size, size, device=device)
    seconds = math.inf
    with torch.no_grad(), autocast(device, precision):
        for _ in range(5):
            began = time.perf_counter()
            (matrix @ matrix)[0, 0].item()
            seconds = min(seconds, time.perf_counter() - began)
    return 2 * size**3 / seconds

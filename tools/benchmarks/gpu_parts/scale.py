"""Sizes at which a GPU is measured, and tiny ones at which the same code is tested on a CPU."""

from __future__ import annotations

import gc
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from statistics import median

import torch

from bytelm.model.config import ModelConfig, StageConfig
from bytelm.model.presets import modern, preset
from bytelm.tools.benchmarks.measure import seconds_of


@dataclass(frozen=True)
class Scale:
    """Settings of all parts: the device, the models, and how often a step is timed."""

    device: str
    models: Mapping[str, ModelConfig]
    """By size, those first whose figures matter most."""
    rows: int
    """Rows of a training step, each of the model's context."""
    long_row: int
    """Ids of the one row of the long context."""
    product: int
    """Rows and columns of the matrices of the product."""
    blocks: int
    """Timed blocks of steps, whose median counts."""
    steps: int
    """Steps of a block. The host waits for the device at its end, as a run does for its loss."""
    layouts: int
    """Different layouts over which recompilations are counted."""
    new_bytes: int
    """Bytes that a row is given when decoding is timed."""
    many_rows: int
    """Rows of a large decoding batch."""
    agreement_rows: int
    """Rows whose bytes are compared with those of each row alone."""
    run_model: str
    """Preset of the run of the real command."""
    run_steps: int
    """Its optimizer steps."""
    feature_megabytes: float
    """Ids of each modality of which codec features are made."""
    compiler: str
    """Backend of `torch.compile`."""


GPU = Scale(
    device="cuda",
    models={size: preset(f"modern-{size}") for size in ("250m", "1b", "16m", "64m")},
    rows=8,
    long_row=1_048_576,
    product=8_192,
    blocks=3,
    steps=3,
    layouts=50,
    new_bytes=512,
    many_rows=256,
    agreement_rows=4,
    run_model="modern-16m",
    run_steps=60,
    feature_megabytes=2.0,
    compiler="inductor",
)
_TINY = replace(
    modern(128, 1),
    stages=(StageConfig(128, 2, 2), StageConfig(64, 1, 1)),
    ngram_table_size=64,
    context=256,
)
SMOKE = Scale(
    device="cpu",
    models={"64m": _TINY},
    rows=2,
    long_row=512,
    product=64,
    blocks=1,
    steps=1,
    layouts=4,
    new_bytes=20,
    many_rows=3,
    agreement_rows=2,
    run_model="modern-1m",
    run_steps=2,
    feature_megabytes=0.1,
    compiler="aot_eager",
)
"""No measurement: every line of code once, in seconds, on a CPU."""


def median_seconds(step: Callable[[], object], scale: Scale) -> float:
    """Median seconds of a step, after one block that warms up."""

    def block() -> None:
        for _ in range(scale.steps):
            step()
        synchronize(scale)

    block()
    return median(seconds_of(block) for _ in range(scale.blocks)) / scale.steps


def product_flops(scale: Scale) -> float:
    """FLOP/s of a product of square matrices of random bf16 numbers, into a preallocated output."""
    size = scale.product
    a, b = torch.randn(2, size, size, device=scale.device).bfloat16()
    out = torch.empty_like(a)
    return 2 * size**3 / median_seconds(lambda: torch.mm(a, b, out=out), scale)


def synchronize(scale: Scale) -> None:
    """Wait until the device has done what it was given."""
    if scale.device == "cuda":
        torch.cuda.synchronize()


def clear_device(scale: Scale) -> None:
    """Give memory without an owner back, forget compiled code, and begin to count the peak."""
    gc.collect()
    torch.compiler.reset()
    if scale.device == "cuda":
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats()


def peak_gigabytes() -> float:
    """Most GB of tensors on the GPU since the last `clear_device`."""
    return torch.cuda.max_memory_allocated() / 1e9

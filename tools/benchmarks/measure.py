"""What the benchmarks of training share: figures, processes, memory, and the matrix peak.

Resident memory comes from Linux' proc files.
"""

from __future__ import annotations

import itertools
import json
import multiprocessing
import time
from collections.abc import Callable, Iterable
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from typing import ParamSpec, TypeVar

import torch
from torch.profiler import ProfilerActivity, profile

P = ParamSpec("P")
R = TypeVar("R")

Figure = tuple[str, float, str, float]
"""name, value, unit, reference."""

_PRODUCT = 1024
_PRODUCTS = 50


def print_figures(figures: Iterable[Figure]) -> None:
    """A JSON line each, as soon as it is there, with ratio = value / reference."""
    for name, value, unit, reference in figures:
        figure = {"name": name, "value": value, "unit": unit, "reference": reference}
        print(json.dumps({**figure, "ratio": value / reference}), flush=True)


def in_fresh_process(function: Callable[P, R], *args: P.args, **kwargs: P.kwargs) -> R:
    """The function's result, from a process of its own that is set up by `start_process`.

    Raises what it raises, and `BrokenProcessPool` where the process dies.
    """
    spawn = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(1, mp_context=spawn, initializer=start_process) as process:
        return process.submit(function, *args, **kwargs).result()


def start_process() -> None:
    """Two threads, and glibc's own way with memory."""
    torch.set_num_threads(2)


def matrix_peak() -> float:
    """FLOP/s of 1024 x 1024 x 1024 products in bf16 into a preallocated output."""
    a, b = torch.randn(2, _PRODUCT, _PRODUCT).bfloat16()
    out = torch.empty(_PRODUCT, _PRODUCT, dtype=torch.bfloat16)
    torch.mm(a, b, out=out)
    began = time.perf_counter()
    for _ in range(_PRODUCTS):
        torch.mm(a, b, out=out)
    return _PRODUCTS * 2 * _PRODUCT**3 / (time.perf_counter() - began)


def peak_allocated(function: Callable[[], object]) -> int:
    """The most bytes that PyTorch's allocator has given to `function` at once."""
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as profiler:
        function()
    assert profiler.profiler is not None
    events = profiler.profiler.kineto_results.events()
    changes = sorted((e.start_ns(), e.nbytes()) for e in events if e.name() == "[memory]")
    return max(itertools.accumulate(change for _, change in changes))


def resident() -> int:
    """Bytes of this process that are resident now."""
    return _status("VmRSS")


def peak_resident() -> int:
    """The most bytes that were resident since the start or the last `reset_peak`."""
    return _status("VmHWM")


def reset_peak() -> None:
    """Lets `peak_resident` count from now on."""
    Path("/proc/self/clear_refs").write_text("5")


def _status(key: str) -> int:
    lines = Path("/proc/self/status").read_text().splitlines()
    kilobytes = next(line.split()[1] for line in lines if line.startswith(f"{key}:"))
    return 1024 * int(kilobytes)

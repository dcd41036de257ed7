"""Figures as JSON lines, time, processes and resident memory, for all benchmarks.

Resident memory is read from Linux' proc files. PyTorch is imported only where it is used, so that
it does not count in the memory of benchmarks without it; `measure_torch.py` measures PyTorch.
"""

from __future__ import annotations

import json
import multiprocessing
import time
from collections.abc import Callable, Iterable, Mapping
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ParamSpec, TypeVar

P = ParamSpec("P")
R = TypeVar("R")

THREADS = 2
"""Threads of every benchmark that trains or decodes."""


@dataclass(frozen=True)
class Figure:
    """One measured value, and the value to compare it with."""

    name: str
    value: float
    unit: str
    reference: float | None = None
    """Measured in the same run, or an aim; None if there is nothing to compare with."""
    details: Mapping[str, Any] = field(default_factory=dict)
    """Further keys of the JSON line."""

    @property
    def ratio(self) -> float | None:
        """value / reference."""
        return self.value / self.reference if self.reference else None

    def as_dict(self) -> dict[str, Any]:
        """The keys and values of the JSON line."""
        return {
            "name": self.name,
            "value": self.value,
            "unit": self.unit,
            "reference": self.reference,
            "ratio": self.ratio,
            **self.details,
        }


def print_figures(figures: Iterable[Figure]) -> None:
    """Print a JSON line for each figure as soon as it is measured."""
    for figure in figures:
        print(json.dumps(figure.as_dict()), flush=True)


def seconds_of(function: Callable[[], object]) -> float:
    """Seconds that one call takes."""
    began = time.perf_counter()
    function()
    return time.perf_counter() - began


def processor_seconds_of(function: Callable[[], object]) -> float:
    """Seconds of processor time that one call takes in all threads of this process, to which other
    work on the machine adds little."""
    began = time.process_time()
    function()
    return time.process_time() - began


def in_fresh_process(function: Callable[P, R], *args: P.args, **kwargs: P.kwargs) -> R:
    """Result of the function in a new process with THREADS threads and glibc's default allocator.

    Raises what the function raises, and `BrokenProcessPool` if the process dies.
    """
    spawn = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(1, mp_context=spawn, initializer=set_threads) as process:
        return process.submit(function, *args, **kwargs).result()


def set_threads() -> None:
    """Let PyTorch use THREADS threads in this process."""
    import torch

    torch.set_num_threads(THREADS)


def resident() -> int:
    """Resident bytes of this process now."""
    return _status("VmRSS")


def peak_resident() -> int:
    """Largest number of resident bytes since the start of the process or the last `reset_peak`."""
    return _status("VmHWM")


def reset_peak() -> None:
    """Make `peak_resident` count from now on."""
    Path("/proc/self/clear_refs").write_text("5")


def _status(key: str) -> int:
    lines = Path("/proc/self/status").read_text().splitlines()
    kilobytes = next(line.split()[1] for line in lines if line.startswith(f"{key}:"))
    return 1024 * int(kilobytes)

"""Run a function on real ranks, and watch the memory of one of them."""

from __future__ import annotations

import os
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
import torch.multiprocessing

from bytelm.pipelines.runtime.launcher import free_port
from bytelm.pipelines.training.engine import join_process_group


def run_ranks(function: Callable[..., None], ranks: int, *arguments: Any) -> None:
    """Call function(rank, *arguments) in processes that form a process group of DeepSpeed."""
    torch.multiprocessing.spawn(_join, (function, ranks, free_port(), *arguments), ranks)


def _join(rank: int, function: Callable[..., None], ranks: int, port: int, *arguments: Any) -> None:
    os.environ.update(RANK=str(rank), WORLD_SIZE=str(ranks), LOCAL_RANK=str(rank))
    os.environ.update(MASTER_ADDR="127.0.0.1", MASTER_PORT=str(port), GLOO_SOCKET_IFNAME="lo")
    torch.set_num_threads(1)
    join_process_group(120.0)
    function(rank, *arguments)
    dist.barrier()
    dist.destroy_process_group()  # or its threads sometimes abort the process


class MemoryGrowth:
    """Anonymous memory of a process beyond what it had before, in bytes."""

    peak = 0


@contextmanager
def watched_memory() -> Iterator[MemoryGrowth]:
    """Look at the memory of this process every millisecond, and keep the largest growth.

    What is resident is what is in use only where glibc gives freed memory back at once: start the
    process with the variables of RETURN_MEMORY.
    """
    growth, before, done = MemoryGrowth(), _anonymous_bytes(), threading.Event()

    def watch() -> None:
        while not done.wait(0.001):
            growth.peak = max(growth.peak, _anonymous_bytes() - before)

    watcher = threading.Thread(target=watch)
    watcher.start()
    try:
        yield growth
    finally:
        done.set()
        watcher.join()


RETURN_MEMORY = {"MALLOC_MMAP_THRESHOLD_": "65536", "MALLOC_TRIM_THRESHOLD_": "65536"}
"""Environment of a process in which freed memory goes back to the kernel at once."""


def _anonymous_bytes() -> int:
    status = Path("/proc/self/status").read_text()
    (line,) = (line for line in status.splitlines() if line.startswith("RssAnon:"))
    return 1024 * int(line.split()[1])

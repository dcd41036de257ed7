"""The loader's memory stays below its stated limit while the consumer stalls."""

from __future__ import annotations

import multiprocessing
import os
import time
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path

import numpy as np
from helpers.processes import descendants
from helpers.sets import SetMaker, text
from helpers.web_server import eventually

from bytelm.pipelines.data import loader
from bytelm.pipelines.data.loader import BYTES_PER_ID, make_loader
from bytelm.pipelines.data.packing import PlanConfig
from bytelm.pipelines.data.plan import Plan, Source
from bytelm.pipelines.data.samplers import TrainingRows
from bytelm.pipelines.runtime.processes import cpu_seconds
from bytelm.pipelines.shards.reader import ShardSet

WORKERS = 2
ROW = 1 << 21
STILL_LOOKS = 8
VIEWS = {"text": "utf8", "image": "raster", "audio": "s16le"}


def held_bytes(pids: set[int]) -> int:
    """Anonymous memory of processes."""
    anonymous = 0
    for pid in pids:
        _, _, rest = Path(f"/proc/{pid}/status").read_text().partition("RssAnon:")
        anonymous += int(rest.split()[0]) << 10
    return anonymous


def stalled_bytes(folder: str, prefetch_bytes: int) -> int:
    """Memory of the workers once they have nothing left to do, after the first batch is taken."""
    loader.PREFETCH_BYTES = prefetch_bytes
    plan = Plan([Source(ShardSet(folder))], PlanConfig(ROW, 8, VIEWS))
    batches = make_loader(plan, TrainingRows(plan, (0, 0), 1, 1, 0, 1), WORKERS).batches()
    next(batches)
    pids = descendants(os.getpid())
    assert len(pids) >= WORKERS

    def has_stalled() -> bool:
        """Several looks in a row: beside other tests, a worker may get no core for a while."""
        before = [cpu_seconds(pid) for pid in pids]
        for _ in range(STILL_LOOKS):
            time.sleep(0.5)
            if [cpu_seconds(pid) for pid in pids] != before:
                return False
        return True

    eventually(has_stalled)
    return held_bytes(pids)


def stalled_bytes_of_fresh_process(folder: str, prefetch_bytes: int) -> int:
    """`stalled_bytes` in a new process: workers inherit the memory of the process that starts them,
    and fill what earlier tests have freed before they take more."""
    with ProcessPoolExecutor(1, multiprocessing.get_context("spawn")) as pool:
        return pool.submit(stalled_bytes, folder, prefetch_bytes).result()


def test_a_stalled_consumer_bounds_the_memory_of_the_loader(make_set: SetMaker) -> None:
    """Rows are 2 MiB long, so MAX_PREFETCHED_BATCHES of them would exceed the limit. The base is a
    loader that holds one batch a worker; a worker may have two more buffers in use."""
    rng = np.random.default_rng(0)
    folder = make_set([[text(rng.bytes(ROW - 100))] for _ in range(10)]).location
    base = stalled_bytes_of_fresh_process(folder, 1)
    unbounded = stalled_bytes_of_fresh_process(folder, 1 << 40)
    held = stalled_bytes_of_fresh_process(folder, loader.PREFETCH_BYTES)
    limit = base + loader.PREFETCH_BYTES + 2 * WORKERS * ROW * BYTES_PER_ID
    assert unbounded > limit, "the limit makes a difference"
    assert base < held < limit
    print(f"base {base / 1e6:.0f} MB, held {held / 1e6:.0f}, unbounded {unbounded / 1e6:.0f}")

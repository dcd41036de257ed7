"""The loader's memory stays below its stated limit while the consumer stalls."""

from __future__ import annotations

import os
import time
from pathlib import Path

import numpy as np
import pytest
from helpers.processes import descendants
from helpers.sets import SetMaker, text
from helpers.web_server import eventually

from bytelm.pipelines.data import loader
from bytelm.pipelines.data.loader import BYTES_PER_ID, PREFETCH_BYTES, make_loader
from bytelm.pipelines.data.packing import PlanConfig
from bytelm.pipelines.data.plan import Plan, Source
from bytelm.pipelines.data.samplers import TrainingRows
from bytelm.pipelines.runtime.processes import cpu_seconds

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


def stalled_bytes(plan: Plan) -> int:
    """Memory of the workers once they have nothing left to do, after the first batch is taken."""
    others = descendants(os.getpid())  # of tests that ran before: a browser, a server
    loader = make_loader(plan, TrainingRows(plan, (0, 0), 1, 1, 0, 1), WORKERS)
    batches = loader.batches()
    next(batches)
    pids = descendants(os.getpid()) - others
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


def test_a_stalled_consumer_bounds_the_memory_of_the_loader(
    make_set: SetMaker, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Rows are 2 MiB long, so MAX_PREFETCHED_BATCHES of them would exceed the limit. The base is a
    loader that holds one batch a worker; a worker may have two more buffers in use."""
    rng = np.random.default_rng(0)
    shard_set = make_set([[text(rng.bytes(ROW - 100))] for _ in range(10)])
    plan = Plan([Source(shard_set)], PlanConfig(ROW, 8, VIEWS))
    monkeypatch.setattr(loader, "PREFETCH_BYTES", 1)
    base = stalled_bytes(plan)
    limit = base + PREFETCH_BYTES + 2 * WORKERS * ROW * BYTES_PER_ID
    monkeypatch.setattr(loader, "PREFETCH_BYTES", 1 << 40)
    unbounded = stalled_bytes(plan)
    assert unbounded > limit, "the limit makes a difference"
    monkeypatch.setattr(loader, "PREFETCH_BYTES", PREFETCH_BYTES)
    held = stalled_bytes(plan)
    assert base < held < limit
    print(f"base {base / 1e6:.0f} MB, held {held / 1e6:.0f}, unbounded {unbounded / 1e6:.0f}")

"""The loader's memory stays below its stated limit while the consumer stalls."""

from __future__ import annotations

import contextlib
import os
from pathlib import Path
from typing import Any

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

WORKERS = 2
ROW = 1 << 21
VIEWS = {"text": "utf8", "image": "raster", "audio": "s16le"}


def held_bytes(pids: set[int]) -> int:
    """Memory of processes: anonymous pages, and each shared mapping that they have open, once."""
    anonymous, shared = 0, {}
    for pid in pids:
        _, _, rest = Path(f"/proc/{pid}/status").read_text().partition("RssAnon:")
        anonymous += int(rest.split()[0]) << 10
        for link in Path(f"/proc/{pid}/fd").iterdir():
            with contextlib.suppress(FileNotFoundError):  # closed just now
                if os.readlink(link).startswith("/dev/shm/"):
                    status = link.stat()
                    shared[status.st_ino] = 512 * status.st_blocks
    return anonymous + sum(shared.values())


def stalled_bytes(plan: Plan) -> tuple[int, int]:
    """Memory of the workers once they have finished every batch requested of them, after the first
    batch is taken; and the number of batches that wait."""
    batches: Any = iter(make_loader(plan, TrainingRows(plan, (0, 0), 1, 1, 0, 1), WORKERS))
    next(batches)
    waiting = batches._tasks_outstanding
    eventually(lambda: batches._worker_result_queue.qsize() == waiting)
    return held_bytes(descendants(os.getpid())), waiting


def test_a_stalled_consumer_bounds_the_memory_of_the_loader(
    make_set: SetMaker, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Rows are 2 MiB long, so MAX_PREFETCHED_BATCHES of them would exceed the limit. The base is a
    loader that holds one batch a worker; a worker may have two more buffers in use."""
    rng = np.random.default_rng(0)
    shard_set = make_set([[text(rng.bytes(ROW - 100))] for _ in range(10)])
    plan = Plan([Source(shard_set)], PlanConfig(ROW, 8, VIEWS))
    monkeypatch.setattr(loader, "PREFETCH_BYTES", 1)
    base, fewest = stalled_bytes(plan)
    limit = base + PREFETCH_BYTES + 2 * WORKERS * ROW * BYTES_PER_ID
    monkeypatch.setattr(loader, "PREFETCH_BYTES", 1 << 40)
    unbounded, most = stalled_bytes(plan)
    assert unbounded > limit, "the limit makes a difference"
    monkeypatch.setattr(loader, "PREFETCH_BYTES", PREFETCH_BYTES)
    held, waiting = stalled_bytes(plan)
    assert held < limit
    assert fewest < waiting < most
    print(f"base {base / 1e6:.0f} MB, held {held / 1e6:.0f}, unbounded {unbounded / 1e6:.0f}")

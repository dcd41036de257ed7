"""Time and memory of a plan of rows over a large set.

    python -m bytelm.tools.benchmarks.plan [SHARDS [DOCUMENTS]]

Makes the indexes (no tars) of a synthetic set of SHARDS shards of DOCUMENTS documents each, 10^4 of
10^3 by default, sizes log-normal around 3 KB, and prints a JSON line a figure; takes about a
minute.

    plan/open                     seconds to open the set
    plan/count, plan/load         seconds to count its rows once, and to load the counts
    plan/rows                     rows of the plan
    plan/random-row               milliseconds to find a random row, the mean of 500
    plan/random-row-processor     the same by the processor's time, which other processes on the
                                  machine do not change
    .../-worst                    the slowest of the 500, for both clocks
    plan/memory-open, plan/memory-counted, plan/memory   MB: the process's peak after each part

Objects that exist once the plan is loaded are frozen first, as in training, since a full pass of
Python's garbage collector takes longer than a row.
"""

from __future__ import annotations

import argparse
import gc
import hashlib
import io
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np

from bytelm.pipelines.config import ViewsConfig
from bytelm.pipelines.data.packing import PlanConfig
from bytelm.pipelines.data.plan import Plan, Source, open_plan
from bytelm.pipelines.shards.format import CRC_CHUNK, INDEX_DTYPE, Shard
from bytelm.pipelines.shards.reader import ShardSet
from bytelm.pipelines.shards.writer import write_set_manifest
from bytelm.tools.benchmarks.measure import Figure, peak_resident, print_figures

ROW_LENGTH, PATCH = 8192, 8
LOOK_UPS = 500


def plan_figures(shards: int, documents: int) -> Iterator[Figure]:
    """Figures of a set of `shards` shards of `documents` documents each."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        _write_indexes(folder, shards, documents)
        began = time.perf_counter()
        shard_set = ShardSet(folder)
        yield Figure("plan/open", time.perf_counter() - began, "s")
        yield _peak_memory("plan/memory-open")
        config = PlanConfig(ROW_LENGTH, PATCH, vars(ViewsConfig()))
        for part in ("plan/count", "plan/load"):
            began = time.perf_counter()
            plan = open_plan([Source(shard_set)], config)
            yield Figure(part, time.perf_counter() - began, "s")
        yield _peak_memory("plan/memory-counted")
        yield Figure("plan/rows", plan.rows(0), "rows")
        yield from _look_up_figures(plan)
        yield _peak_memory("plan/memory")


def _look_up_figures(plan: Plan) -> Iterator[Figure]:
    """Mean and worst time of random rows, by the clock and by the processor's time."""
    gc.freeze()
    clock, processor = [], []
    for row in np.random.default_rng(1).integers(0, plan.rows(0), LOOK_UPS).tolist():
        began, processor_began = time.perf_counter(), time.thread_time()
        plan.row(0, row)
        clock.append(1e3 * (time.perf_counter() - began))
        processor.append(1e3 * (time.thread_time() - processor_began))
    gc.unfreeze()
    for name, milliseconds in (("random-row", clock), ("random-row-processor", processor)):
        yield Figure(f"plan/{name}", float(np.mean(milliseconds)), "ms")
        yield Figure(f"plan/{name}-worst", max(milliseconds), "ms")


def _peak_memory(name: str) -> Figure:
    return Figure(name, peak_resident() / 1e6, "MB")


def _write_indexes(folder: Path, shards: int, documents: int) -> None:
    """Write a manifest and an index for each shard, with random sizes and no payload."""
    rng = np.random.default_rng(0)
    written = []
    for number in range(shards):
        size = rng.lognormal(8, 1.5, documents).astype(np.int64) + 1
        chunks = -(-size // CRC_CHUNK)
        rows = np.zeros(documents, INDEX_DTYPE)
        rows["document"] = np.arange(documents)
        rows["size"] = size
        rows["offset"] = np.cumsum(size) - size
        rows["first_crc"] = np.cumsum(chunks) - chunks
        file = io.BytesIO()
        np.save(file, rows)
        np.save(file, np.zeros(int(chunks.sum()), "<u4"))
        data = file.getvalue()
        shard = Shard(
            name=f"train-{number:06d}.tar",
            split="train",
            size=int(size.sum()),
            sha256=hashlib.sha256(str(number).encode()).hexdigest(),
            index_size=len(data),
            index_sha256=hashlib.sha256(data).hexdigest(),
            documents=documents,
            bytes={"text": int(size.sum()), "image": 0, "audio": 0},
        )
        (folder / shard.index_name).write_bytes(data)
        written.append(shard)
    write_set_manifest(folder, written, {})


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description="Time and memory of a plan over a large set.")
    parser.add_argument("shards", type=int, nargs="?", default=10_000, metavar="SHARDS")
    parser.add_argument(
        "documents", type=int, nargs="?", default=1_000, metavar="DOCUMENTS", help="of each shard"
    )
    options = parser.parse_args()
    print_figures(plan_figures(options.shards, options.documents))


if __name__ == "__main__":
    main()

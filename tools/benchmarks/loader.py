"""The loader half of `bench_data`: payload bytes per second against the stock webdataset reader.

Both read the same shards in the same process, one document after the other for the stock reader,
rows of 1 MiB for the loader, with every checksum checked by the loader and none by the stock
reader. Best of three rounds each, in turn, from a warm cache.
"""

from __future__ import annotations

import tempfile
import time
from collections.abc import Iterator
from itertools import islice
from pathlib import Path

import numpy as np
import webdataset

from bytelm.modalities.base import Header, Sample
from bytelm.pipelines.data.loader import make_loader
from bytelm.pipelines.data.packing import PlanConfig
from bytelm.pipelines.data.plan import Plan, Source
from bytelm.pipelines.data.samplers import TrainingRows
from bytelm.pipelines.shards.reader import ShardSet
from bytelm.pipelines.shards.writer import ShardWriter, write_set_manifest

SIZES = {"1KiB": 1 << 10, "4KiB": 1 << 12, "64KiB": 1 << 16, "1MiB": 1 << 20}
SET_BYTES = 1 << 27
SHARD_BYTES = 1 << 25
ROUNDS = 3
ROW_LENGTH = (1 << 20) + 4096
PATCH = 32
VIEWS = {"text": "utf8", "image": "raster", "audio": "s16be"}


def figures() -> Iterator[tuple[str, float, str, float]]:
    """(name, value, unit, reference) for each size of document."""
    for name, size in SIZES.items():
        with tempfile.TemporaryDirectory() as folder:
            count = min(SET_BYTES // size, 1 << 15)
            shard_set = _write(Path(folder), size, count)
            plan = Plan([Source(shard_set)], PlanConfig(ROW_LENGTH, PATCH, VIEWS))
            ours, theirs = [], []
            for _ in range(ROUNDS):
                ours.append(_loader_speed(plan, count * size))
                theirs.append(_stock_speed(shard_set, count * size))
            yield f"loader/{name}", max(ours) / 1e6, "MB/s", max(theirs) / 1e6


def _write(folder: Path, size: int, count: int) -> ShardSet:
    rng = np.random.default_rng(0)
    shards = []
    writer = ShardWriter(folder, "train", 0)
    for i in range(count):
        if writer.size > SHARD_BYTES:
            shards.append(writer.close())
            writer = ShardWriter(folder, "train", len(shards))
        writer.add(f"d{i:06d}", [f"d{i}"], [Sample("text", Header(), rng.bytes(size))])
    shards.append(writer.close())
    write_set_manifest(folder, shards, {})
    return ShardSet(folder)


def _loader_speed(plan: Plan, total: int) -> float:
    """Payload bytes per second of one epoch, in this process."""
    rows = TrainingRows(plan, (0, 0), 1, 1, 0, 1)
    began = time.perf_counter()
    delivered = sum(1 for _ in islice(make_loader(plan, rows, workers=0), plan.rows(0)))
    seconds = time.perf_counter() - began
    assert delivered == plan.rows(0)
    assert plan.epoch_bytes == total
    return total / seconds


def _stock_speed(shard_set: ShardSet, total: int) -> float:
    """Payload bytes per second of all shards by the stock reader, in this process."""
    urls = [f"{shard_set.location}/{shard.name}" for shard in shard_set.shards]
    began = time.perf_counter()
    taken = 0
    for document in webdataset.WebDataset(urls, shardshuffle=False):
        taken += len(document["txt"])
    seconds = time.perf_counter() - began
    assert taken == total
    return taken / seconds

"""Payload bytes per second of the loader beside the stock webdataset reader.

    python -m bytelm.tools.benchmarks.loader [--sizes 1KiB 64KiB] [--megabytes N]

Prints a JSON line a size of document: `name` (`loader/SIZE`), `value` in MB/s, `reference` (the
stock reader's figure) and `ratio` (value / reference). Both read the same random documents from the
same shards in the same process: the stock reader one document after the other, the loader rows of
1 MiB. The loader checks every checksum, the stock reader none. Best of three rounds, in turn, from
a warm cache. Needs `pip install 'bytelm[bench]'`; takes about a minute.
"""

from __future__ import annotations

import argparse
import tempfile
from collections.abc import Iterator, Sequence
from itertools import islice
from pathlib import Path

import numpy as np
import webdataset

from bytelm.modalities.base import Header, Sample
from bytelm.pipelines.config import ViewsConfig
from bytelm.pipelines.data.loader import make_loader
from bytelm.pipelines.data.packing import PlanConfig
from bytelm.pipelines.data.plan import Plan, Source
from bytelm.pipelines.data.samplers import TrainingRows
from bytelm.pipelines.shards.reader import ShardSet
from bytelm.pipelines.shards.writer import ShardWriter, write_set_manifest
from bytelm.tools.benchmarks.measure import Figure, print_figures, seconds_of

SIZES = {"1KiB": 1 << 10, "4KiB": 1 << 12, "64KiB": 1 << 16, "1MiB": 1 << 20}
SHARD_BYTES = 1 << 25
MAX_DOCUMENTS = 1 << 15
ROUNDS = 3
ROW_LENGTH = (1 << 20) + 4096
PATCH = 32


def loader_figures(sizes: Sequence[str], set_bytes: int) -> Iterator[Figure]:
    """A figure for each size of document, on sets of at most `set_bytes` and MAX_DOCUMENTS."""
    for name in sizes:
        size = SIZES[name]
        count = max(1, min(set_bytes // size, MAX_DOCUMENTS))
        with tempfile.TemporaryDirectory() as folder:
            shard_set = _write_set(Path(folder), size, count)
            plan = Plan([Source(shard_set)], PlanConfig(ROW_LENGTH, PATCH, vars(ViewsConfig())))
            loader_speeds, stock_speeds = [], []
            for _ in range(ROUNDS):
                loader_speeds.append(_loader_speed(plan, count * size))
                stock_speeds.append(_stock_speed(shard_set, count * size))
        yield Figure(f"loader/{name}", max(loader_speeds), "MB/s", max(stock_speeds))


def _write_set(folder: Path, size: int, count: int) -> ShardSet:
    """A set of `count` documents of `size` random bytes."""
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
    """Payload MB/s of one epoch of `total` bytes, in this process."""
    rows = TrainingRows(plan, (0, 0), 1, 1, 0, 1)
    assert plan.epoch_bytes == total

    def read_epoch() -> None:
        delivered = sum(1 for _ in islice(make_loader(plan, rows, workers=0), plan.rows(0)))
        assert delivered == plan.rows(0)

    return total / 1e6 / seconds_of(read_epoch)


def _stock_speed(shard_set: ShardSet, total: int) -> float:
    """Payload MB/s of all shards, `total` bytes, by the stock reader in this process."""
    urls = [f"{shard_set.location}/{shard.name}" for shard in shard_set.shards]

    def read_all() -> None:
        documents = webdataset.WebDataset(urls, shardshuffle=False)
        assert sum(len(document["txt"]) for document in documents) == total

    return total / 1e6 / seconds_of(read_all)


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description="Speed of the loader beside webdataset's reader.")
    parser.add_argument("--sizes", nargs="+", choices=SIZES, default=list(SIZES), metavar="SIZE")
    parser.add_argument("--megabytes", type=int, default=128, help="of each set, at most")
    options = parser.parse_args()
    print_figures(loader_figures(options.sizes, options.megabytes << 20))


if __name__ == "__main__":
    main()

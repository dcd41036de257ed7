"""A synthetic set of any number of shards, made in seconds: one real shard under all their names.

A file has at most 65,000 links on ext4, so every LINKS shards have a copy of their own. The counts
of rows are those of the real shard, and stand beside the manifest.
"""

from __future__ import annotations

import os
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np

from bytelm.modalities.base import Header, Sample
from bytelm.pipelines.data.counting import ShardTable, count_rows
from bytelm.pipelines.data.kept_counts import counts_file
from bytelm.pipelines.data.packing import PlanConfig
from bytelm.pipelines.shards.format import Shard
from bytelm.pipelines.shards.reader import ShardSet
from bytelm.pipelines.shards.writer import ShardWriter, write_set_manifest

LINKS = 30_000
LETTERS = np.frombuffer(b"abcdefghijklmnopqrstuvwxyz    ", np.uint8)


def write_large_set(folder: Path, shards: int, documents: int, config: PlanConfig) -> ShardSet:
    """Write a set to a new folder.

    Args:
        folder: of the set.
        shards: number of shards of `train`; `val` has one.
        documents: texts of each shard, of sizes log-normal around 3 kB.
        config: what decides the rows that the counts are of.
    """
    folder.mkdir()
    real = {split: _write_shard(folder, split, documents) for split in ("train", "val")}
    train = [replace(real["train"], name=f"train-{n:06d}.tar") for n in range(shards)]
    for number, shard in enumerate(train[1:], 1):
        for name in (shard.name, shard.index_name):
            original = folder / f"train-{number // LINKS * LINKS:06d}{Path(name).suffix}"
            if number % LINKS:
                os.link(original, folder / name)
            else:
                shutil.copyfile(folder / f"train-000000{Path(name).suffix}", folder / name)
    write_set_manifest(folder, [*train, real["val"]], {})
    shard_set = ShardSet(folder)
    for split, count in (("train", shards), ("val", 1)):
        one = count_rows(shard_set, shard_set.split(split)[:1], config)
        table = ShardTable(*(np.repeat(column, count) for column in one))
        name, content = counts_file(table, shard_set, split, config)
        (folder / name).write_bytes(content)
    return shard_set


def _write_shard(folder: Path, split: str, documents: int) -> Shard:
    """Write shard 0 of a split: texts of random letters."""
    rng = np.random.default_rng(len(split))
    writer = ShardWriter(folder, split, 0)
    for number, size in enumerate(rng.lognormal(8, 1.5, documents).astype(int) + 1):
        data = rng.choice(LETTERS, size).tobytes()
        writer.add(f"{split}-{number}", [f"{number}.txt"], [Sample("text", Header(), data)])
    return writer.close()

"""Counts of rows that are kept with a set, so that no later start has to pack its shards.

    SET/counts-ROOT-KEY.npy     rows and cost of each shard of a split, under one way of packing

The name follows from all that the counts depend on, and the file's checksum covers it too, so the
counts of another set, or of other options, are never taken. `docs/shard-format.md` specifies the
file. Where a set cannot be written, its counts are kept in the cache folder.
"""

from __future__ import annotations

import hashlib
import io
import json
import sys
from collections.abc import Iterable
from pathlib import Path

import numpy as np

from bytelm.pipelines.data.counting import ShardTable, count_split, processes_for
from bytelm.pipelines.data.packing import PACKINGS, PLAN_VERSION, PlanConfig
from bytelm.pipelines.runtime.progress import stderr_console
from bytelm.pipelines.shards.reader import ShardSet
from bytelm.pipelines.storage.cache import CACHE_FOLDER
from bytelm.pipelines.storage.destination import open_destination
from bytelm.pipelines.storage.files import write_atomic
from bytelm.pipelines.storage.store import LocalStore, Store

CHECKSUM_BYTES = 32


def row_table(
    shard_set: ShardSet, split: str, config: PlanConfig, cache_folder: str = CACHE_FOLDER
) -> ShardTable:
    """The kept counts of a split; where there are none they are counted, and kept.

    Args:
        shard_set: a whole set, as `open_set` returns it.
        split: `train`, `val` or `test`.
        config: what decides the rows.
        cache_folder: keeps the counts of a set that is remote or cannot be written.
    Raises:
        ValueError: for a split without documents, and a view that the samples cannot have.
        DamageError: for a damaged index.
    """
    places = _places(shard_set, cache_folder)
    for place in places:
        if (table := _read(place, shard_set, split, config)) is not None:
            return table
    table = _count(shard_set, split, config)
    folders = [place.folder for place in places if isinstance(place, LocalStore)]
    _keep(folders, *counts_file(table, shard_set, split, config))
    return table


def keep_with_set(shard_set: ShardSet, splits: Iterable[str], config: PlanConfig) -> list[str]:
    """Count the splits that have documents, and write the counts beside the set's manifest.

    Counts that are there already stay.

    Returns:
        the names of the files.
    Raises:
        ValueError: for a view that the samples cannot have, and a URL to which nothing can be
            written.
        DamageError, OSError: where an index is damaged, or the counts cannot be written.
    """
    names = []
    with open_destination(shard_set.location) as destination:
        for split in splits:
            if not shard_set.counts(split).documents:
                continue
            names.append(counts_name(shard_set, split, config))
            if _read(shard_set.store, shard_set, split, config) is None:
                table = _count(shard_set, split, config)
                destination.write(*counts_file(table, shard_set, split, config))
    return names


def counts_name(shard_set: ShardSet, split: str, config: PlanConfig) -> str:
    """Name of the file that holds the counts of a split."""
    key = hashlib.sha256(_identity(shard_set, split, config)).hexdigest()
    return f"counts-{shard_set.root[:16]}-{key[:16]}.npy"


def counts_file(
    table: ShardTable, shard_set: ShardSet, split: str, config: PlanConfig
) -> tuple[str, bytes]:
    """Name and content of the file of a split's counts: the array [2, N], and its checksum."""
    file = io.BytesIO()
    np.save(file, np.stack(table).astype("<i8"))
    array = file.getvalue()
    content = array + _checksum(array, shard_set, split, config)
    return counts_name(shard_set, split, config), content


def _identity(shard_set: ShardSet, split: str, config: PlanConfig) -> bytes:
    """All that the counts depend on, as a line of JSON.

    Views of modalities that the split does not have are left out. The seed is not: it decides
    which documents share a row, and so how many rows have no payload.
    """
    sizes = shard_set.counts(split).bytes
    values = {
        "version": PLAN_VERSION,
        "root": shard_set.root,
        "split": split,
        "views": {name: view for name, view in sorted(config.views.items()) if sizes.get(name)},
        "context": config.row_length,
        "patch": config.patch,
        "packing": PACKINGS[config.packing],
        "pair_order": config.pair_order,
        "seed": config.seed,
    }
    return json.dumps(values).encode()


def _checksum(array: bytes, shard_set: ShardSet, split: str, config: PlanConfig) -> bytes:
    return hashlib.sha256(_identity(shard_set, split, config) + array).digest()


def _read(store: Store, shard_set: ShardSet, split: str, config: PlanConfig) -> ShardTable | None:
    """The counts of a split in a folder or at a URL; None where there are none, or others."""
    try:
        data = store.read(counts_name(shard_set, split, config), 1 << 30)
    except (OSError, ValueError):  # not there: some stores say that it is forbidden
        return None
    array, checksum = data[:-CHECKSUM_BYTES], data[-CHECKSUM_BYTES:]
    if checksum != _checksum(array, shard_set, split, config):
        return None
    rows, cost = np.load(io.BytesIO(array), allow_pickle=False)
    return ShardTable(rows, cost)


def _count(shard_set: ShardSet, split: str, config: PlanConfig) -> ShardTable:
    """Count a split by as many processes as it is worth, and show the progress on stderr."""
    processes = processes_for(shard_set.counts(split).documents)
    return count_split(shard_set, split, config, processes, stderr_console())


def _places(shard_set: ShardSet, cache_folder: str) -> list[Store]:
    """The set's own place, and the cache folder, where there is a home folder for it; the nearer
    one first."""
    try:
        cache = LocalStore(Path(cache_folder).expanduser())
    except RuntimeError:
        return [shard_set.store]
    return [cache, shard_set.store] if shard_set.is_remote else [shard_set.store, cache]


def _keep(folders: Iterable[Path], name: str, data: bytes) -> None:
    """Write the counts to the first folder that can be written, or say that there is none."""
    reason: object = "there is no home folder for the cache"
    for folder in folders:
        try:
            folder.mkdir(parents=True, exist_ok=True)
            write_atomic(folder / name, data)
            return
        except OSError as error:
            reason = error
    print(f"the counts of rows are not kept, each start counts again: {reason}", file=sys.stderr)

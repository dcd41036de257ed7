"""Counting a split: the rows that each of its shards makes, and what they cost.

Every shard is packed once, which reads its index and no payload. A large split is counted by
several processes, of which process k counts runs k, k + P, k + 2P, ... of SHARDS_AT_ONCE shards.

M members (index rows) of a shard    N shards of a split    P processes
"""

from __future__ import annotations

import multiprocessing
import os
import threading
from collections.abc import Iterator, Sequence
from contextlib import suppress
from multiprocessing.connection import Connection, wait
from multiprocessing.process import BaseProcess
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from bytelm.modalities import BY_CODE
from bytelm.modalities.base import FILE_VIEW
from bytelm.modalities.framing import Ints
from bytelm.pipelines.data.packing import PlanConfig, pack_shard
from bytelm.pipelines.runtime import signals
from bytelm.pipelines.runtime.progress import Progress
from bytelm.pipelines.shards.format import DEEP, OWN_FILE, SPLITS, Index, Shard
from bytelm.pipelines.shards.reader import ShardSet

if TYPE_CHECKING:
    from rich.console import Console

SHARDS_AT_ONCE = 64
DOCUMENTS_PER_PROCESS = 500_000
"""A process is started for so many documents, which take it some seconds."""


class ShardTable(NamedTuple):
    """Rows and cost of each shard of a split; both are [N]."""

    rows: Ints
    cost: Ints
    """Sum of the rows' costs: their payload bytes, and 1 for a row without any, so that no two
    rows of a source come at the same virtual time."""


class _Run(NamedTuple):
    """The counts of consecutive shards."""

    first: int
    table: ShardTable
    documents: int


def count_split(
    shard_set: ShardSet,
    split: str,
    config: PlanConfig,
    processes: int = 1,
    console: Console | None = None,
) -> ShardTable:
    """Count the rows of a split.

    Args:
        shard_set: the set.
        split: `train`, `val` or `test`.
        config: what decides the rows.
        processes: number of processes; 1 counts in this one.
        console: shows the progress.
    Raises:
        ValueError: for a split without documents, and a view that the samples cannot have.
        DamageError: for a damaged index.
        RuntimeError: where a process dies.
    """
    shards = shard_set.filled_shards(split)
    if not shards:
        raise ValueError(_empty_split(shard_set, split))
    table = ShardTable(np.empty(len(shards), np.int64), np.empty(len(shards), np.int64))
    runs = (
        _counted_by_processes(shard_set, shards, config, processes)
        if processes > 1
        else _count_runs(shard_set, shards, config, 0, 1)
    )
    with Progress(console, shard_set.counts(split).documents, "documents") as progress:
        for run in runs:
            place = slice(run.first, run.first + len(run.table.rows))
            table.rows[place], table.cost[place] = run.table
            progress.add(run.documents)
    return table


def processes_for(documents: int) -> int:
    """Processes that are worth their start for so many documents, as many as there are cores at
    most."""
    return max(1, min(-(-documents // DOCUMENTS_PER_PROCESS), len(os.sched_getaffinity(0))))


def count_rows(shard_set: ShardSet, shards: Sequence[Shard], config: PlanConfig) -> ShardTable:
    """Count the rows of some shards in this process; ValueError for a view that their samples
    cannot have."""
    rows, cost = [], []
    for shard in shards:
        index = shard_set.index(shard)
        sizes = payload_sizes(index, config, shard_set.location)
        row_bytes = pack_shard(index, sizes, config, shard.name, 0).row_bytes
        rows.append(len(row_bytes))
        cost.append(int(row_cost(row_bytes).sum()))
    return ShardTable(np.array(rows, np.int64), np.array(cost, np.int64))


def row_cost(row_bytes: Ints) -> Ints:
    """[R] cost of rows of so many payload bytes; see `ShardTable`."""
    return np.maximum(row_bytes, 1)


def payload_sizes(index: Index, config: PlanConfig, location: str) -> Ints:
    """[M] payload bytes of an index's members under the views.

    Raises ValueError, which names the set's location, for a view that the samples cannot have.
    """
    sizes = index["size"].astype(np.int64)
    for modality in BY_CODE:
        view = config.views[modality.name]
        decoded = (index["modality"] == modality.code) & (index["is_file"] != OWN_FILE)
        if not decoded.any():
            continue
        if view == FILE_VIEW:
            raise ValueError(
                f"view {FILE_VIEW!r} of {modality.name}: {location} "
                "holds decoded samples; prepare it with --keep-files, or choose another view"
            )
        is_deep = index["is_file"][decoded] == DEEP
        sizes[decoded] = modality.payload_size(sizes[decoded], view, is_deep)
        for channels in np.unique(index["channels"][decoded]):
            modality.check_view(view, int(channels), config.patch)
    return sizes


def _count_runs(
    shard_set: ShardSet, shards: Sequence[Shard], config: PlanConfig, number: int, processes: int
) -> Iterator[_Run]:
    """Count the runs of process `number` of so many; indexes of the next run are fetched ahead."""
    firsts = range(number * SHARDS_AT_ONCE, len(shards), processes * SHARDS_AT_ONCE)
    for first in firsts:
        run = list(shards[first : first + SHARDS_AT_ONCE])
        ahead = first + firsts.step
        shard_set.prefetch_indexes([*run, *shards[ahead : ahead + SHARDS_AT_ONCE]])
        documents = sum(shard.documents for shard in run)
        yield _Run(first, count_rows(shard_set, run, config), documents)


def _counted_by_processes(
    shard_set: ShardSet, shards: Sequence[Shard], config: PlanConfig, processes: int
) -> Iterator[_Run]:
    """Count all runs by processes, which end with this generator or this process."""
    workers: dict[Connection, BaseProcess] = {}
    try:
        for number in range(processes):
            own, theirs = multiprocessing.Pipe()
            process = multiprocessing.get_context("fork").Process(
                target=_work,
                args=(shard_set, shards, config, number, processes, theirs, [own, *workers]),
                daemon=True,
            )
            process.start()
            theirs.close()
            workers[own] = process
        left = dict(workers)
        while left:
            for connection in wait(list(left)):
                assert isinstance(connection, Connection)
                try:
                    message = connection.recv()
                except EOFError:
                    _check_ending(left.pop(connection))
                    continue
                if isinstance(message, Exception):
                    raise message
                yield message
    finally:
        for connection, worker in workers.items():
            worker.kill()
            worker.join()
            connection.close()


def _check_ending(process: BaseProcess) -> None:
    """Raise RuntimeError where a process that has closed its connection did not end well."""
    process.join()
    if process.exitcode:
        raise RuntimeError(
            f"process {process.pid}, which counted rows, ended with status {process.exitcode}: "
            "-9 is SIGKILL, which the kernel also sends where memory is exhausted"
        )


def _work(
    shard_set: ShardSet,
    shards: Sequence[Shard],
    config: PlanConfig,
    number: int,
    processes: int,
    connection: Connection,
    inherited: Sequence[Connection],
) -> None:
    """Count the runs of a process, and send each; what fails is sent in its place."""
    for other in inherited:
        other.close()
    signals.ignore_in_worker()
    threading.Thread(target=_exit_when_closed, args=(connection,), daemon=True).start()
    try:
        for run in _count_runs(shard_set, shards, config, number, processes):
            connection.send(run)
    except Exception as error:
        connection.send(error)


def _exit_when_closed(connection: Connection) -> None:
    """End this process when the parent ends; it never sends anything."""
    with suppress(OSError, EOFError):
        connection.recv()
    os._exit(0)


def _empty_split(shard_set: ShardSet, split: str) -> str:
    """Why a split without documents cannot be read, and what to do."""
    counts = {name: shard_set.counts(name).documents for name in SPLITS}
    others = " and ".join(f"{n} in {name}" for name, n in counts.items() if n) or "none at all"
    return (
        f"{shard_set.location} has no documents in split {split!r}, and {others}: prepare it from "
        f"more files, or from files in folders train/ and {split if split != 'train' else 'val'}/"
    )

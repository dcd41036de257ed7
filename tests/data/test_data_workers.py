"""Data workers: what happens where one fails, is stopped, never begins, or is no longer wanted."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections import deque
from collections.abc import Iterator, Sequence
from pathlib import Path

import pytest
import torch
from helpers.processes import wait_until_gone
from helpers.sets import SetMaker, text

from bytelm.pipelines.data import data_workers
from bytelm.pipelines.data.batch import Batch
from bytelm.pipelines.data.data_workers import StopWaitingError, WorkerBatches
from bytelm.pipelines.data.packing import PlanConfig
from bytelm.pipelines.data.plan import Plan, Source
from bytelm.pipelines.data.row_dataset import RowDataset
from bytelm.pipelines.errors import DamageError

VIEWS = {"text": "utf8", "image": "raster", "audio": "s16le"}
Positions = Sequence[tuple[int, int] | None]


@pytest.fixture
def dataset(make_set: SetMaker) -> RowDataset:
    shard_set = make_set([[text(b"call me ishmael " * 16)] for _ in range(12)])
    return RowDataset(Plan([Source(shard_set)], PlanConfig(256, 8, VIEWS)))


@pytest.fixture
def endless() -> Iterator[Positions]:
    return iter(lambda: [(0, 0)], None)


def pids(batches: WorkerBatches) -> list[int]:
    return [worker.process.pid or 0 for worker in batches._workers]


@pytest.mark.parametrize("workers", [1, 3])
def test_workers_deliver_what_the_dataset_reads_and_then_end(
    dataset: RowDataset, workers: int
) -> None:
    rows = [[(0, row)] for row in range(dataset.plan.rows(0))]
    batches = WorkerBatches(dataset, rows, workers, prefetch=2)
    started = pids(batches)
    delivered = list(batches)
    assert len(delivered) == len(rows)
    for batch, positions in zip(delivered, rows, strict=True):
        expected = dataset.__getitems__(positions)
        assert isinstance(batch, Batch)
        assert torch.equal(batch.ids, expected.ids)
        assert torch.equal(batch.role, expected.role)
        assert batch.origins == expected.origins
    wait_until_gone(set(started), 60)
    assert list(batches) == []


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGUSR2])
def test_a_worker_that_dies_is_named_with_its_signal(
    dataset: RowDataset, endless: Iterator[Positions], number: signal.Signals
) -> None:
    batches = WorkerBatches(dataset, endless, 2, prefetch=1)
    next(batches)
    victim = pids(batches)[1]
    os.kill(victim, number)
    with pytest.raises(RuntimeError, match=rf"worker 1 \(process {victim}\) .*{number.name}"):
        deque(batches, maxlen=0)


def test_a_stopped_worker_ends_the_wait_and_is_removed(
    dataset: RowDataset, endless: Iterator[Positions], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(data_workers, "STOPPED_SECONDS", 0.5)
    batches = WorkerBatches(dataset, endless, 1, prefetch=1)
    next(batches)
    (victim,) = pids(batches)
    os.kill(victim, signal.SIGSTOP)
    with pytest.raises(RuntimeError, match="which is stopped, has not delivered the next batch"):
        deque(batches, maxlen=0)
    wait_until_gone({victim}, 60)


class NeverRead(RowDataset):
    def __getitems__(self, positions: Positions) -> Batch:
        time.sleep(9999)
        raise AssertionError


def test_a_worker_that_delivers_nothing_ends_the_wait_in_time(
    dataset: RowDataset, endless: Iterator[Positions]
) -> None:
    batches = WorkerBatches(NeverRead(dataset.plan), endless, 1, prefetch=1, timeout=0.5)
    started = pids(batches)
    with pytest.raises(RuntimeError, match=r"worker 0 .* has not delivered its first batch"):
        next(batches)
    wait_until_gone(set(started), 60)


def test_a_request_to_stop_is_heard_while_a_batch_is_waited_for(
    dataset: RowDataset, endless: Iterator[Positions]
) -> None:
    batches = WorkerBatches(
        NeverRead(dataset.plan), endless, 1, prefetch=1, should_stop=lambda: True
    )
    with pytest.raises(StopWaitingError, match=r"worker 0 \(process \d+\)"):
        next(batches)
    batches.close()


class Damaged(RowDataset):
    def __getitems__(self, positions: Positions) -> Batch:
        raise DamageError("train-000000.tar: document 7 does not match")


class Unpicklable(Exception):
    def __init__(self, one: str, two: str):
        super().__init__(f"{one} {two}")


class Unforeseen(RowDataset):
    def __getitems__(self, positions: Positions) -> Batch:
        raise Unpicklable("out", "of range")


def test_what_a_worker_raises_is_raised_with_its_traceback(
    dataset: RowDataset, endless: Iterator[Positions]
) -> None:
    with pytest.raises(DamageError, match=r"^train-000000\.tar: document 7") as error:
        next(WorkerBatches(Damaged(dataset.plan), endless, 2, prefetch=1))
    assert "in __getitems__" in error.value.__notes__[0]
    with pytest.raises(RuntimeError, match="Unpicklable: out of range"):
        next(WorkerBatches(Unforeseen(dataset.plan), endless, 1, prefetch=1))


def test_batches_that_nobody_takes_any_more_end_their_workers(
    dataset: RowDataset, endless: Iterator[Positions]
) -> None:
    batches = WorkerBatches(dataset, endless, 2, prefetch=4)
    next(batches)
    started = set(pids(batches))
    del batches
    wait_until_gone(started, 60)


def test_a_process_ends_though_its_worker_is_stopped(dataset: RowDataset, tmp_path: Path) -> None:
    """At its exit multiprocessing waits for every process that it has started."""
    code = f"""
import os, signal
from bytelm.pipelines.data.data_workers import WorkerBatches
from bytelm.pipelines.data.packing import PlanConfig
from bytelm.pipelines.data.plan import Plan, Source
from bytelm.pipelines.data.row_dataset import RowDataset
from bytelm.pipelines.shards.reader import ShardSet
shards = ShardSet({str(dataset.plan.sources[0].set.location)!r})
dataset = RowDataset(Plan([Source(shards)], PlanConfig(256, 8, {VIEWS})))
batches = WorkerBatches(dataset, [[(0, 0)]] * 99, 1, 1)
next(batches)
pid = batches._workers[0].process.pid
os.kill(pid, signal.SIGSTOP)
print(pid)
"""
    ended = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, timeout=120, check=True
    )
    wait_until_gone({int(ended.stdout)}, 60)


def test_neither_the_length_of_tmpdir_nor_shared_memory_matters(
    dataset: RowDataset, endless: Iterator[Positions], monkeypatch: pytest.MonkeyPatch
) -> None:
    """A socket's path may have 107 bytes; the sockets here have none."""
    monkeypatch.setenv("TMPDIR", "/" + "a_long_scratch_folder" * 6)
    batches = WorkerBatches(dataset, endless, 1, prefetch=2)
    batch = next(batches)
    assert not batch.ids.is_shared()
    batches.close()

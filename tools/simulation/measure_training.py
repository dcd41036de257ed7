"""Measures `TrainingCosts` with the project's own code, on generated sets and two local ranks.

Processor time is measured, but for requests, collectives and the start of ranks, which wait.
"""

from __future__ import annotations

import os
import tempfile
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import NamedTuple
from unittest.mock import patch

import numpy as np
import torch
import torch.distributed as dist
import torch.multiprocessing

from bytelm.modalities.base import Header, Sample
from bytelm.pipelines.checkpoints.manifest import file_entry
from bytelm.pipelines.config import ViewsConfig
from bytelm.pipelines.data.packing import PlanConfig
from bytelm.pipelines.data.plan import Plan, Source
from bytelm.pipelines.data.row_dataset import RowDataset
from bytelm.pipelines.runtime.launcher import free_port
from bytelm.pipelines.shards.format import Shard
from bytelm.pipelines.shards.manifest import PART_SHARDS
from bytelm.pipelines.shards.reader import ShardSet
from bytelm.pipelines.shards.writer import ShardWriter, write_set_manifest
from bytelm.pipelines.storage.destination import open_destination
from bytelm.pipelines.training.engine import join_process_group
from bytelm.pipelines.training.state_copy import copied_to_memory, write_state_file
from bytelm.tools.benchmarks.measure import processor_seconds_of, seconds_of
from bytelm.tools.repository import DEMO_FILES
from bytelm.tools.simulation.costs import TrainingCosts

ROW_LENGTH, PATCH = 8192, 16
BATCH_ROWS = 4
JOIN_SECONDS = 120.0


class TrainingAmounts(NamedTuple):
    """How much is measured."""

    shards: int = 20
    shard_documents: int = 1000
    document_bytes: int = 4000
    rows: int = 500
    """Random rows that are found."""
    batches: int = 200
    manifest_shards: int = 3 * PART_SHARDS
    stats: int = 20_000
    state_bytes: int = 400_000_000
    upload_bytes: int = 268_000_000
    requests: int = 50
    collectives: int = 200


def measure_training(amounts: TrainingAmounts) -> TrainingCosts:
    """Measure all costs of reading sets and of training, in a temporary folder."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        open_seconds, part_seconds = _measure_manifest(folder / "large", amounts.manifest_shards)
        count_seconds, row_seconds, batch_speed = _measure_rows(folder / "set", amounts)
        upload_speed, request_seconds = _measure_upload(folder, amounts)
        copy_speed, write_speed = _measure_checkpoint(folder, amounts.state_bytes)
        join_seconds, collective_seconds = _measure_ranks(folder, amounts.collectives)
        stats = range(amounts.stats)
        return TrainingCosts(
            open_seconds=open_seconds,
            manifest_part_seconds=part_seconds,
            stat_seconds=processor_seconds_of(lambda: [os.stat(folder) for _ in stats])
            / amounts.stats,
            count_document_seconds=count_seconds,
            row_seconds=row_seconds,
            batch_bytes_per_second=batch_speed,
            upload_bytes_per_second=upload_speed,
            request_seconds=request_seconds,
            copy_bytes_per_second=copy_speed,
            checkpoint_write_bytes_per_second=write_speed,
            join_seconds=join_seconds,
            collective_seconds=collective_seconds,
        )


def _measure_manifest(folder: Path, count: int) -> tuple[float, float]:
    """Seconds to open a set, and to load a part of its manifest."""
    folder.mkdir()
    digest = "0" * 64
    shards = [
        Shard(f"train-{n:06d}.tar", "train", 1, digest, 1, digest, 1, {}) for n in range(count)
    ]
    write_set_manifest(folder, shards, {})
    opening = processor_seconds_of(lambda: ShardSet(folder))
    shard_set = ShardSet(folder)
    firsts = range(0, count, PART_SHARDS)
    return opening, processor_seconds_of(lambda: [shard_set.shards[n] for n in firsts]) / len(
        firsts
    )


def _measure_rows(folder: Path, amounts: TrainingAmounts) -> tuple[float, float, float]:
    """Seconds to count a document's rows and to find a random row; bytes per second of batches."""
    shard_set = _write_set(folder, amounts)
    config = PlanConfig(ROW_LENGTH, PATCH, vars(ViewsConfig()))
    counting = processor_seconds_of(lambda: Plan([Source(shard_set)], config))
    plan = Plan([Source(ShardSet(folder))], config)
    rows = np.random.default_rng(1).integers(0, plan.rows(0), amounts.rows).tolist()
    finding = processor_seconds_of(lambda: [plan.row(0, row) for row in rows]) / amounts.rows
    dataset = RowDataset(plan, codec_patch=PATCH)
    batches = [
        [(0, row % plan.rows(0)) for row in range(first, first + BATCH_ROWS)]
        for first in range(0, amounts.batches * BATCH_ROWS, BATCH_ROWS)
    ]
    dataset.__getitems__(batches[0])
    reading = processor_seconds_of(lambda: [dataset.__getitems__(batch) for batch in batches])
    speed = amounts.batches * BATCH_ROWS * ROW_LENGTH / reading
    return counting / (amounts.shards * amounts.shard_documents), finding, speed


def _write_set(folder: Path, amounts: TrainingAmounts) -> ShardSet:
    """A set of the demo's texts, cut to documents of one size."""
    folder.mkdir()
    texts = sorted(path for path in DEMO_FILES.glob("text/train/*") if path.is_file())
    data = b"".join(path.read_bytes() for path in texts)
    shards = []
    for number in range(amounts.shards):
        writer = ShardWriter(folder, "train", number)
        for document in range(amounts.shard_documents):
            first = 997 * (number * amounts.shard_documents + document)
            first %= len(data) - amounts.document_bytes
            text = data[first : first + amounts.document_bytes]
            sample = Sample("text", Header(), text)
            writer.add(f"text-{number}-{document}", ["text.txt"], [sample])
        shards.append(writer.close())
    write_set_manifest(folder, shards, {})
    return ShardSet(folder)


def _measure_upload(folder: Path, amounts: TrainingAmounts) -> tuple[float, float]:
    """Bytes per second of one upload to a local S3 server, and seconds of a small request."""
    path = folder / "upload"
    path.write_bytes(bytes(amounts.upload_bytes))
    with _local_s3() as bucket, open_destination(f"{bucket}/set") as destination:
        destination.write("first", b"")
        speed = amounts.upload_bytes / processor_seconds_of(
            lambda: destination.upload(path, "large")
        )
        numbers = range(amounts.requests)
        requests = seconds_of(lambda: [destination.write(f"small-{n}", b"") for n in numbers])
    path.unlink()
    return speed, requests / amounts.requests


@contextmanager
def _local_s3() -> Iterator[str]:
    """The URL of an empty bucket of a server of moto in this process."""
    import fsspec  # type: ignore[import-untyped]  # it has no types
    from moto.server import DomainDispatcherApplication, create_backend_app
    from werkzeug.serving import WSGIRequestHandler, make_server

    class Quiet(WSGIRequestHandler):
        def log(self, *_: object) -> None:
            """Print nothing."""

    app = DomainDispatcherApplication(create_backend_app)
    server = make_server("127.0.0.1", 0, app, threaded=True, request_handler=Quiet)
    thread = threading.Thread(target=server.serve_forever, args=(0.05,))
    thread.start()
    variables = {
        "AWS_ENDPOINT_URL": f"http://127.0.0.1:{server.server_port}",
        "AWS_ACCESS_KEY_ID": "test",
        "AWS_SECRET_ACCESS_KEY": "test",
        "AWS_DEFAULT_REGION": "us-east-1",
    }
    try:
        with patch.dict(os.environ, variables):
            client = fsspec.filesystem("s3", skip_instance_cache=True)
            client.mkdir("simulation")
            yield "s3://simulation"
            client.rm("simulation", recursive=True)
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


def _measure_checkpoint(folder: Path, size: int) -> tuple[float, float]:
    """Bytes per second of copying a state to memory, and of writing and hashing its file."""
    state = {str(n): torch.ones(size // 40) for n in range(10)}
    copying = processor_seconds_of(lambda: copied_to_memory(state))
    path = folder / "state.pt"

    def write() -> None:
        write_state_file(state, path, threading.Event())
        file_entry(path)

    writing = processor_seconds_of(write)
    path.unlink()
    return size / copying, size / writing


def _measure_ranks(folder: Path, collectives: int) -> tuple[float, float]:
    """Seconds until two new processes have joined, and of a sum over both."""
    result = folder / "collective"

    def join() -> None:
        torch.multiprocessing.spawn(_join, (free_port(), collectives, str(result)), 2)

    total = seconds_of(join)
    each = float(result.read_text())
    return total - collectives * each, each


def _join(rank: int, port: int, collectives: int, result: str) -> None:
    """Join two ranks, and write the seconds of a sum over both."""
    os.environ.update(RANK=str(rank), WORLD_SIZE="2", LOCAL_RANK=str(rank))
    os.environ.update(MASTER_ADDR="127.0.0.1", MASTER_PORT=str(port), GLOO_SOCKET_IFNAME="lo")
    torch.set_num_threads(1)
    join_process_group(JOIN_SECONDS)
    values = torch.zeros(3, dtype=torch.int64)
    dist.all_reduce(values)
    seconds = seconds_of(lambda: [dist.all_reduce(values) for _ in range(collectives)])
    dist.barrier()
    dist.destroy_process_group()
    if rank == 0:
        Path(result).write_text(str(seconds / collectives))

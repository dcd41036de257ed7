"""At ZeRO 3 no rank ever holds the whole model, and the run is that of ZeRO 0."""

from __future__ import annotations

import json
import os
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing
from helpers.commands import write_config
from helpers.sets import SetMaker, text

from bytelm.pipelines.config import RunConfig, load_config
from bytelm.pipelines.data.batch import Batch
from bytelm.pipelines.data.loader import make_loader
from bytelm.pipelines.data.samplers import TrainingRows
from bytelm.pipelines.runtime.launcher import free_port
from bytelm.pipelines.training.engine import Engine, join_process_group
from bytelm.pipelines.training.preflight import training_plan
from bytelm.pipelines.training.sharded_model import make_model

RANKS = 2
MODEL = {
    "stages": [{"width": 512, "layers": 10, "heads": 8}, {"width": 256, "layers": 5, "heads": 4}],
    "patch_sizes": [8],
    "context": 64,
}
"""36 million parameters in small matrices, and short rows."""
ZERO_3 = {
    "stage": 3,
    "sub_group_size": 4_000_000,
    "reduce_bucket_size": 1_000_000,
    "stage3_prefetch_bucket_size": 1_000_000,
    "stage3_max_live_parameters": 5_000_000,
    "stage3_max_reuse_distance": 0,
}
"""A rank gathers little at once: by default up to 10^9 weights stay gathered."""


class Peak:
    """Anonymous memory of this process beyond what it had before, in bytes."""

    grown = 0


@contextmanager
def watched_memory() -> Iterator[Peak]:
    """Look at the memory of this process every millisecond, and keep the largest growth."""
    peak, before, done = Peak(), anonymous_bytes(), threading.Event()

    def watch() -> None:
        while not done.wait(0.001):
            peak.grown = max(peak.grown, anonymous_bytes() - before)

    watcher = threading.Thread(target=watch)
    watcher.start()
    try:
        yield peak
    finally:
        done.set()
        watcher.join()


def anonymous_bytes() -> int:
    status = Path("/proc/self/status").read_text()
    (line,) = (line for line in status.splitlines() if line.startswith("RssAnon:"))
    return 1024 * int(line.split()[1])


def micro_batches(config: RunConfig, rank: int, folder: Path) -> list[Batch]:
    """One micro batch of each step on a rank."""
    plan = training_plan(config, folder / f"plan-{os.getpid()}.npz")
    rows = TrainingRows(plan, (0, 0), 1, 1, rank, RANKS)
    batches = iter(make_loader(plan, rows, 0))
    return [next(batches) for _ in range(config.train.steps)]


def train(engine: Engine, batches: list[Batch]) -> list[float]:
    steps = len(batches)
    return [engine.train_step(step, steps, [batch]).loss for step, batch in enumerate(batches)]


def train_at_both_stages(rank: int, port: int, path: Path, folder: Path) -> None:
    os.environ.update(RANK=str(rank), WORLD_SIZE=str(RANKS), LOCAL_RANK=str(rank))
    os.environ.update(MASTER_ADDR="127.0.0.1", MASTER_PORT=str(port), GLOO_SOCKET_IFNAME="lo")
    torch.set_num_threads(1)
    join_process_group(120.0)
    config = load_config(path, [f"train.deepspeed={folder / 'zero3.json'}"])
    batches = micro_batches(config, rank, folder)
    small = tuple(replace(stage, layers=1) for stage in config.model.stages)
    warm_up = replace(config, model=replace(config.model, stages=small))
    train(Engine(make_model(warm_up), warm_up), batches)  # loads the libraries

    torch.manual_seed(0)
    with watched_memory() as trained:
        with watched_memory() as made:
            model = make_model(config)
        weights = sum(p.ds_numel for p in model.parameters())
        losses = train(Engine(model, config), batches)
    unsharded = replace(config, train=replace(config.train, deepspeed="zero0"))
    torch.manual_seed(0)
    expected = train(Engine(make_model(unsharded), unsharded), batches)
    result = {
        "losses": losses,
        "expected": expected,
        "made": made.grown / (4 * weights),
        "trained": trained.grown / (4 * weights),
    }
    (folder / f"rank-{rank}.json").write_text(json.dumps(result))
    dist.barrier()
    dist.destroy_process_group()  # or its threads sometimes abort the process


def test_no_rank_holds_the_whole_model_at_zero_3(
    make_set: SetMaker, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Memory is measured in fp32 copies of the model. A step at ZeRO 0 needs four of them: weights,
    gradients and AdamW's two moments. One of two ranks at ZeRO 3 needs half of that, and half a
    copy of the weights that the optimizer updates."""
    # The kernel gets freed memory back at once, so that what is resident is what is in use.
    monkeypatch.setenv("MALLOC_MMAP_THRESHOLD_", "65536")
    monkeypatch.setenv("MALLOC_TRIM_THRESHOLD_", "65536")
    shard_set = make_set([[text(bytes([65 + i]) * 300)] for i in range(4)])
    (tmp_path / "zero3.json").write_text(json.dumps({"zero_optimization": ZERO_3}))
    path = write_config(tmp_path / "run.yaml", shard_set, MODEL, steps=2, global_batch=RANKS)
    path.write_text(path.read_text().replace("optimizer:", "optimizer:\n  name: adamw"))
    torch.multiprocessing.spawn(train_at_both_stages, (free_port(), path, tmp_path), RANKS)
    for rank in range(RANKS):
        result = json.loads((tmp_path / f"rank-{rank}.json").read_text())
        assert result["losses"] == pytest.approx(result["expected"], abs=1e-5)
        assert result["made"] < 0.6
        assert result["trained"] < 3.0

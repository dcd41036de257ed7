"""Offload to the CPU changes no loss of AdamW; `test_train` has that of Muon."""

from __future__ import annotations

import json
from itertools import islice
from pathlib import Path

import pytest
import torch
from helpers.commands import write_config
from helpers.ranks import run_ranks

from bytelm.pipelines.config import load_config
from bytelm.pipelines.data.loader import make_loader
from bytelm.pipelines.data.samplers import TrainingRows
from bytelm.pipelines.shards.reader import ShardSet
from bytelm.pipelines.training.engine import Engine
from bytelm.pipelines.training.preflight import training_plan
from bytelm.pipelines.training.sharded_model import make_model

RANKS = 2
STEPS = 3
CASES = ["zero2", "zero2_offload", "zero3_offload"]


def train_every_case(rank: int, path: Path, folder: Path) -> None:
    plan = training_plan(load_config(path, []))
    loader = make_loader(plan, TrainingRows(plan, (0, 0), 1, 1, rank, RANKS), 0)
    batches = list(islice(loader, STEPS))
    results = []
    for case in CASES:
        config = load_config(path, [f"train.deepspeed={case}", "optimizer.name=adamw"])
        torch.manual_seed(0)
        engine = Engine(make_model(config), config)
        results.append([engine.train_step(s, STEPS, [b]).loss for s, b in enumerate(batches)])
    (folder / f"rank-{rank}.json").write_text(json.dumps(results))


def test_offload_changes_no_loss(mixed_set: ShardSet, tmp_path: Path) -> None:
    path = write_config(tmp_path / "run.yaml", mixed_set, steps=STEPS, global_batch=RANKS)
    run_ranks(train_every_case, RANKS, path, tmp_path)
    results = json.loads((tmp_path / "rank-0.json").read_text())
    assert results[0][-1] != results[0][0]
    for losses in results[1:]:
        assert losses == pytest.approx(results[0], abs=1e-6)

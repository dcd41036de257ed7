"""At ZeRO 3 no rank ever holds the whole model, and the run is that of ZeRO 0."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from helpers.commands import write_config
from helpers.ranks import RETURN_MEMORY, run_ranks, watched_memory
from helpers.sets import SetMaker, text

from bytelm.pipelines.config import RunConfig, load_config
from bytelm.pipelines.data.batch import Batch
from bytelm.pipelines.data.loader import make_loader
from bytelm.pipelines.data.samplers import TrainingRows
from bytelm.pipelines.training.engine import Engine
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


def micro_batches(config: RunConfig, rank: int) -> list[Batch]:
    """One micro batch of each step on a rank."""
    plan = training_plan(config)
    rows = TrainingRows(plan, (0, 0), 1, 1, rank, RANKS)
    batches = iter(make_loader(plan, rows, 0))
    return [next(batches) for _ in range(config.train.steps)]


def train(engine: Engine, batches: list[Batch]) -> list[float]:
    steps = len(batches)
    return [engine.train_step(step, steps, [batch]).loss for step, batch in enumerate(batches)]


def train_at_both_stages(rank: int, path: Path, folder: Path) -> None:
    config = load_config(path, [f"train.deepspeed={folder / 'zero3.json'}"])
    batches = micro_batches(config, rank)
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
        "made": made.peak / (4 * weights),
        "trained": trained.peak / (4 * weights),
    }
    (folder / f"rank-{rank}.json").write_text(json.dumps(result))


def test_no_rank_holds_the_whole_model_at_zero_3(
    make_set: SetMaker, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Memory is measured in fp32 copies of the model. A step at ZeRO 0 needs four of them: weights,
    gradients and AdamW's two moments. One of two ranks at ZeRO 3 needs half of that, and half a
    copy of the weights that the optimizer updates."""
    for name, value in RETURN_MEMORY.items():
        monkeypatch.setenv(name, value)
    shard_set = make_set([[text(bytes([65 + i]) * 300)] for i in range(4)])
    (tmp_path / "zero3.json").write_text(json.dumps({"zero_optimization": ZERO_3}))
    path = write_config(tmp_path / "run.yaml", shard_set, MODEL, steps=2, global_batch=RANKS)
    path.write_text(path.read_text().replace("optimizer:", "optimizer:\n  name: adamw"))
    run_ranks(train_at_both_stages, RANKS, path, tmp_path)
    for rank in range(RANKS):
        result = json.loads((tmp_path / f"rank-{rank}.json").read_text())
        assert result["losses"] == pytest.approx(result["expected"], abs=1e-5)
        assert result["made"] < 0.6
        assert result["trained"] < 3.0

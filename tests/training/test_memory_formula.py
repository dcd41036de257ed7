"""The memory by formula is what the steps of two real ranks take at each ZeRO stage."""

from __future__ import annotations

import gc
import json
from pathlib import Path

import pytest
from helpers.commands import write_config
from helpers.ranks import RETURN_MEMORY, run_ranks, watched_memory
from helpers.sets import SetMaker, text

from bytelm.pipelines.config import load_config
from bytelm.pipelines.data.loader import make_loader
from bytelm.pipelines.data.samplers import TrainingRows
from bytelm.pipelines.training.deepspeed_config import has_offload
from bytelm.pipelines.training.engine import Engine
from bytelm.pipelines.training.memory import memory_by_zero_stage
from bytelm.pipelines.training.preflight import training_plan
from bytelm.pipelines.training.sharded_model import make_model

RANKS = 2
MODEL = {
    "stages": [{"width": 384, "layers": 5, "heads": 6}, {"width": 192, "layers": 2, "heads": 3}],
    "patch_sizes": [8],
    "context": 64,
}
"""10 million parameters, and so few activations that weights, gradients and optimizer decide."""
Case = tuple[str, str]
"""A case of `ds_configs`, and an optimizer."""
SHORT: list[Case] = [("zero1", "muon"), ("zero0", "adamw"), ("zero2", "adamw"), ("zero3", "muon")]
LONG: list[Case] = [
    ("zero1", "adamw"),
    ("zero0", "muon"),
    ("zero2", "muon"),
    ("zero3", "adamw"),
    ("zero2_offload", "adamw"),
    ("zero3_offload", "adamw"),
]


def measure_every_case(rank: int, path: Path, folder: Path, cases: list[Case]) -> None:
    plan = training_plan(load_config(path, []))
    batch = next(iter(make_loader(plan, TrainingRows(plan, (0, 0), 1, 1, rank, RANKS), 0)))
    ratios = []
    for deepspeed, optimizer in [cases[0], *cases]:  # the first one loads libraries
        changes = [f"train.deepspeed={deepspeed}", f"optimizer.name={optimizer}"]
        config = load_config(path, changes)
        with watched_memory() as memory:
            engine = Engine(make_model(config), config)
            for step in range(2):
                engine.train_step(step, 2, [batch])
        offload = has_offload(deepspeed)
        formula = memory_by_zero_stage(config, RANKS, offload=offload)[engine.zero_stage]
        ratios.append((formula.peak() + formula.host) / memory.peak)
        engine._engine.destroy()
        del engine
        gc.collect()
    (folder / f"rank-{rank}.json").write_text(json.dumps(ratios[1:]))


@pytest.mark.parametrize("cases", [SHORT, pytest.param(LONG, marks=pytest.mark.long)])
def test_the_formula_is_what_a_step_takes(
    cases: list[Case], make_set: SetMaker, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """At every stage and with offload (on a CPU it moves nothing away), for both optimizers."""
    for name, value in RETURN_MEMORY.items():
        monkeypatch.setenv(name, value)
    shard_set = make_set([[text(b"a text" * 50)] for _ in range(4)])
    path = write_config(tmp_path / "run.yaml", shard_set, MODEL, steps=2, global_batch=RANKS)
    run_ranks(measure_every_case, RANKS, path, tmp_path, cases)
    ratios = json.loads((tmp_path / "rank-0.json").read_text())
    for case, ratio in zip(cases, ratios, strict=True):
        assert ratio == pytest.approx(1, abs=0.15), case

"""A run continues with other ranks and at another ZeRO stage as if nothing had changed."""

from __future__ import annotations

import shutil
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
import torch
from helpers.commands import bytelm, metrics, write_config
from helpers.ranks import run_ranks

from bytelm.pipelines.checkpoints.manifest import DEEPSPEED_FOLDER
from bytelm.pipelines.config import load_config, plural
from bytelm.pipelines.shards.reader import ShardSet
from bytelm.pipelines.training.engine import Engine
from bytelm.pipelines.training.optimizer import make_optimizer
from bytelm.pipelines.training.reshard import SavedTensors, parameter_names
from bytelm.pipelines.training.sharded_model import make_model

LONG = pytest.mark.long
STEPS = 50
Part = tuple[int, int]
"""Number of ranks, and ZeRO stage, of a part of a run."""


@pytest.mark.parametrize(
    ("optimizer", "parts"),
    [
        ("muon", [(2, 1), (1, 1), (2, 3)]),
        pytest.param("muon", [(2, 1), (1, 1), (2, 1)], marks=LONG),
        pytest.param("muon", [(2, 3), (1, 3), (2, 3)], marks=LONG),
        pytest.param("muon", [(1, 3), (2, 0), (1, 2), (2, 1)], marks=LONG),
        pytest.param("adamw", [(2, 1), (1, 1), (2, 1)], marks=LONG),
        pytest.param("adamw", [(1, 1), (1, 3)], marks=LONG),
        pytest.param("adamw", [(2, 2), (1, 0), (2, 3)], marks=LONG),
    ],
)
def test_a_run_goes_on_with_other_ranks_and_stages(
    mixed_set: ShardSet, tmp_path: Path, optimizer: str, parts: list[Part]
) -> None:
    """Each part resumes from a checkpoint of the previous one. The losses are those of the unbroken
    run, which has the ranks and the stage of the first part."""
    config = write_config(
        tmp_path / "run.yaml",
        mixed_set,
        steps=STEPS,
        global_batch=2,
        checkpoint_every=STEPS // 5,
        keep_last=5,
    )
    run = tmp_path / "run"
    expected: list[float] = []
    for number, (ranks, stage) in enumerate(parts):
        options = ("--processes", ranks, "--set", f"train.deepspeed=zero{stage}")
        resume = ("--resume",) if number else ()
        chosen = ("--set", f"optimizer.name={optimizer}")
        stdout = bytelm("train", config, "--out", run, *options, *chosen, *resume).stdout
        losses = [line["loss"] for line in metrics(run)]
        expected = expected or losses
        assert len(losses) == STEPS
        assert losses == pytest.approx(expected, abs=1e-5)
        if number:
            processes, zero_stage = parts[number - 1]
            message = f"written by {plural(processes, 'process', 'processes')} at ZeRO {zero_stage}"
            assert (message in stdout) == (parts[number] != parts[number - 1])
        for folder in sorted((run / "checkpoints").glob("step-*"))[number + 1 :]:
            shutil.rmtree(folder)


def load_and_save(rank: int, config: Path, optimizer: str, parts: list[Part], folders: Any) -> None:
    """Load the checkpoint of the first part into an engine of the second one, and save it."""
    (ranks, stage), (_, new_stage) = parts
    overrides = [f"train.deepspeed=zero{new_stage}", f"optimizer.name={optimizer}"]
    chosen = load_config(config, overrides)
    engine = Engine(make_model(chosen), chosen)
    engine.load(folders[0], ranks, stage)

    def write(content: dict[str, Any], path: Path) -> None:
        path.parent.mkdir(parents=True, exist_ok=True)
        torch.save(content, path)

    engine.save(folders[1], write)


@pytest.mark.long
@pytest.mark.parametrize("optimizer", ["muon", "adamw"])
def test_other_ranks_and_stages_take_weights_and_optimizer_state_to_the_last_bit(
    mixed_set: ShardSet, tmp_path: Path, optimizer: str
) -> None:
    """The state is loaded and saved again by each part, without a step."""
    config = write_config(
        tmp_path / "run.yaml", mixed_set, steps=4, global_batch=2, checkpoint_every=4
    )
    parts = [(2, 1), (1, 1), (2, 3), (1, 0), (2, 2), (2, 1)]
    chosen = ("--set", "train.deepspeed=zero1", "--set", f"optimizer.name={optimizer}")
    bytelm("train", config, "--out", tmp_path / "run", "--processes", 2, *chosen)
    folder = tmp_path / "run" / "checkpoints" / "step-00000004"
    options = load_config(config, [f"optimizer.name={optimizer}"])
    model = make_model(options)
    names = parameter_names(make_optimizer(model, options.optimizer, "fp32"), model)
    first = SavedTensors(folder / DEEPSPEED_FOLDER, *parts[0], names)
    assert all(len(first.keys(name)) > 1 for name in names)
    for number, (before, part) in enumerate(pairwise(parts)):
        target = tmp_path / f"again-{number}"
        run_ranks(load_and_save, part[0], config, optimizer, [before, part], (folder, target))
        folder = target
        saved = SavedTensors(folder / DEEPSPEED_FOLDER, *part, names)
        for name in names:
            assert saved.keys(name) == first.keys(name)
            assert saved.scalars(name) == first.scalars(name)
            for key in saved.keys(name):
                assert torch.equal(saved.tensor(name, key), first.tensor(name, key)), (part, name)

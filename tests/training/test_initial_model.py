"""`train.initial_model`: a run that begins with the weights of another."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from helpers.commands import TINY_MODEL, bytelm, metrics, write_config
from torch import Tensor

from bytelm.model.config import ModelConfig
from bytelm.model.megabyte import Megabyte
from bytelm.pipelines.checkpoints.pretrained import from_pretrained, save_pretrained
from bytelm.pipelines.config import RunConfig, load_config
from bytelm.pipelines.shards.reader import ShardSet
from bytelm.pipelines.training.initial_weights import copy_weights, load_initial_model


@pytest.fixture
def initial(tmp_path: Path) -> Path:
    """An exported model of the shape of TINY_MODEL, with weights that no run draws."""
    torch.manual_seed(7)
    model = Megabyte(ModelConfig.from_dict(TINY_MODEL))
    save_pretrained(model, model.config, tmp_path / "initial", {"views": {}})
    return tmp_path / "initial"


def config_of(tmp_path: Path, mixed_set: ShardSet, initial: Path, *changes: str) -> RunConfig:
    path = write_config(tmp_path / "run.yaml", mixed_set, steps=1, initial_model=str(initial))
    return load_config(path, list(changes))


def position_table(model: Megabyte) -> Tensor:
    table = model.stages[0].position_embed
    assert table is not None
    return table.weight.detach()


@pytest.mark.parametrize(("deepspeed", "processes"), [("zero1", 1), ("zero3", 2)])
def test_a_run_begins_with_the_weights_of_another_model(
    mixed_set: ShardSet, initial: Path, tmp_path: Path, deepspeed: str, processes: int
) -> None:
    """Steps of 1e-30 leave the weights as they were, but for zeros."""
    sizes = {"steps": 2, "global_batch": 2, "initial_model": str(initial), "deepspeed": deepspeed}
    config = write_config(tmp_path / "run.yaml", mixed_set, **sizes)
    rates = ("--set", "optimizer.lr=1e-30", "--set", "optimizer.muon_lr=1e-30")
    run = tmp_path / "run"
    bytelm("train", config, "--out", run, "--processes", processes, *rates)
    expected = from_pretrained(initial)[0].state_dict()
    trained = from_pretrained(run / "checkpoints" / "step-00000002" / "model")[0].state_dict()
    torch.testing.assert_close(trained, expected, rtol=0.0, atol=1e-20)


def test_a_resumed_run_does_not_need_it(mixed_set: ShardSet, initial: Path, tmp_path: Path) -> None:
    config = write_config(tmp_path / "run.yaml", mixed_set, steps=1, initial_model=str(initial))
    run = tmp_path / "run"
    bytelm("train", config, "--out", run)
    (initial / "config.json").unlink()
    bytelm("train", config, "--out", run, "--resume", "--set", "train.steps=2")
    assert [line["step"] for line in metrics(run)] == [1, 2]


def test_a_model_of_another_shape_is_refused(
    mixed_set: ShardSet, initial: Path, tmp_path: Path
) -> None:
    config = config_of(tmp_path, mixed_set, initial, "model.swiglu=true", "model.dropout=0.1")
    with pytest.raises(
        ValueError, match=r"has model\.swiglu False in place of True: give"
    ) as error:
        load_initial_model(config)
    assert "dropout" not in str(error.value)


def test_a_model_that_is_not_there_is_refused_before_the_run(
    mixed_set: ShardSet, tmp_path: Path
) -> None:
    config = write_config(
        tmp_path / "run.yaml", mixed_set, steps=1, initial_model=str(tmp_path / "none")
    )
    refused = bytelm("train", config, "--out", tmp_path / "run", status=2)
    assert "no model at" in refused.stderr


def test_without_the_key_there_is_none(mixed_set: ShardSet, tmp_path: Path) -> None:
    config = load_config(write_config(tmp_path / "run.yaml", mixed_set, steps=1), [])
    assert load_initial_model(config) is None


def test_rotated_positions_leave_the_context_free(mixed_set: ShardSet, tmp_path: Path) -> None:
    model = Megabyte(ModelConfig.from_dict({**TINY_MODEL, "rope": True}))
    save_pretrained(model, model.config, tmp_path / "rope", {"views": {}})
    own_table = position_table(model)
    for context in (128, 512):
        changes = ("model.rope=true", f"model.context={context}")
        config = config_of(tmp_path, mixed_set, tmp_path / "rope", *changes)
        initial = load_initial_model(config)
        assert initial is not None
        wanted = Megabyte(config.model)
        drawn, known = position_table(wanted).clone(), min(context, 256) // config.model.patch
        copy_weights(initial, wanted, "zero1")
        torch.testing.assert_close(position_table(wanted)[:known], own_table[:known])
        torch.testing.assert_close(position_table(wanted)[known:], drawn[known:])
    model = Megabyte(ModelConfig.from_dict(TINY_MODEL))
    save_pretrained(model, model.config, tmp_path / "table", {"views": {}})
    config = config_of(tmp_path, mixed_set, tmp_path / "table", "model.context=512")
    with pytest.raises(ValueError, match=r"model\.context 256 in place of 512"):
        load_initial_model(config)

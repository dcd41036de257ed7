"""A run that is resumed with another config: refused by key, said, or unsaid."""

from __future__ import annotations

import json
import math
from pathlib import Path

import pytest
import torch
from helpers.commands import bytelm, metrics, write_config

from bytelm.pipelines.config import RunConfig, config_from_dict, load_config
from bytelm.pipelines.shards.reader import ShardSet
from bytelm.pipelines.training.config_changes import change_lines, check_same_model
from bytelm.pipelines.training.optimizer import set_options


@pytest.fixture
def run(mixed_set: ShardSet, tmp_path: Path) -> tuple[Path, RunConfig]:
    """A run's folder that holds only its config, and the config."""
    config = load_config(write_config(tmp_path / "run.yaml", mixed_set, steps=9), [])
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "config.json").write_text(json.dumps(config.to_dict()))
    return tmp_path / "run", config


def changed(config: RunConfig, section: str, **values: object) -> RunConfig:
    plain = config.to_dict()
    return config_from_dict({**plain, section: {**plain[section], **values}})


def test_what_the_weights_depend_on_is_refused_by_its_key(run: tuple[Path, RunConfig]) -> None:
    folder, config = run
    check_same_model(folder, config)
    with pytest.raises(ValueError, match=r"^optimizer\.name was muon and is adamw: the check"):
        check_same_model(folder, changed(config, "optimizer", name="adamw"))
    with pytest.raises(ValueError, match=r"^model\.context was 256 and is 512; model\.rope was F"):
        check_same_model(folder, changed(config, "model", context=512, rope=True))
    check_same_model(folder, changed(config, "train", global_batch=4))
    check_same_model(folder.parent, changed(config, "optimizer", name="adamw"))  # no saved config


def test_what_alters_the_steps_is_said_and_nothing_else(run: tuple[Path, RunConfig]) -> None:
    folder, config = run
    assert not change_lines(folder, config, 7)
    quiet = {"log_every": 3, "checkpoint_every": 2, "keep_last": 1, "eval_every": 5}
    assert not change_lines(folder, changed(config, "train", **quiet), 7)
    assert not change_lines(folder, changed(config, "data", workers=0, cache_gb=1.0), 7)
    assert change_lines(folder, changed(config, "train", global_batch=2), 7) == [
        "train.global_batch was 1 and is 2 from step 8 on"
    ]
    assert change_lines(folder, changed(config, "optimizer", betas=[0.5, 0.9]), 0) == [
        "optimizer.betas was [0.9, 0.98] and is [0.5, 0.9] from step 1 on"
    ]
    moved = changed(config, "data", sets=[{"path": "elsewhere"}])
    (line,) = change_lines(folder, moved, 0)
    assert line.startswith("data.sets[0].path was ")


def test_mixing_is_switched_on_when_a_run_goes_on(run: tuple[Path, RunConfig]) -> None:
    """Presets mix today; a run of an earlier version, whose weights are the same, did not."""
    folder, config = run
    before = changed(config, "model", codec_features=True)
    (folder / "config.json").write_text(json.dumps(before.to_dict()))
    mixing = changed(before, "model", output_mixing=True)
    check_same_model(folder, mixing)
    assert change_lines(folder, mixing, 7) == [
        "model.output_mixing was False and is True from step 8 on"
    ]


def test_a_config_of_an_earlier_version_that_lacks_a_key_has_not_changed(
    run: tuple[Path, RunConfig],
) -> None:
    folder, config = run
    saved = config.to_dict()
    del saved["train"]["keep_every"], saved["model"]["rope"]
    (folder / "config.json").write_text(json.dumps(saved))
    check_same_model(folder, config)
    assert not change_lines(folder, config, 0)


def test_options_of_a_loaded_optimizer_are_those_of_the_config(
    run: tuple[Path, RunConfig],
) -> None:
    weight = torch.nn.Parameter(torch.zeros(2))
    optimizer = torch.optim.AdamW([weight], betas=(0.1, 0.2), weight_decay=9.0)
    set_options(optimizer, run[1].optimizer)
    assert optimizer.param_groups[0]["betas"] == (0.9, 0.98)
    assert optimizer.param_groups[0]["weight_decay"] == 0.1


def test_the_command_says_it_and_a_finished_run_has_nothing_to_do(
    mixed_set: ShardSet, tmp_path: Path
) -> None:
    no_limit = {"rank_timeout": math.inf}
    config = write_config(tmp_path / "run.yaml", mixed_set, steps=3, **no_limit)
    run, early = tmp_path / "run", tmp_path / "early"
    bytelm("train", config, "--out", run)
    saved = (run / "config.json").read_bytes()
    arguments = ("train", config, "--out", run, "--resume", "--set")
    error = bytelm(*arguments, "optimizer.name=adamw", status=2).stderr
    assert error.startswith("bytelm train: optimizer.name was muon and is adamw: ")
    assert "the run is at step 3 and ends at 2: there is nothing to do unless train.steps" in (
        bytelm(*arguments, "train.steps=2").stdout
    )
    assert (run / "config.json").read_bytes() == saved
    shown = bytelm(*arguments, "train.steps=5", "--set", "optimizer.max_grad_norm=0.5").stdout
    assert "optimizer.max_grad_norm was 1.0 and is 0.5 from step 4 on" in shown
    assert len(metrics(run)) == 5

    early.mkdir()
    (early / "config.json").write_bytes(saved)
    for command in (
        ("export", early, "--out", tmp_path / "model"),
        ("evaluate", early, "--data", mixed_set.location),
        ("generate", early, "--modality", "text", "--out", tmp_path / "model"),
        ("compress", early, config, "--out", tmp_path / "model"),
    ):
        assert bytelm(*command, status=2).stderr == (
            f"bytelm {command[0]}: {early} is neither a run with a checkpoint nor an exported "
            "model (it has made no checkpoint yet; the first comes at step 3): train it further\n"
        )
    assert not [path for path in tmp_path.iterdir() if "model" in path.name]

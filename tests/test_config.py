"""Configs: presets, overrides, and mistakes, each of which is named in one line."""

from __future__ import annotations

import math
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml

from bytelm.model.presets import preset
from bytelm.pipelines.config import config_from_dict, load_config
from bytelm.pipelines.config_file import parse_yaml
from bytelm.pipelines.runtime.device import resolve_precision
from bytelm.pipelines.training.deepspeed_config import deepspeed_config
from bytelm.pipelines.training.optimizer import learning_rate_factor

MINIMAL: dict[str, Any] = {
    "model": "tiny",
    "data": {"sets": [{"path": "a"}]},
    "train": {"steps": 5},
}


def written(tmp_path: Path, values: object) -> Path:
    path = tmp_path / "run.yaml"
    path.write_text(yaml.safe_dump(values))
    return path


def test_a_preset_can_be_changed_in_part_and_from_the_command_line(tmp_path: Path) -> None:
    path = written(tmp_path, MINIMAL)
    config = load_config(path, ["model.context=4096", "train.steps=7", "optimizer.lr=0.5"])
    assert config.model.context == 4096
    assert config.model.stages == preset("tiny").stages
    assert (config.train.steps, config.optimizer.lr) == (7, 0.5)


def test_the_resolved_config_reads_back_the_same() -> None:
    config = config_from_dict(MINIMAL)
    assert config_from_dict(config.to_dict()) == config


@pytest.mark.parametrize(
    ("section", "change", "message"),
    [
        ("train", {"stepz": 5}, r"unknown key train\.stepz: did you mean steps\?"),
        ("data", {"sets": [{"pth": "a"}]}, r"unknown key data\.sets\[0\]\.pth: did you mean path"),
        ("model", {"preset": "tiny", "kontext": 8}, "did you mean context"),
        ("model", {"preset": "tyni"}, "tiny"),
        ("train", {"steps": "many"}, r"train\.steps"),
        ("train", {"steps": 0}, r"train\.steps is 0, and must be at least 1"),
        ("train", {"steps": 5, "precision": "fp8"}, "precision"),
        ("train", {}, r"train\.steps is missing"),
        ("train", {"steps": "abc"}, r"train\.steps must be a whole number, and is 'abc'"),
        ("train", {"steps": 5.5}, r"train\.steps must be a whole number, and is 5\.5"),
        ("train", {"steps": True}, r"train\.steps must be a whole number, and is True"),
        ("train", {"steps": 1 << 70}, r"train\.steps is a number of 71 bits, and must fit 64"),
        ("train", {"steps": 5, "rank_timeout": math.nan}, r"train\.rank_timeout is nan"),
        ("train", 5, "train must be a mapping, and is 5"),
        ("steps", 5, r"unknown key steps: did you mean train\.steps\?"),
        ("data", {"sets": [{"path": 5}]}, r"data\.sets\[0\]\.path must be a text .*, and is 5"),
        ("data", {"sets": "a"}, r"data\.sets must be a list, and is 'a'"),
        ("data", {"sets": [{"path": "a"}], "cache_gb": math.nan}, r"data\.cache_gb is nan"),
        ("train", {"steps": 1, "noise": 0.5}, r"train\.noise must be a mapping, and is 0\.5"),
        ("train", {"steps": 1, "noise": {"image": 0.5}}, r"train\.noise\.image is 0\.5, and must"),
        ("data", {"sets": [{"path": "a", "weight": math.inf}]}, r"sets\[0\]\.weight is inf"),
        ("data", {"sets": [{"path": "a", "max_repeats": 0}]}, r"sets\[0\]\.max_repeats is 0"),
        ("model", {"preset": "tiny", "init_std": math.inf}, "init_std must be above 0 and finite"),
        ("optimizer", {"lr": math.inf}, r"optimizer\.lr is inf, and must be above 0 and finite"),
        ("optimizer", {"weight_decay": math.inf}, r"optimizer\.weight_decay is inf"),
        ("optimizer", {"betas": [0.9]}, r"optimizer\.betas must be a list of 2 values, and has 1"),
        ("data", {"sets": []}, "data.sets is empty"),
        ("data", {"sets": [{"path": "a"}], "views": {"image": "rasta"}}, "views.image"),
        ("model", {"preset": "tiny", "context": 4097}, "multiple of the patch"),
        ("optimizer", {"lr": -1.0, "max_grad_norm": 0.0}, r"lr is -1\.0.*max_grad_norm is 0\.0"),
        ("optimizer", {"muon_lr": math.nan}, r"optimizer\.muon_lr is nan, and must be above 0"),
        ("optimizer", {"betas": [0.9, 1.0]}, r"optimizer\.betas are \(0\.9, 1\.0\)"),
        ("optimizer", {"weight_decay": -0.1}, r"optimizer\.weight_decay is -0\.1"),
    ],
)
def test_mistakes_are_named(section: str, change: object, message: str) -> None:
    with pytest.raises(ValueError, match=message) as error:
        config_from_dict({**MINIMAL, section: change})
    assert "\n" not in str(error.value)


def test_files_that_are_no_config(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="cannot read config"):
        load_config(tmp_path / "none.yaml", [])
    (tmp_path / "bad.yaml").write_text("a: [1\nb: }")
    with pytest.raises(ValueError, match="is no YAML"):
        load_config(tmp_path / "bad.yaml", [])
    with pytest.raises(ValueError, match="must be a mapping"):
        load_config(written(tmp_path, [1, 2]), [])
    with pytest.raises(ValueError, match=r"section\.key=value"):
        load_config(written(tmp_path, MINIMAL), ["train.steps"])


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("1e-4", 1e-4),
        ("1e400", math.inf),
        (".inf", math.inf),
        ("1_000", 1000),
        ("0o10", 8),
        ("0x10", 16),
        ("1:30", "1:30"),
        ("on", "on"),
        ("no", "no"),
        ("true", True),
        ("2026-01-01", "2026-01-01"),
        ("~", None),
        ("", None),
    ],
)
def test_scalars_are_those_of_yaml_1_2(text: str, value: object) -> None:
    parsed = parse_yaml(text)
    assert parsed == value
    assert type(parsed) is type(value)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("train: {steps: 9}\nmodel: tiny\ntrain: {steps: 8}", r"has train twice \(lines 1 and 3\)"),
        ("train:\n  lr: 1\n  seed: 7\n  lr: 2", r"has train\.lr twice \(lines 2 and 4\)"),
        ("{a: [{b: 1, b: 2}]}", r"has a\[0\]\.b twice \(line 1\)"),
        (
            "a: 010",
            "is no YAML: line 1: the leading zero makes 010 octal for some programs: write 10",
        ),
        ("[" * 3000, "is nested too deeply"),
        ("a: &x [*x]\na: 1", "has a twice"),
        ("a: !!python/name:os.system x", "is no YAML"),
    ],
)
def test_files_that_would_be_misread_are_refused(tmp_path: Path, text: str, message: str) -> None:
    (tmp_path / "run.yaml").write_text(text)
    with pytest.raises(ValueError, match=rf"config .*run\.yaml {message}"):
        load_config(tmp_path / "run.yaml", [])


def test_whole_numbers_may_be_written_as_powers_and_switches_as_words() -> None:
    values = {"train": {"steps": 1e3}, "model": {"preset": "tiny", "rope": "on"}}
    config = config_from_dict({**MINIMAL, **values})
    assert config.train.steps == 1000
    assert config.model.rope is True


@pytest.mark.parametrize(("written_as", "value"), [("on", True), (True, True), ("local", "local")])
def test_checkpointing_is_a_switch_or_names_stages(
    written_as: bool | str, value: bool | str
) -> None:
    model = {"preset": "tiny", "activation_checkpointing": written_as}
    config = config_from_dict({**MINIMAL, "model": model})
    assert config.model.activation_checkpointing is value
    with pytest.raises(ValueError, match="must be one of false, true, global, local, and is 1"):
        config_from_dict({**MINIMAL, "model": {**model, "activation_checkpointing": 1}})


def test_no_limit_is_a_limit(tmp_path: Path) -> None:
    path = written(tmp_path, MINIMAL)
    config = load_config(path, ["data.cache_gb=.inf", "train.rank_timeout=.inf"])
    assert (config.data.cache_gb, config.train.rank_timeout) == (math.inf, math.inf)


def test_a_value_that_cannot_be_read_is_named_with_its_option(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"--set train\.steps=\[: the value is no YAML"):
        load_config(written(tmp_path, MINIMAL), ["train.steps=["])


def test_the_global_batch_has_to_divide() -> None:
    config = config_from_dict({**MINIMAL, "train": {"steps": 1, "global_batch": 6}})
    assert config.accumulation(2) == 3
    with pytest.raises(ValueError, match=r"4 processes do not divide it; use .* 4 or 8 rows"):
        config.accumulation(4)


def test_all_problems_of_the_batch_are_named_at_once() -> None:
    sizes = {"steps": 1, "global_batch": 6, "micro_batch": 4}
    with pytest.raises(ValueError, match="5 processes and 4 rows of a micro batch do not divide"):
        config_from_dict({**MINIMAL, "train": sizes}).accumulation(5)
    with pytest.raises(ValueError, match="3 rows a process are not cut into micro batches of 2"):
        config_from_dict({**MINIMAL, "train": sizes | {"micro_batch": 2}}).accumulation(2)
    with pytest.raises(ValueError, match=r"steps is 0.*; train\.micro_batch is 0"):
        config_from_dict({**MINIMAL, "train": {"steps": 0, "micro_batch": 0}})


def test_deepspeed_files_hold_only_their_own_keys(tmp_path: Path) -> None:
    assert deepspeed_config("zero2")["zero_optimization"]["stage"] == 2
    with pytest.raises(ValueError, match="choose one of zero0, zero1, zero2, zero2_offload"):
        deepspeed_config("zero9")
    for key, message in (
        ("train_batch_size", r"owns: remove it and set train\.global_batch"),
        ("zero_optimisation", "unknown key 'zero_optimisation'"),
    ):
        path = tmp_path / "case.json"
        path.write_text(f'{{"{key}": 1}}')
        with pytest.raises(ValueError, match=message):
            deepspeed_config(str(path))


def test_the_rate_warms_up_and_falls_to_zero() -> None:
    config = config_from_dict({**MINIMAL, "optimizer": {"warmup_steps": 4}}).optimizer
    rates = [learning_rate_factor(step, 20, config) for step in range(20)]
    assert rates[:4] == [0.25, 0.5, 0.75, 1.0]
    assert rates[4] == 1.0
    assert all(a > b for a, b in pairwise(rates[4:]))
    assert rates[-1] == pytest.approx(1 / 16)
    assert learning_rate_factor(20, 20, config) == 0.0


@pytest.mark.parametrize(
    ("capabilities", "precision"),
    [
        ({"amx_bf16": True, "avx512_bf16": True}, "bf16"),
        ({"amx_bf16": False, "avx512_bf16": True}, "bf16"),
        ({"cpu_name": "Intel Xeon", "amx_bf16": True, "avx512_bf16": True}, "bf16"),
        ({"cpu_name": "Intel Xeon", "amx_bf16": False, "avx512_bf16": True}, "fp32"),
        ({"cpu_name": "AMD EPYC", "avx512_bf16": True}, "bf16"),
        ({"sve_bf16": True}, "bf16"),
        ({"avx512_f": True, "avx512_bf16": False}, "fp32"),
        ({}, "fp32"),
    ],
)
def test_auto_is_bf16_on_a_processor_that_it_makes_faster(
    capabilities: dict[str, bool | str], precision: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: capabilities)
    processor = torch.device("cpu")
    assert resolve_precision(processor, "auto") == precision
    assert resolve_precision(processor, "fp32") == "fp32"
    assert resolve_precision(processor, "bf16") == "bf16"

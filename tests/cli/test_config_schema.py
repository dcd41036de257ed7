"""`bytelm config --schema`: the schema takes what `bytelm train` takes, and explains each key."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any

import jsonschema
import pytest
from helpers.commands import TINY_MODEL, bytelm, status

from bytelm.model.config import ModelConfig
from bytelm.model.presets import PRESETS
from bytelm.pipelines.config import RunConfig, config_from_dict
from bytelm.pipelines.config_file import parse_yaml, read_config_file
from bytelm.pipelines.config_schema import field_docs, json_schema

ROOT = Path(__file__).parents[2]
CONFIGS = [*sorted((ROOT / "examples").glob("*.yaml")), ROOT / "tools" / "demo.yaml"]
VALIDATOR = jsonschema.Draft202012Validator(json_schema())


def test_the_command_prints_a_valid_schema() -> None:
    shown = json.loads(bytelm("config", "--schema").stdout)
    assert shown == json_schema()
    jsonschema.Draft202012Validator.check_schema(shown)
    assert shown["$schema"].endswith("2020-12/schema")


def test_a_command_without_schema_is_refused(capsys: pytest.CaptureFixture[str]) -> None:
    assert status(["config"]) == 2
    assert "--schema" in capsys.readouterr().err


@pytest.mark.parametrize("path", CONFIGS, ids=lambda path: path.name)
def test_the_repositorys_configs_are_valid(path: Path) -> None:
    VALIDATOR.validate(read_config_file(path))


def test_every_key_of_a_config_is_explained() -> None:
    properties = json_schema()["properties"]
    assert set(properties) == {field.name for field in dataclasses.fields(RunConfig)}
    for section in ("data", "train", "optimizer"):
        for key, schema in properties[section]["properties"].items():
            assert schema["description"].endswith("."), f"{section}.{key}"
    assert len(field_docs(ModelConfig)) == len(dataclasses.fields(ModelConfig))
    assert properties["train"]["properties"]["eval_rows"]["default"] == 64
    assert properties["train"]["required"] == ["steps"]


REST = "data: {sets: [{path: s}]}\ntrain: {steps: 3}\n"


@pytest.mark.parametrize(
    "text",
    [
        f"model: tiny\n{REST}",
        f"model: {{preset: tiny, rope: on, dropout: 0}}\n{REST}",
        f"model: {json.dumps(TINY_MODEL)}\n{REST}",
        f"model: tiny\n{REST}optimizer: {{lr: null, betas: [0.9, 0.95], max_grad_norm: .inf}}",
        "model: tiny\ndata: {sets: [{path: s}], cache_gb: 3}\ntrain: {steps: 1e3}",
    ],
)
def test_what_train_takes_is_valid(text: str) -> None:
    values = parse_yaml(text)
    config_from_dict(values)
    VALIDATOR.validate(values)


@pytest.mark.parametrize(
    "text",
    [
        REST,
        f"model: tinny\n{REST}",
        f"model: {{preset: tiny, roape: true}}\n{REST}",
        f"model: {{context: 64}}\n{REST}",
        f"model: tiny\n{REST}optimiser: {{}}",
        f"model: tiny\n{REST}optimizer: {{name: sgd}}",
        f"model: tiny\n{REST}optimizer: {{betas: [0.9]}}",
        "model: tiny\ndata: {sets: [{}]}\ntrain: {steps: 3}",
        "model: tiny\ndata: {sets: [{path: s}]}\ntrain: {steps: many}",
        "model: tiny\ndata: {sets: [{path: s}]}\ntrain: {steps: 1.5}",
    ],
)
def test_what_train_refuses_is_invalid(text: str) -> None:
    values: dict[str, Any] = parse_yaml(text)
    with pytest.raises(ValueError, match=r"\w"):
        config_from_dict(values)
    assert not VALIDATOR.is_valid(values)


def test_all_presets_are_choices() -> None:
    (names, *_) = json_schema()["properties"]["model"]["anyOf"]
    assert names["enum"] == list(PRESETS)

"""`bytelm init`: the config runs as it is, and every key stands in it with its explanation."""

from __future__ import annotations

import dataclasses
import json
import re
from pathlib import Path

import pytest
from helpers.commands import status
from helpers.sets import image, text, write_set

from bytelm.model.config import ModelConfig
from bytelm.pipelines.config import DataConfig, OptimizerConfig, TrainConfig, load_config
from bytelm.pipelines.config_schema import field_docs, json_schema

KINDS = {
    "model": ModelConfig,
    "data": DataConfig,
    "train": TrainConfig,
    "optimizer": OptimizerConfig,
}


def init(*arguments: object) -> int:
    return status(["init", *map(str, arguments)])


def test_the_config_has_every_key_with_its_docstring(tmp_path: Path) -> None:
    path = tmp_path / "deep" / "run.yaml"
    assert init("--out", path) == 0
    lines = path.read_text("utf-8")
    words = " ".join(line.lstrip("# ") for line in lines.splitlines())
    for kind in KINDS.values():
        docs = field_docs(kind)
        for field in dataclasses.fields(kind):
            assert re.search(rf"(?m)^  #?{field.name}:", lines), field.name
            assert docs[field.name] in words, field.name
    assert re.search(r"(?m)^#trackers: \[tensorboard\]$", lines)


def test_a_key_behind_a_hash_is_a_default(tmp_path: Path) -> None:
    """With all of them uncommented the config is the same."""
    path = tmp_path / "run.yaml"
    assert init("--out", path) == 0
    before = load_config(path, [])
    path.write_text(re.sub(r"(?m)^( *)#(\w+:)", r"\1\2", path.read_text()))
    assert load_config(path, []) == before
    assert before.train.steps == 1_000


def test_the_sets_of_data_decide_rows_and_weights(tmp_path: Path) -> None:
    write_set(tmp_path / "texts", [[text(b"abc" * 1_000)]])
    write_set(tmp_path / "images", [[image(64, 64)]])
    path = tmp_path / "run.yaml"
    assert init("--data", tmp_path / "texts", tmp_path / "images", "--out", path) == 0
    config = load_config(path, [])
    assert config.model.context == 12_544
    assert [(one.path, one.weight) for one in config.data.sets] == [
        (str(tmp_path / "texts"), 1.0),
        (str(tmp_path / "images"), 1.0),
    ]
    assert status(["plan", str(path)]) == 0


def test_the_schema_is_written_and_named_in_the_first_line(tmp_path: Path) -> None:
    path, schema = tmp_path / "configs" / "run.yaml", tmp_path / "schema.json"
    assert init("--out", path, "--schema", schema) == 0
    assert json.loads(schema.read_text()) == json_schema()
    first = path.read_text().splitlines()[0]
    assert first == "# yaml-language-server: $schema=../schema.json"
    load_config(path, [])


def test_nothing_is_overwritten(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "run.yaml"
    path.write_text("mine")
    assert init("--out", path) == 2
    assert path.read_text() == "mine"
    assert "exists: remove it, or choose another --out" in capsys.readouterr().err


def test_a_folder_that_is_no_set_is_refused(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert init("--data", tmp_path, "--out", tmp_path / "run.yaml") == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert str(tmp_path) in line
    assert not (tmp_path / "run.yaml").exists()

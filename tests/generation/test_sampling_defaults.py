"""Sampling defaults: those of each modality, and options that replace one value of them."""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Sequence
from functools import partial
from pathlib import Path

import pytest
from helpers.commands import status
from helpers.tiny_models import OPTIONS, tiny_model

import bytelm
from bytelm.modalities import MODALITIES
from bytelm.model.decoding.sampling import Sampling
from bytelm.pipelines.checkpoints.pretrained import save_pretrained
from bytelm.pipelines.cli.generate import SAMPLING_HELP
from bytelm.pipelines.config import ViewsConfig
from bytelm.pipelines.data.dataset_info import DatasetInfo
from bytelm.pipelines.generation.sampling_defaults import DEFAULT_SAMPLING, sampling_for

LENGTHS = {"text": ("--max-bytes", "200"), "image": ("--size", "9x7"), "audio": ("--rate", "99")}


@pytest.fixture
def model_folder(tmp_path: Path) -> Path:
    """An untrained model whose bytes are far from equally likely."""
    headers = {"image": [[9, 7, 3]], "audio": [[99, 1]]}
    extra = {"views": vars(ViewsConfig()), "seen": {"headers": headers, "pairs": []}}
    model = tiny_model("two", context=96, **OPTIONS["modern"] | {"init_std": 0.6})
    save_pretrained(model, model.config, tmp_path / "model", extra)
    return tmp_path / "model"


def flags(sampling: Sampling) -> list[str]:
    values = dataclasses.asdict(sampling).items()
    return [part for name, v in values for part in (f"--{name.replace('_', '-')}", str(v))]


@pytest.mark.parametrize("modality", MODALITIES)
def test_a_command_without_options_draws_with_the_defaults(
    modality: str, model_folder: Path, tmp_path: Path
) -> None:
    def make(name: str, options: Sequence[str]) -> bytes:
        out = tmp_path / name
        asked = ["generate", str(model_folder), "--modality", modality, "--out", str(out)]
        assert status([*asked, *LENGTHS[modality], *options]) == 0
        (path,) = out.iterdir()
        return path.read_bytes()

    plain = make("plain", [])
    assert plain == make("defaults", flags(DEFAULT_SAMPLING[modality]))
    assert plain != make("own", flags(Sampling()))
    if modality == "text":
        assert bytelm.load(model_folder).generate("text", max_bytes=200) == [plain]


def test_an_option_replaces_one_value_of_the_defaults() -> None:
    info = DatasetInfo(vars(ViewsConfig()), {}, frozenset(), frozenset())
    for modality, defaults in DEFAULT_SAMPLING.items():
        chosen = partial(sampling_for, info, modality, is_finished=False)
        assert chosen() == defaults
        assert chosen(temperature=0.0).temperature == 0.0
        changed = chosen(top_k=7, top_p=0.5, min_p=0.25)
        assert changed == Sampling(defaults.temperature, 7, 0.5, 0.25)
    with pytest.raises(ValueError, match="no modality 'video': choose one of text, image, audio"):
        sampling_for(info, "video", is_finished=False)


def test_the_help_names_each_default() -> None:
    """The help is a text, so that it needs no torch."""
    usual = dataclasses.asdict(Sampling())
    for modality, defaults in DEFAULT_SAMPLING.items():
        (shown,) = re.findall(rf"{modality} (temperature[^;]*?)[;.](?: |$)", SAMPLING_HELP)
        values = dataclasses.asdict(defaults).items()
        changed = [(name, v) for name, v in values if name == "temperature" or v != usual[name]]
        assert shown == ", ".join(f"{name.replace('_', '-')} {v:g}" for name, v in changed)

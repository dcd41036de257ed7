"""Sampling defaults: those of each modality, and options that replace one value of them."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import pytest
from helpers.commands import status
from helpers.tiny_models import OPTIONS, tiny_model

import bytelm
from bytelm.modalities import MODALITIES
from bytelm.modalities.base import Header
from bytelm.model.decoding.sampling import Sampling
from bytelm.model.megabyte import Megabyte
from bytelm.model.output_mixing.mixer import LEAST_PROMPT
from bytelm.pipelines.checkpoints.pretrained import save_pretrained
from bytelm.pipelines.cli.generate import SAMPLING_HELP
from bytelm.pipelines.config import ViewsConfig
from bytelm.pipelines.data.dataset_info import FINISHED, NEW, DatasetInfo
from bytelm.pipelines.generation.options import GenerateOptions, sampling_of
from bytelm.pipelines.generation.request import Request
from bytelm.pipelines.generation.sampling_defaults import (
    DEFAULT_SAMPLING,
    MIXED_IMAGE_SAMPLING,
    SamplingChoices,
    default_sampling,
)

LENGTHS = {"text": ("--max-bytes", "200"), "image": ("--size", "9x7"), "audio": ("--rate", "99")}

UNCALIBRATED = DatasetInfo(vars(ViewsConfig()), {}, frozenset(), frozenset())


@pytest.fixture
def model_folder(tmp_path: Path) -> Path:
    """An untrained model whose bytes are far from equally likely."""
    headers = {"image": [[9, 7, 3]], "audio": [[99, 1]]}
    extra = {"views": vars(ViewsConfig()), "seen": {"headers": headers, "pairs": []}}
    model = tiny_model("two", context=96, **OPTIONS["modern"] | {"init_std": 0.6})
    save_pretrained(model, model.config, tmp_path / "model", extra)
    return tmp_path / "model"


def flags(sampling: Sampling) -> list[str]:
    values = asdict(sampling).items()
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
    model, request = tiny_model("two"), Request("text", Header(), "utf8", 9)
    for modality, defaults in DEFAULT_SAMPLING.items():

        def chosen(modality: str = modality, **values: Any) -> Sampling:
            options = GenerateOptions(modality=modality, choices=SamplingChoices(**values))
            return sampling_of(model, UNCALIBRATED, options, request)

        assert chosen() == defaults
        assert chosen(temperature=0.0).temperature == 0.0
        changed = chosen(top_k=7, top_p=0.5, min_p=0.25)
        assert changed == Sampling(defaults.temperature, 7, 0.5, 0.25)


def test_images_that_a_mixture_finishes_have_settings_of_their_own() -> None:
    mixing, plain = (
        tiny_model("two", context=96, **OPTIONS["modern"] | {"output_mixing": is_mixing})
        for is_mixing in (True, False)
    )
    settings = {
        kind: asdict(Sampling(temperature)) for kind, temperature in ((NEW, 0.5), (FINISHED, 1.5))
    }
    calibrated = replace(UNCALIBRATED, sampling=dict.fromkeys(DEFAULT_SAMPLING, settings))

    def temperature(model: Megabyte, info: DatasetInfo, modality: str, prompt: int) -> float:
        return default_sampling(model, info, modality, prompt).temperature

    long, short = LEAST_PROMPT, LEAST_PROMPT - 1
    assert temperature(mixing, UNCALIBRATED, "image", long) == MIXED_IMAGE_SAMPLING.temperature
    for model, prompt in ((mixing, short), (mixing, 0), (plain, long)):
        assert temperature(model, UNCALIBRATED, "image", prompt) == 0.9
    assert temperature(mixing, UNCALIBRATED, "audio", long) == 0.9
    for modality in DEFAULT_SAMPLING:
        assert temperature(mixing, calibrated, modality, 0) == 0.5
        assert temperature(mixing, calibrated, modality, long) == 1.5
        assert temperature(plain, calibrated, modality, short) == 1.5
    assert temperature(mixing, calibrated, "image", short) == 0.5, "the network draws it alone"
    assert temperature(mixing, calibrated, "text", short) == 1.5


def test_the_help_names_each_default() -> None:
    """The help is a text, so that it needs no torch."""
    usual = asdict(Sampling())
    for modality, defaults in DEFAULT_SAMPLING.items():
        (shown,) = re.findall(rf"{modality} (temperature[^;]*?)[;.](?: |$)", SAMPLING_HELP)
        values = asdict(defaults).items()
        changed = [(name, v) for name, v in values if name == "temperature" or v != usual[name]]
        assert shown == ", ".join(f"{name.replace('_', '-')} {v:g}" for name, v in changed)
    temperature = MIXED_IMAGE_SAMPLING.temperature
    assert Sampling(temperature=temperature) == MIXED_IMAGE_SAMPLING
    assert f"finishes has temperature {temperature:g}. " in SAMPLING_HELP

"""Models of random weights, which a preset and a seed name."""

from __future__ import annotations

from dataclasses import asdict, replace

import pytest
import torch

from bytelm.model import presets
from bytelm.model.adaptation import TRAINED, UNTRAINED
from bytelm.model.config import ModelConfig
from bytelm.pipelines.checkpoints import untrained
from bytelm.pipelines.checkpoints.load import load_model, settled_location
from bytelm.pipelines.checkpoints.untrained import adaptation_of, untrained_model
from bytelm.pipelines.config import ViewsConfig
from bytelm.pipelines.runtime.ranks import Ranks


@pytest.fixture(autouse=True)
def small_preset(monkeypatch: pytest.MonkeyPatch) -> None:
    """A preset `mini` of few parameters."""
    stages = [{"width": 32, "layers": 1, "heads": 1}, {"width": 16, "layers": 1, "heads": 1}]
    values = {"stages": stages, "patch_sizes": [8], "context": 256}
    monkeypatch.setitem(presets.PRESETS, "mini", ModelConfig.from_dict(values))


def weights(location: str) -> list[torch.Tensor]:
    return list(load_model(location)[0].state_dict().values())


def equal(first: list[torch.Tensor], second: list[torch.Tensor]) -> bool:
    return all(torch.equal(a, b) for a, b in zip(first, second, strict=True))


def test_the_weights_depend_on_the_seed_alone() -> None:
    torch.manual_seed(1)
    first = weights("preset:mini")
    state = torch.random.get_rng_state()
    assert equal(first, weights("preset:mini:0"))
    assert not equal(first, weights("preset:mini:7"))
    assert torch.equal(state, torch.random.get_rng_state())


def test_the_model_is_the_preset_s_and_has_the_default_views() -> None:
    model, info = load_model("preset:mini")
    assert model.config == presets.PRESETS["mini"]
    assert not model.training
    assert info.views == asdict(ViewsConfig()) == untrained.VIEWS
    assert untrained_model("preset:modern-demo").config.output_mixing


def test_it_learns_faster_than_a_trained_one() -> None:
    assert adaptation_of("preset:mini") == replace(UNTRAINED, preset="preset:mini:0")
    assert adaptation_of("runs/first") == TRAINED
    assert settled_location("preset:mini:7", Ranks()) == "preset:mini:7"


def test_mistakes_are_named() -> None:
    with pytest.raises(ValueError, match="unknown preset 'minni': did you mean 'mini'"):
        load_model("preset:minni")
    for seed in ("-1", "x", "1.5", str(1 << 64)):
        with pytest.raises(ValueError, match=f"has the seed '{seed}': give a whole number"):
            load_model(f"preset:mini:{seed}")

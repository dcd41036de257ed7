"""The formulas of `model/flops.py` against the model's parameters and PyTorch's counter.

The counter sees the products of the model as it runs, but with PyTorch's attention: ours skips
masked pairs and computes scores again. `tests/helpers/tiny_models.py` has the options.
"""

from dataclasses import replace
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from helpers.tiny_models import OPTIONS, SHAPES, options_of, tiny_config
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from bytelm.model.config import ModelConfig
from bytelm.model.decoding.decoder import Decoder
from bytelm.model.flops import costs, generation_flops_per_byte, training_flops_per_byte
from bytelm.model.layout import Layout
from bytelm.model.megabyte import Megabyte
from bytelm.model.presets import MODERN_SIZES, PRESETS

SIZED = [f"modern-{name}" for name in MODERN_SIZES]
"""Presets that differ from `modern-hour` in numbers alone, and are too large to run."""


@pytest.fixture(autouse=True)
def _attention_of_all_pairs(monkeypatch: pytest.MonkeyPatch) -> None:
    def attention(q: Tensor, k: Tensor, v: Tensor, window: int) -> Tensor:
        keys = slice(0, window or None)  # as many for each query as its window has
        return F.scaled_dot_product_attention(q, k[:, :, keys], v[:, :, keys], scale=1.0)

    monkeypatch.setattr("bytelm.model.attention_context.causal_attention", attention)


def counted(config: ModelConfig, device: str) -> float:
    """Training FLOPs per byte of one row by PyTorch's counter, which sees plain products alone."""
    with torch.device(device):
        model = Megabyte(replace(config, activation_checkpointing=False, local_chunk=0))
        ids = torch.zeros(1, config.context, dtype=torch.int64)
        modality = torch.zeros(1, config.context, dtype=torch.uint8)
        document = torch.zeros(1, 1, dtype=torch.int32)
    # Found on the CPU, where a document has a value.
    layout = Layout.of(torch.zeros(1, 1)).to(torch.device(device))
    with FlopCounterMode(display=False) as counter, sdpa_kernel(SDPBackend.MATH):
        model(ids, document, modality, layout=layout).sum().backward()
    return counter.get_total_flops() / config.context


@pytest.mark.parametrize("name", [name for name in PRESETS if name not in SIZED])
def test_presets_train_for_what_the_counter_says(name: str) -> None:
    config = PRESETS[name]
    # RoPE asks for the type that autocast uses on the device; meta has none.
    device = "cpu" if config.rope else "meta"
    assert training_flops_per_byte(config) == pytest.approx(counted(config, device), rel=1e-6)


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("option", OPTIONS)
def test_options_train_for_what_the_counter_says(option: str, shape: str) -> None:
    config = tiny_config(shape, **options_of(option, shape))
    assert training_flops_per_byte(config) == pytest.approx(counted(config, "cpu"), rel=1e-6)


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("option", OPTIONS)
def test_parameters_by_stage(option: str, shape: str) -> None:
    config = tiny_config(shape, **options_of(option, shape))
    with torch.device("meta"):
        model = Megabyte(config)
    parts: list[Any] = [*model.stages]
    expected = [sum(p.numel() for p in part.parameters()) for part in parts]
    total = sum(p.numel() for p in model.parameters())
    assert [cost.parameters for cost in costs(config)] == [*expected, total - sum(expected)]


@pytest.mark.parametrize("name", SIZED)
def test_presets_have_the_parameters_of_their_names(name: str) -> None:
    number, unit = name.removeprefix("modern-")[:-1], name[-1]
    parameters = sum(cost.parameters for cost in costs(PRESETS[name]))
    assert parameters == pytest.approx(int(number) * {"m": 1e6, "b": 1e9}[unit], rel=0.15)


@pytest.mark.parametrize("shape", ["one", "two", "three", "projected"])
@pytest.mark.parametrize("option", ["paper", "cross_patch_attention", "all"])
def test_a_row_is_generated_for_what_the_counter_says(option: str, shape: str) -> None:
    config = tiny_config(shape, context=240, **options_of(option, shape))
    # The counter sees PyTorch's products, which steps in float64 take.
    decoder = Decoder(Megabyte(config).double(), batch=1)
    decoder.prefill([torch.zeros(0, dtype=torch.int64)], torch.zeros(1, dtype=torch.int64))
    with FlopCounterMode(display=False) as counter, sdpa_kernel(SDPBackend.MATH):
        for _ in range(config.context):
            decoder.step(torch.zeros(1, dtype=torch.int64))
    flops = counter.get_total_flops() / config.context
    assert generation_flops_per_byte(config) == pytest.approx(flops, rel=0.02)

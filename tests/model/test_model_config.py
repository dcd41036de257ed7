"""The configuration of a model: checks, JSON and back, presets."""

import json
import subprocess
import sys

import pytest
import torch

from bytelm.model.config import ModelConfig, StageConfig
from bytelm.model.megabyte import Megabyte
from bytelm.model.presets import PRESETS, preset

TWO_STAGES = {
    "stages": [
        {"width": 64, "layers": 2, "heads": 2},
        {"width": 32, "layers": 1, "heads": 2},
    ],
    "patch_sizes": [4],
    "context": 32,
}


def test_goes_to_json_and_back() -> None:
    for config in PRESETS.values():
        assert ModelConfig.from_dict(json.loads(json.dumps(config.to_dict()))) == config


def test_patch_is_the_product_of_the_patch_sizes() -> None:
    stage = StageConfig(32, 1, 1)
    assert ModelConfig((stage,), (), context=7).patch == 1
    three = ModelConfig((stage, stage, stage), (4, 2), context=16)
    assert [three.position_bytes(index) for index in range(3)] == [8, 2, 1]
    assert [three.byte_width(index) for index in range(3)] == [4, 16, 32]


def test_image64_is_the_only_preset_with_a_projection() -> None:
    projected = [name for name, config in PRESETS.items() if config.is_projected(0)]
    assert projected == ["paper-image64"]
    assert PRESETS["paper-image64"].byte_width(0) == 214


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"context": 30}, r"context 30 .* patch of 4 bytes: use 28 or 32"),
        ({"context": 3}, "use 4$"),
        ({"context": 0}, "context must be"),
        ({"context": "32"}, "context must be"),
        ({"patch_sizes": []}, "2 stages need 1 patch_sizes"),
        ({"patch_sizes": [1]}, "patch size must be"),
        ({"patch_sizes": 4}, "patch_sizes must be a list"),
        ({"stages": []}, "1 to 4 stages"),
        ({"stages": [{"width": 64, "layers": 1, "heads": 5}]}, r"64 .* 5 heads: use 4 heads"),
        ({"stages": [{"width": 64, "layers": 0, "heads": 4}]}, "stage layers must be"),
        ({"stages": [{"width": 64, "layer": 1, "heads": 4}]}, "'layer' .* 'layers'"),
        ({"stages": [{"width": 64, "heads": 4}]}, "lacks 'layers'"),
        ({"stages": [64]}, "as width, layers and heads"),
        ({"vocab_size": 256}, "vocab_size must be"),
        ({"pad_id": 264}, "outside the vocabulary"),
        ({"pad_id": 0}, "pad_id must be"),
        ({"dropout": 1.0}, "dropout"),
        ({"dropout": "0.1"}, "dropout must be a number"),
        ({"init_std": 0.0}, "init_std"),
        ({"tie_embeddings": 1}, "tie_embeddings must be true or false"),
        ({"local_chunk": -1}, "local_chunk must be"),
        ({"cross_patch_attention": 5}, "use 0 to 4"),
        ({"cross_patch_attention": -1}, "cross_patch_attention must be"),
        ({"ngram_table_size": -1}, "ngram_table_size must be"),
        ({"ngram_width": 0}, "ngram_width must be"),
        ({"activation_checkpointing": 1}, "must be true, false, global or local"),
        ({"activation_checkpointing": "globl"}, "must be true, false, global or local"),
        ({"modality_heads": -1}, "modality_heads must be"),
        ({"modality_heads": 3}, "tie_embeddings must be false"),
        (
            {"conv_patch_encoder": True, "patch_sizes": [], "stages": TWO_STAGES["stages"][:1]},
            "needs patches: give two stages",
        ),
        ({"rope": 1}, "rope must be true or false"),
        (
            {"rope": True, "stages": [{"width": 9, "layers": 1, "heads": 3}] * 2},
            "odd number: use other heads",
        ),
        ({"drop_out": 0.1}, "'drop_out' .* 'dropout'"),
    ],
)
def test_says_what_is_wrong_and_what_to_do(change: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        ModelConfig.from_dict(TWO_STAGES | change)


def test_a_missing_key_is_named() -> None:
    with pytest.raises(ValueError, match="lacks 'context'"):
        ModelConfig.from_dict({key: TWO_STAGES[key] for key in ("stages", "patch_sizes")})


def test_an_unknown_preset_gives_the_nearest() -> None:
    assert preset("tiny").context == 12_544
    with pytest.raises(ValueError, match="'paper-text'"):
        preset("papertext")


@pytest.mark.parametrize("name", PRESETS)
def test_presets_build(name: str) -> None:
    with torch.device("meta"):
        model = Megabyte(preset(name))
    is_tied = model.lm_head.weight is model.stages[-1].byte_embed.weight
    assert is_tied == name.startswith("paper-")


def test_options_are_off_where_they_are_not_named() -> None:
    off = {
        "rope": False,
        "rms_norm": False,
        "qk_norm": False,
        "swiglu": False,
        "cross_patch_attention": 0,
        "conv_patch_encoder": False,
        "ngram_table_size": 0,
        "modality_heads": 0,
    }
    assert ModelConfig.from_dict(TWO_STAGES) == ModelConfig.from_dict(TWO_STAGES | off)
    for name, config in PRESETS.items():
        assert (off.items() <= config.to_dict().items()) != name.startswith("modern-"), name


def test_modern_options_leave_the_size_alone() -> None:
    plain, modern = preset("tiny"), preset("modern-hour")
    assert (modern.stages, modern.context) == (plain.stages, plain.context)
    assert modern.cross_patch_attention == modern.patch


def test_the_config_does_not_load_torch() -> None:
    code = "import sys, bytelm.model.config; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0

"""Presets: model configs by name."""

import dataclasses
import math
from collections.abc import Sequence

from bytelm.model.config import ModelConfig, StageConfig, nearest


def preset(name: str) -> ModelConfig:
    """The preset called `name`.

    Raises ValueError for an unknown name, with the nearest known one.
    """
    if name not in PRESETS:
        raise ValueError(
            f"unknown preset {name!r}: did you mean {nearest(name, PRESETS)!r}? "
            f"(presets: {', '.join(PRESETS)})"
        )
    return PRESETS[name]


def _paper(
    context: int, patch: int, stage_0: tuple[int, int], stage_1: tuple[int, int]
) -> ModelConfig:
    """A published two-stage shape, from (width, layers) of each stage.

    Heads have 64 channels; the paper does not give their number.
    """
    return ModelConfig(
        stages=tuple(
            StageConfig(width, layers, width // 64) for width, layers in (stage_0, stage_1)
        ),
        patch_sizes=(patch,),
        context=context,
        dropout=0.1,
        local_chunk=max(1, 32_768 // patch),
        activation_checkpointing=True,
    )


# `paper-*` read the published "D" of a global model as its width P * D_G, since 12 * layers * D^2
# then comes near the published sizes. P divides D for all but image64, where D_G = 2560 / 12 is
# rounded up to 214 and projections map 12 * 214 channels to 2560 and back.
# `tiny` and `small` start their matrices near 1 / sqrt(width): 240 steps of `tiny` (one run each,
# on the three modalities in turn) ended 0.24 to 0.27 bits per byte lower with 0.08 than with 0.02.
_TINY = ModelConfig(
    stages=(StageConfig(256, 4, 4), StageConfig(128, 3, 2)),
    patch_sizes=(8,),
    context=12_544,
    tie_embeddings=False,
    embedding_std=1.0,
    init_std=0.08,
)
_SMALL = ModelConfig(
    stages=(StageConfig(384, 6, 6), StageConfig(192, 4, 3)),
    patch_sizes=(8,),
    context=16_384,
    tie_embeddings=False,
    embedding_std=1.0,
    init_std=0.06,
)


MODERN_PATCH = 16
MODERN_NGRAM_ROWS = 65_536
"""Four times as many rows gained nothing in short runs, a quarter of them lost (docs/log.md)."""


def _modern(config: ModelConfig) -> ModelConfig:
    """A config with the options of `modern-*`, which were ahead of all others in short runs.

    `modern-*` models also receive the predictions that xz, PNG and FLAC would make of the next
    byte, and learn when to trust them; what is scored and coded is a mixture with the predictors of
    a compressor, which holds on kinds of files that no network was trained on.
    """
    return dataclasses.replace(
        config,
        patch_sizes=(MODERN_PATCH,),
        cross_patch_attention=MODERN_PATCH,
        smooth_bytes=True,
        rope=True,
        qk_norm=True,
        ngram_table_size=MODERN_NGRAM_ROWS,
        codec_features=True,
        output_mixing=True,
        swiglu=True,
    )


def two_stages(width: int, layers: int) -> tuple[StageConfig, StageConfig]:
    """Stage 0 of a width and a depth, and a local stage half as wide and two thirds as deep.

    At P = 8 both cost about the same for each byte; at P = 16 stage 0 costs half as much. Heads
    have 64 channels, so `width` is a multiple of 128.
    """
    local = width // 2
    return (
        StageConfig(width, layers, width // 64),
        StageConfig(local, -(-2 * layers // 3), local // 64),
    )


def init_std(stages: Sequence[StageConfig]) -> float:
    """1 / sqrt(width), for the geometric mean of the stages' widths."""
    return math.prod(stage.width for stage in stages) ** (-0.5 / len(stages))


def modern(width: int, layers: int) -> ModelConfig:
    """The `modern` model whose stage 0 has this width and these layers.

    The tables of n-grams grow with it: they have as many parameters as one layer of stage 0.
    """
    stages = two_stages(width, layers)
    model = ModelConfig(
        stages=stages,
        patch_sizes=(MODERN_PATCH,),
        context=8_192,
        tie_embeddings=False,
        embedding_std=1.0,
        init_std=init_std(stages),
    )
    return dataclasses.replace(_modern(model), ngram_table_size=width * width // 8)


MODERN_SIZES: dict[str, tuple[int, int]] = {
    "1m": (128, 3),
    "4m": (256, 3),
    "16m": (384, 6),
    "64m": (640, 10),
    "250m": (1024, 16),
    "1b": (1536, 28),
    "7b": (3072, 52),
}
"""Width and layers of stage 0 of each `modern-SIZE`; the size is its number of parameters."""

# `modern-demo` won the quality table's 3 minutes and is the model of `make demo`; `modern-hour` is
# the model of examples/hour.yaml. The two were not compared over an hour.
PRESETS: dict[str, ModelConfig] = {
    "tiny": _TINY,
    "small": _SMALL,
    "modern-demo": dataclasses.replace(
        modern(128, 3), ngram_table_size=MODERN_NGRAM_ROWS, context=_TINY.context
    ),
    "modern-hour": _modern(_TINY),
    **{f"modern-{name}": modern(*size) for name, size in MODERN_SIZES.items()},
    "paper-text": _paper(8_192, 8, (2048, 14), (1024, 18)),
    "paper-image64": _paper(12_288, 12, (2560, 32), (1024, 24)),
    "paper-image256": _paper(196_608, 192, (768, 12), (768, 12)),
    "paper-image640": _paper(1_228_800, 192, (768, 12), (768, 8)),
    "paper-audio": _paper(524_288, 32, (1024, 24), (768, 12)),
}

"""The presets: shapes of models by name."""

import dataclasses
import math
from collections.abc import Sequence

from bytelm.model.config import ModelConfig, StageConfig, nearest


def preset(name: str) -> ModelConfig:
    """The preset called `name`; an unknown name is a ValueError that gives the nearest."""
    if name not in PRESETS:
        raise ValueError(
            f"unknown preset {name!r}: did you mean {nearest(name, PRESETS)!r}? "
            f"(presets: {', '.join(PRESETS)})"
        )
    return PRESETS[name]


def _paper(
    context: int, patch: int, stage_0: tuple[int, int], stage_1: tuple[int, int]
) -> ModelConfig:
    """A published two-stage shape; heads of 64 channels, which the paper leaves open."""
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


# The published "D" of a global model is read as its model width P * D_G: 12 * layers * D^2 then
# comes near the published sizes. D_G = D / P is whole for all but image64, where 2560 / 12 is
# rounded up to 214 channels and a linear projection joins 12 * 214 to 2560 on both sides.
# `tiny` and `small` start their matrices near 1 / sqrt(width): 240 steps of `tiny` (one run each,
# the three modalities in turn) ended 0.24 to 0.27 bits per byte lower with 0.08 than with 0.02.
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
"""Of each table: four times as many gained nothing in short runs, a quarter lost (docs/log.md)."""


def _modern(config: ModelConfig) -> ModelConfig:
    """The options of the model that was ahead of all others in short runs."""
    return dataclasses.replace(
        config,
        patch_sizes=(MODERN_PATCH,),
        cross_patch_attention=MODERN_PATCH,
        smooth_bytes=True,
        rope=True,
        qk_norm=True,
        ngram_table_size=MODERN_NGRAM_ROWS,
        codec_features=True,
        swiglu=True,
    )


def two_stages(width: int, layers: int) -> tuple[StageConfig, StageConfig]:
    """Stage 0 of a size, and a local stage half as wide and two thirds as deep.

    At P = 8 both then cost about the same for each byte; at P = 16 stage 0 costs half as much.
    Heads have 64 channels, so `width` is a multiple of 128.
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
    """The `modern` model of a size, by the width and the layers of stage 0.

    The n-grams' tables grow with the rest: they have as many parameters as one layer of stage 0.
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
}
"""Width and layers of stage 0 of each `modern-SIZE`, named by its parameters."""

# `modern-demo` won the quality table's 3 minutes and is the model of `make demo`; `modern-hour` is
# that of examples/hour.yaml. At equal time in an hour the two were not compared.
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

"""Models small enough for a test, one for each number of stages and one with projections."""

from typing import Any

import torch
from torch import Tensor

from bytelm.model.config import ModelConfig, StageConfig
from bytelm.model.megabyte import Megabyte

SHAPES: dict[str, tuple[tuple[int, ...], tuple[int, ...]]] = {
    "one": ((24,), ()),
    "two": ((32, 16), (4,)),
    "three": ((32, 24, 16), (2, 4)),
    "four": ((32, 24, 16, 16), (2, 2, 2)),
    "projected": ((36, 16), (8,)),
}
"""The widths and the patch sizes; every patch divides 8."""

OPTIONS: dict[str, dict[str, Any]] = {
    "paper": {},
    "untied": {"tie_embeddings": False},
    "smooth_bytes": {"tie_embeddings": False, "smooth_bytes": True},
    "rope": {"rope": True},
    "rms_norm": {"rms_norm": True},
    "qk_norm": {"qk_norm": True},
    "swiglu": {"swiglu": True},
    "cross_patch_attention": {"cross_patch_attention": 2},
    "cross_patch_attention of more than some stages hold": {"cross_patch_attention": 4},
    "attention_window": {"attention_window": 3},
    "conv_patch_encoder": {"conv_patch_encoder": True},
    "ngrams": {"ngram_table_size": 50, "ngram_width": 3},
    "codec_features": {"codec_features": True},
    "modality_heads": {"tie_embeddings": False, "modality_heads": 3},
    "modern": {
        "tie_embeddings": False,
        "smooth_bytes": True,
        "rope": True,
        "qk_norm": True,
        "cross_patch_attention": 4,
        "ngram_table_size": 50,
        "ngram_width": 3,
        "codec_features": True,
    },
    "all": {
        "conv_patch_encoder": True,
        "modality_heads": 3,
        "ngram_table_size": 50,
        "ngram_width": 3,
        "tie_embeddings": False,
        "smooth_bytes": True,
        "rope": True,
        "rms_norm": True,
        "qk_norm": True,
        "swiglu": True,
        "cross_patch_attention": 2,
        "codec_features": True,
    },
}
"""Every option alone, those of the presets `modern-*`, and all that widen what is seen together."""


def tiny_config(shape: str, context: int = 48, **options: Any) -> ModelConfig:
    widths, patch_sizes = SHAPES[shape]
    options = {"embedding_std": 1.0, "init_std": 0.1} | options
    stages = tuple(StageConfig(width, 2, 2) for width in widths)
    return ModelConfig(stages, patch_sizes, context=context, **options)


def opened(ids: Tensor, at: int = 0) -> Tensor:
    """Rows of ids [B, T] that open, at the place `at`, with the head of an image in lines of nine
    bytes, of a sound, or of a text, in turn."""
    heads = [260, 0, 3, 0, 9, 3, *[0] * 5], [261, *[0] * 4, 1, 1, *[0] * 4], [259, *[0] * 5]
    for number, row in enumerate(ids):
        head = torch.tensor(heads[number % 3])
        row[at : at + len(head)] = head
    return ids


def options_of(option: str, shape: str) -> dict[str, Any]:
    """The option as far as the shape's stages can have it."""
    options, patch_sizes = dict(OPTIONS[option]), SHAPES[shape][1]
    if "cross_patch_attention" in options:
        most = max(patch_sizes, default=0)
        options["cross_patch_attention"] = min(options["cross_patch_attention"], most)
    if len(SHAPES[shape][0]) == 1:
        options.pop("conv_patch_encoder", None)
    return options


def tiny_model(shape: str, seed: int = 0, **options: Any) -> Megabyte:
    torch.manual_seed(seed)
    return Megabyte(tiny_config(shape, **options))

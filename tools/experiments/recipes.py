"""Variants of one model, each with one thing changed, and how they are built.

Each variant is its difference from BASE: `modern` with stages of 256x4 and 128x3, Muon, one row of
8,192 ids a step. All runs last equally long, whatever their steps cost, and are compared by the
network's own distributions: mixing in the output would cover what the network lacks.
"""

from __future__ import annotations

import math
import time
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from rich.console import Console

from bytelm.model.config import ModelConfig, StageConfig
from bytelm.model.presets import MODERN_PATCH, init_std, preset
from bytelm.pipelines.config import OptimizerConfig, ViewsConfig
from bytelm.pipelines.data.packing import PlanConfig
from bytelm.tools.experiments.corpora import Corpora
from bytelm.tools.experiments.harness import RunCache
from bytelm.tools.experiments.models import BytelmModel

BASE = replace(preset("modern-hour"), context=8_192, output_mixing=False)


@dataclass(frozen=True)
class Recipe:
    """The model and the optimizer of a run."""

    model: ModelConfig
    optimizer: OptimizerConfig

    def __str__(self) -> str:
        """Empty: the name of a variant says what it is."""
        return ""


@dataclass(frozen=True)
class Change:
    """Difference from the base: values of the fields of each config."""

    model: Mapping[str, Any] = field(default_factory=dict)
    optimizer: Mapping[str, Any] = field(default_factory=dict)
    rows: Mapping[str, Any] = field(default_factory=dict)
    views: Mapping[str, Any] = field(default_factory=dict)

    def with_optimizer(self, **values: Any) -> Change:
        """The change with these values of the optimizer too."""
        return replace(self, optimizer=values)

    def recipe(self) -> Recipe:
        """The base's recipe with the change, its context rounded down to whole patches."""
        sizes = self.model.get("patch_sizes", BASE.patch_sizes)
        patch, length = math.prod(sizes), self.rows.get("row_length", BASE.context)
        model = replace(BASE, **{"context": length // patch * patch, **self.model})
        return Recipe(model, replace(OptimizerConfig(), **self.optimizer))

    def plan_config(self) -> PlanConfig:
        """Rows of the model's context and patch."""
        model = self.recipe().model
        views = replace(ViewsConfig(), **self.views)
        rest = {key: value for key, value in self.rows.items() if key != "row_length"}
        return PlanConfig(model.context, model.patch, vars(views), **rest)


def _stages(*shapes: tuple[int, int], patches: tuple[int, ...] = (MODERN_PATCH,)) -> Change:
    """Stages of these widths and layers, with heads of 64 channels (32 if a width is below 128)."""
    stages = tuple(StageConfig(w, n, max(w // 64, 2)) for w, n in shapes)
    return Change(
        model={
            "stages": stages,
            "patch_sizes": patches,
            "cross_patch_attention": max(patches),
            "init_std": init_std(stages),
        }
    )


ABLATIONS: dict[str, Change] = {
    "base": Change(),
    "without-smooth-bytes": Change(model={"smooth_bytes": False}),
    "without-codec-features": Change(model={"codec_features": False}),
    "relu": Change(model={"swiglu": False}),
    "rms-norm": Change(model={"rms_norm": True}),
    "modality-heads": Change(model={"modality_heads": 3}),
    "without-rope": Change(model={"rope": False}),
    "without-qk-norm": Change(model={"qk_norm": False}),
    "without-ngrams": Change(model={"ngram_table_size": 0}),
    "without-cross-patch": Change(model={"cross_patch_attention": 0}),
    "cross-patch-4": Change(model={"cross_patch_attention": 4}),
    "tie-embeddings": Change(model={"tie_embeddings": True, "embedding_std": 0.08}),
    "embedding-std-0.1": Change(model={"embedding_std": 0.1}),
    "conv-encoder": Change(model={"conv_patch_encoder": True}),
    "ngrams-262144": Change(model={"ngram_table_size": 262_144}),
    "ngrams-16384": Change(model={"ngram_table_size": 16_384}),
    "patch-4": _stages((256, 4), (128, 3), patches=(4,)),
    "patch-6": _stages((256, 4), (128, 3), patches=(6,)),
    "patch-8": _stages((256, 4), (128, 3), patches=(8,)),
    "patch-12": _stages((256, 4), (128, 3), patches=(12,)),
    "patch-24": _stages((256, 4), (128, 3), patches=(24,)),
    "three-stages": _stages((256, 3), (192, 2), (128, 3), patches=(4, 4)),
    "local-deep": _stages((256, 3), (128, 4)),
    "local-wide": _stages((256, 3), (192, 2)),
    "global-wide": _stages((384, 2), (128, 3)),
    "local-narrow": _stages((256, 5), (64, 5)),
    "narrow": _stages((128, 3), (64, 2)),
    "narrow-muon-0.01": _stages((128, 3), (64, 2)).with_optimizer(muon_lr=0.01),
    "narrow-muon-0.04": _stages((128, 3), (64, 2)).with_optimizer(muon_lr=0.04),
    "wide": _stages((384, 6), (192, 4)),
    "wide-muon-0.01": _stages((384, 6), (192, 4)).with_optimizer(muon_lr=0.01),
    "wide-muon-0.04": _stages((384, 6), (192, 4)).with_optimizer(muon_lr=0.04),
    "adamw": Change(optimizer={"name": "adamw"}),
    "muon-0.01": Change(optimizer={"muon_lr": 0.01}),
    "muon-0.04": Change(optimizer={"muon_lr": 0.04}),
    "adamw-lr-0.002": Change(optimizer={"lr": 2e-3}),
    "adamw-lr-0.01": Change(optimizer={"lr": 1e-2}),
    "adamw-lr-0.04": Change(optimizer={"lr": 4e-2}),
    "weight-decay-0": Change(optimizer={"weight_decay": 0.0}),
    "weight-decay-0.3": Change(optimizer={"weight_decay": 0.3}),
    "betas-0.95": Change(optimizer={"betas": (0.9, 0.95)}),
    "planar": Change(views={"image": "planar"}),
    "patch-scan": Change(
        model=_stages((256, 4), (128, 3), patches=(12,)).model, views={"image": "patch"}
    ),
    "s16le": Change(views={"audio": "s16le"}),
    "mulaw": Change(views={"audio": "mulaw"}),
    "concat-then-split": Change(rows={"packing": "concat_then_split"}),
    "rows-4096": Change(rows={"row_length": 4_096}),
    "rows-16384": Change(rows={"row_length": 16_384}),
}


def recipe_runs(work: Path, corpora: Corpora, console: Console) -> RunCache[Recipe]:
    """Runs of recipes below a folder, which last by the processor's time of this process."""
    return RunCache(work / "runs", corpora, _build_recipe, console, time.process_time)


def _build_recipe(name: str, recipe: Recipe, context: int) -> BytelmModel:
    assert recipe.model.context == context, name
    return BytelmModel(recipe.model, recipe.optimizer)

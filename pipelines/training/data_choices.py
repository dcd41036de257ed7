"""Choices of a config that follow from its data: rows, shares of the sets, and dropout.

The measurements behind the rules are in docs/log.md.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from bytelm.model.presets import MODERN_PATCH
from bytelm.pipelines.config import RunConfig
from bytelm.pipelines.training.config_draft import ConfigDraft
from bytelm.pipelines.training.data_profile import DataProfile
from bytelm.pipelines.training.pace import LEAST_STEPS
from bytelm.pipelines.training.preflight import training_plan

SMALLEST_PRESET = "modern-demo"

# --- rows ---
ROW_UNIT = 256
SHORTEST_ROW, USUAL_ROW, LONGEST_ROW = 2_048, 8_192, 16_384
"""Ids in a row: at least, where documents are longer than a row, and so that they fit."""
FITTING_SHARE = 0.95
"""Share of the documents that a row is to hold whole."""
FITTING_IMAGES = 0.5
"""Share of the documents with an image that are within LONGEST_ROW, so that rows are made for
them."""
MAX_PADDING = 0.15
"""Share of padding from which on documents are split at the end of a row."""

PASSES, PASSES_PER_MB = 4.0, 5.0
"""Passes over data that are useful: at least, and further ones for each 10^6 bytes."""
DROPOUT = 0.2
"""Rate for data that are repeated often: over 100 kB of text it gained 0.25 bits in 5 passes."""
SMALL_DATA = 1e6
"""Bytes below which rows are short, so that there are enough steps."""


def choose_data(paths: Sequence[str]) -> tuple[dict[str, Any], dict[str, str]]:
    """Choose what depends on the sets alone: rows, packing, and weights for a short run.

    Returns:
        sections of values, and comments by `section.key`.
    Raises:
        ValueError: if a path is no set, or one without documents in `train`.
    """
    draft = ConfigDraft(DataProfile.of(paths, MODERN_PATCH), [], 0.0, 1)
    choose_rows(draft)
    choose_shares(draft, 1.0)
    return draft.values, draft.comments


# --- rows ---


def choose_rows(draft: ConfigDraft) -> None:
    """Choose the ids of a row and the packing; the rest of the config is provisional."""
    data = draft.data
    fits = data.pictured <= LONGEST_ROW
    if fits.size and fits.mean() >= FITTING_IMAGES:
        row = float(np.quantile(data.pictured[fits], FITTING_SHARE))
        held = FITTING_SHARE * float(fits.mean())
        reason = f"hold {held:.0%} of the documents with an image whole"
    elif data.size < SMALL_DATA:
        row, reason = SHORTEST_ROW, "leave enough steps for small data"
    elif (row := float(np.quantile(data.lengths, FITTING_SHARE))) <= USUAL_ROW:
        reason = f"hold {FITTING_SHARE:.0%} of the documents whole"
    else:
        row, reason = USUAL_ROW, "are usual; documents are longer and are split"
    context = max(SHORTEST_ROW, math.ceil(row / ROW_UNIT) * ROW_UNIT)
    draft.put("model", "preset", SMALLEST_PRESET, "")
    draft.put("model", "context", context, f"Bytes and framing of a row: so many {reason}.")
    draft.put("data", "sets", [{"path": one.path} for one in data.sets], "")
    draft.put("data", "packing", "best_fit", "")
    draft.put("train", "steps", LEAST_STEPS, "")
    draft.put("train", "global_batch", draft.processes, "")
    padding = _padding_share(draft.config())
    packing = "concat_then_split" if padding > MAX_PADDING else "best_fit"
    draft.put(
        "data",
        "packing",
        packing,
        f"With best_fit, which splits only documents longer than a row, {padding:.0%} of the rows "
        "are framing and padding.",
    )


def _padding_share(config: RunConfig) -> float:
    """Share of framing and padding in the rows of all sets."""
    tables = training_plan(config).tables
    ids = config.model.context * sum(int(table.rows.sum()) for table in tables)
    return 1 - sum(int(table.cost.sum()) for table in tables) / ids


# --- data ---


def useful_passes(size: float) -> float:
    """Passes over data of so many bytes after which a model only learns them by heart.

    Measured with `modern-demo`: 4 over 100 kB of text. More data leave less room in the model for
    each byte.
    """
    return PASSES + PASSES_PER_MB * size / 1e6


def choose_dropout(draft: ConfigDraft, run_bytes: float) -> None:
    """Choose dropout where the data are repeated often."""
    passes = run_bytes / draft.data.size
    if passes > useful_passes(draft.data.size) / 2:
        draft.put(
            "model",
            "dropout",
            DROPOUT,
            "The data are small for the time, and are repeated often.",
        )


def choose_shares(draft: ConfigDraft, run_bytes: float) -> None:
    """Choose the weights of several sets: equal bytes of each modality, within `useful_passes`."""
    sets = draft.data.sets
    modalities = list(dict.fromkeys(one.main_modality for one in sets))
    if len(modalities) == 1 or draft.is_given("data.sets"):
        return
    sizes = {m: sum(one.size for one in sets if one.main_modality == m) for m in modalities}
    shares = equal_shares({m: useful_passes(size) * size / run_bytes for m, size in sizes.items()})
    weighted = [
        {"path": one.path, "weight": round(scale * one.size / sizes[one.main_modality], 3)}
        for one in sets
        for scale in [len(modalities) * shares[one.main_modality]]
    ]
    draft.put(
        "data",
        "sets",
        weighted,
        "Each modality has an equal share of the bytes, unless it would be learned by heart "
        "before the others; inside a modality, sets count by their size.",
    )


def equal_shares(limits: Mapping[str, float]) -> dict[str, float]:
    """Divide 1 equally, but for limits; where their sum is below 1, in proportion to them."""
    total = sum(limits.values())
    if total <= 1:
        return {name: limit / total for name, limit in limits.items()}
    shares: dict[str, float] = {}
    for name in sorted(limits, key=lambda name: limits[name]):
        rest = (1 - sum(shares.values())) / (len(limits) - len(shares))
        shares[name] = min(limits[name], rest)
    return shares

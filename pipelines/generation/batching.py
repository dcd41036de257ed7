"""How many rows are drawn at once."""

from __future__ import annotations

import torch

from bytelm.model.config import ModelConfig
from bytelm.model.decoding.row_drawer import draws_from_mixture
from bytelm.model.megabyte import Megabyte
from bytelm.model.output_mixing.mixer import mixing_bytes
from bytelm.pipelines.runtime.memory import available_bytes, sharing_ranks

MOST_ROWS = {"cpu": 64, "cuda": 512}
"""Rows by kind of device beyond which more of them hardly gain speed."""
MEMORY_SHARE = 0.5
"""Share of the free memory that rows may take."""
BYTES_PER_ID = 128
"""Memory of a row for each of its ids beside keys and values, most of it for codec features."""


def batch_by_memory(model: Megabyte, length: int, precision: str, longest_prompt: int) -> int:
    """Rows of up to `length` ids that fit into half of this rank's free memory, at least 1.

    Args:
        longest_prompt: payload bytes of the longest prompt, which may teach a mixture.
    """
    device = model.lm_head.weight.device.type
    itemsize = model.lm_head.weight.itemsize
    if precision == "bf16" and device == "cuda":
        itemsize = torch.bfloat16.itemsize
    row_bytes = itemsize * cached_numbers(model.config, length) + BYTES_PER_ID * length
    if draws_from_mixture(model, longest_prompt):
        row_bytes += mixing_bytes(model.config.context)
    fitting = int(MEMORY_SHARE * available_bytes() / (sharing_ranks() * row_bytes))
    return max(1, min(fitting, MOST_ROWS[device]))


def cached_numbers(config: ModelConfig, length: int) -> int:
    """Keys and values of a row of `length` ids, in all layers of all stages."""
    total = 0
    for index, stage in enumerate(config.stages):
        positions = config.cross_patch_keys(index) + config.sequence_length(index)
        if index == 0:
            positions = length // config.patch + 1
        total += 2 * stage.layers * stage.width * positions
    return total

"""An estimate of the memory that a rank needs for training, by ZeRO stage.

N   parameters of the model        W   ranks
"""

from __future__ import annotations

from dataclasses import dataclass

import torch

from bytelm.model.flops import step_bytes
from bytelm.model.megabyte import Megabyte
from bytelm.pipelines.config import RunConfig
from bytelm.pipelines.runtime.device import resolve_precision, this_device
from bytelm.pipelines.training.optimizer import hidden_matrices

FLOAT_BYTES = 4
"""Bytes of a weight, of a gradient, and of a value of the optimizer's state."""
PROGRAM_BYTES = 900_000_000
"""Measured resident bytes of a rank without a model: Python, PyTorch, DeepSpeed, and the libraries
that the first steps load."""
HEAP_FACTOR = 1.3
"""Measured bytes that the allocator takes for each byte of activations in use."""
BUCKET_VALUES = 500_000_000
"""Values that DeepSpeed exchanges at once by default."""


@dataclass(frozen=True)
class RankMemory:
    """Bytes of one rank at the peak of a step."""

    states: int
    """Weights, gradients, optimizer state and ZeRO's exchange buffer."""
    activations: int

    @property
    def total(self) -> int:
        """States, activations and the program itself."""
        return PROGRAM_BYTES + self.states + self.activations


def memory_by_zero_stage(config: RunConfig, ranks: int) -> list[RankMemory]:
    """Estimate the memory of one rank at ZeRO stages 0 to 3, without offload.

    DeepSpeed's own estimators assume weights and gradients of 16 bits; here they have 32.
    """
    precision = resolve_precision(this_device(), config.train.precision)
    activation_bytes = 2 if precision == "bf16" else 4
    rows, group_size = config.train.micro_batch, config.train.sequence_parallel_size
    activations = round(HEAP_FACTOR * step_bytes(config.model, rows, activation_bytes, group_size))
    weights, state = _parameter_counts(config)
    bucket = min(weights, BUCKET_VALUES)
    # Values that each rank has in full, and values that the ranks divide among them, by stage.
    replicated = [2 * weights + state, 2 * weights, weights + bucket, weights + bucket]
    sharded = [0, 2 * weights + state, 2 * weights + state, 3 * weights + state]
    return [
        RankMemory(FLOAT_BYTES * (full + part // ranks), activations)
        for full, part in zip(replicated, sharded, strict=True)
    ]


def checkpoint_bytes(config: RunConfig) -> int:
    """Estimate a checkpoint: two copies of the weights by DeepSpeed, optimizer state, and model."""
    weights, state = _parameter_counts(config)
    return FLOAT_BYTES * (3 * weights + state)


def _parameter_counts(config: RunConfig) -> tuple[int, int]:
    """N, and the number of values in the optimizer's state: one a parameter for Muon, else two."""
    with torch.device("meta"):
        model = Megabyte(config.model)
    weights = sum(p.numel() for p in model.parameters())
    by_muon = sum(p.numel() for p in hidden_matrices(model))
    return weights, 2 * weights - (by_muon if config.optimizer.name == "muon" else 0)

"""What a training step will hold in memory, before it runs.

N parameters    W ranks
"""

from __future__ import annotations

from dataclasses import dataclass

import torch

from bytelm.model.flops import step_bytes
from bytelm.model.megabyte import Megabyte
from bytelm.pipelines.config import RunConfig
from bytelm.pipelines.runtime.device import chosen_precision, this_device
from bytelm.pipelines.training.optimizer import hidden_matrices

FLOAT = 4
"""Bytes of a weight, a gradient and a number of the optimizer's state."""
PROGRAM = 900_000_000
"""Resident bytes of a rank without a model, as measured: Python, PyTorch, DeepSpeed and what they
load with the first steps."""
HEAP = 1.3
"""What the allocator takes for each byte of activations that is in use, as measured."""
BUCKET = 500_000_000
"""Numbers that DeepSpeed exchanges at once, unless its config says otherwise."""


@dataclass(frozen=True)
class Memory:
    """Bytes of one rank at the fullest moment of a step."""

    states: int
    """Weights, gradients, optimizer state and what ZeRO exchanges."""
    activations: int

    @property
    def total(self) -> int:
        """With the program itself."""
        return PROGRAM + self.states + self.activations


def memory(config: RunConfig, ranks: int) -> list[Memory]:
    """Of one rank at ZeRO stages 0 to 3, with the optimizer where the weights are.

    DeepSpeed's own estimators take weights and gradients for 16-bit numbers, which these are not.
    """
    precision = chosen_precision(this_device(), config.train.precision)
    number = 2 if precision == "bf16" else 4
    rows, shared = config.train.micro_batch, config.train.sequence_parallel_size
    activations = round(HEAP * step_bytes(config.model, rows, number, shared))
    numbers, state = _numbers(config)
    bucket = min(numbers, BUCKET)
    whole = [2 * numbers + state, 2 * numbers, numbers + bucket, numbers + bucket]
    parts = [0, 2 * numbers + state, 2 * numbers + state, 3 * numbers + state]
    return [
        Memory(FLOAT * (of_all + of_one // ranks), activations)
        for of_all, of_one in zip(whole, parts, strict=True)
    ]


def checkpoint_bytes(config: RunConfig) -> int:
    """Of a checkpoint: DeepSpeed's weights and their fp32 copy, optimizer, the exported model."""
    numbers, state = _numbers(config)
    return FLOAT * (3 * numbers + state)


def _numbers(config: RunConfig) -> tuple[int, int]:
    """N, and how many numbers the optimizer keeps."""
    with torch.device("meta"):
        model = Megabyte(config.model)
    numbers = sum(p.numel() for p in model.parameters())
    with_one = sum(p.numel() for p in hidden_matrices(model))
    return numbers, 2 * numbers - (with_one if config.optimizer.name == "muon" else 0)

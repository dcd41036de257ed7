"""An estimate of the memory that a rank needs for training, by ZeRO stage and offload.

The formulas count what DeepSpeed holds; `tests/training/test_memory_formula.py` holds them against
the memory that steps take.

N   parameters of the model        W   ranks
"""

from __future__ import annotations

from dataclasses import dataclass, replace

from bytelm.model.flops import Activations, activations
from bytelm.model.initialisation import model_without_weights
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
LIVE_VALUES = 1_000_000_000
"""Weights that ZeRO 3 keeps gathered at once by default."""
MUON_COPIES = 2.4
"""Measured copies of its matrices that Muon's step makes at ZeRO 0."""
MUON_SHARDED_COPIES = 3.0
"""Measured copies of a rank's part of the matrices that Muon's step makes under ZeRO 1 to 3."""


@dataclass(frozen=True)
class RankMemory:
    """Bytes of one rank on its device; `host` is what offload keeps in the machine's memory."""

    weights: int
    """Whole weights or this rank's part, and ZeRO's fp32 copy of the part."""
    gradients: int
    optimizer: int
    gathered: int
    """Weights of other ranks that are gathered at once (ZeRO 3)."""
    exchange: int
    """Buffers in which gradients are summed over ranks, at the end of the backward pass."""
    update: int
    """Temporaries of the optimizer's step."""
    activations: Activations
    are_gradients_held: bool
    """Whether there are gradients where a backward pass begins: those of the micro batch before."""
    host: int = 0

    def peak(self, heap_factor: float = 1.0) -> int:
        """The most that tensors take in a step: where a backward pass begins, or where it ends, or
        in the optimizer's step.

        Args:
            heap_factor: bytes of the allocator for each byte of activations.
        """
        held = self.weights + self.optimizer + self.gathered
        begin = round(heap_factor * self.activations.total)
        begin += self.gradients * self.are_gradients_held
        return held + max(begin, self.gradients + max(self.exchange, self.update))

    @property
    def total(self) -> int:
        """The peak in a process, with the program itself."""
        return PROGRAM_BYTES + self.peak(HEAP_FACTOR)


def memory_by_zero_stage(
    config: RunConfig, ranks: int, *, offload: bool = False
) -> list[RankMemory]:
    """Estimate the memory of one rank at ZeRO stages 0 to 3.

    DeepSpeed's own estimators assume weights and gradients of 16 bits; here they have 32.

    Args:
        offload: gradients and optimizer state are kept on the CPU, which only stages 2 and 3 do.
            Where the device is the CPU, the estimate is `peak` and `host` together.
    """
    precision = resolve_precision(this_device(), config.train.precision)
    number = 2 if precision == "bf16" else 4
    rows, group_size = config.train.micro_batch, config.train.sequence_parallel_size
    held = activations(config.model, rows, number, group_size)
    counts = _counts(config)
    is_accumulated = config.train.global_batch * group_size > rows * ranks
    by_stage = [held, held, held, replace(held, autocast_copies=0)]  # gathered in bf16
    return [
        stage(counts, ranks, number / FLOAT_BYTES, offload).bytes(held, is_accumulated)
        for stage, held in zip((_stage_0, _stage_1, _stage_2, _stage_3), by_stage, strict=True)
    ]


def checkpoint_bytes(config: RunConfig) -> int:
    """Estimate a checkpoint: two copies of the weights by DeepSpeed, optimizer state, and model."""
    counts = _counts(config)
    return FLOAT_BYTES * (3 * counts.weights + counts.state)


@dataclass(frozen=True)
class _Counts:
    """Numbers of values of the whole model."""

    weights: int
    by_muon: int
    """Values of the matrices that Muon trains."""
    state: int
    """Values of the optimizer's state: one a parameter for Muon, two for AdamW."""


def _counts(config: RunConfig) -> _Counts:
    model = model_without_weights(config.model)
    weights = sum(p.numel() for p in model.parameters())
    by_muon = 0
    if config.optimizer.name == "muon":
        by_muon = sum(p.numel() for p in hidden_matrices(model))
    return _Counts(weights, by_muon, 2 * weights - by_muon)


@dataclass(frozen=True)
class _Values:
    """`RankMemory` in fp32 values."""

    weights: float
    gradients: float
    optimizer: float
    exchange: float
    update: float
    gathered: float = 0.0
    host: float = 0.0
    are_gradients_held: bool = False

    def bytes(self, held: Activations, is_accumulated: bool) -> RankMemory:
        def size(values: float) -> int:
            return round(FLOAT_BYTES * values)

        return RankMemory(
            weights=size(self.weights),
            gradients=size(self.gradients),
            optimizer=size(self.optimizer),
            gathered=size(self.gathered),
            exchange=size(self.exchange),
            update=size(self.update),
            activations=held,
            are_gradients_held=self.are_gradients_held or is_accumulated,
            host=size(self.host),
        )


def _stage_0(counts: _Counts, ranks: int, number: float, offload: bool) -> _Values:
    """Everything on every rank; gradients are summed in copies of a bucket."""
    n = counts.weights
    update = MUON_COPIES * number * counts.by_muon
    return _Values(n, n, counts.state, exchange=min(n, BUCKET_VALUES), update=update)


def _stage_1(counts: _Counts, ranks: int, number: float, offload: bool) -> _Values:
    """The optimizer's state and its fp32 copy of the weights are divided."""
    n, part = counts.weights, counts.weights / ranks
    update = part + MUON_SHARDED_COPIES * number * counts.by_muon / ranks
    bucket = min(n, BUCKET_VALUES)
    return _Values(n + part, n, counts.state / ranks, exchange=bucket, update=update)


def _stage_2(counts: _Counts, ranks: int, number: float, offload: bool) -> _Values:
    """Gradients are divided too: those of a bucket are whole, and copied once to be summed."""
    n, part, state = counts.weights, counts.weights / ranks, counts.state / ranks
    bucket = min(n, BUCKET_VALUES)
    update = MUON_SHARDED_COPIES * number * counts.by_muon / ranks
    if offload:
        return _Values(n, 0, 0, exchange=2 * bucket, update=update, host=2 * part + state)
    update += 2 * part + bucket
    kept = (n - bucket) / ranks
    return _Values(n + part, kept, state, exchange=2 * bucket, update=update)


def _stage_3(counts: _Counts, ranks: int, number: float, offload: bool) -> _Values:
    """Weights are divided too; some are gathered at once."""
    n, part, state = counts.weights, counts.weights / ranks, counts.state / ranks
    bucket, gathered = min(n, BUCKET_VALUES), min(n, LIVE_VALUES)
    update = part + bucket + MUON_SHARDED_COPIES * number * counts.by_muon / ranks
    return _Values(
        weights=part if offload else 2 * part,
        gradients=part,
        optimizer=0 if offload else state,
        exchange=2 * bucket,
        update=update,
        gathered=gathered,
        host=2 * part + state if offload else 0,
        are_gradients_held=True,
    )

"""The statistics of one optimizer step: counted per rank and micro batch, then summed over ranks.

B   rows of a micro batch        L   ids in a row
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from bytelm.modalities import MODALITIES, framing
from bytelm.pipelines.data.batch import Batch, Damage, Origin


@dataclass(frozen=True)
class StepStatistics:
    """One optimizer step, over all ranks."""

    nats: float
    """-Σ log p of every scored id."""
    scored: int
    """Number of scored ids."""
    payload_nats: dict[str, float]
    """-Σ log p of the payload bytes of each modality."""
    payload_bytes: dict[str, int]
    """Number of payload bytes of each modality."""
    damage: list[Damage]
    """Pieces that were masked."""
    pad_ids: int
    """Number of PAD ids."""
    grad_norm: float
    """Norm of the gradient before clipping; NaN if the update was skipped."""
    lr: float
    """AdamW's learning rate."""
    is_applied: bool
    """False if loss or gradient was not finite and the update was skipped."""
    suspects: list[Origin]
    """Origins of a skipped update: the rows with nats that are not finite, or all rows."""

    @property
    def loss(self) -> float:
        """Nats per scored id."""
        return self.nats / max(1, self.scored)


def nats_by_modality(nats: Tensor, batch: Batch) -> Tensor:
    """Sum the nats [B, L] of all scored ids, and those of each modality's payload.

    Returns:
        [1 + modalities] float64 on the CPU.
    """
    values = nats.to("cpu", torch.float64)
    masks = [batch.scored, *_payload_masks(batch)]
    return torch.stack([values[mask].sum() for mask in masks])


def count_ids(batches: Sequence[Batch]) -> Tensor:
    """Count the payload bytes of each modality, and the PAD ids, [modalities + 1] int64."""
    counts = torch.zeros(len(MODALITIES) + 1, dtype=torch.int64)
    for batch in batches:
        masks = [*_payload_masks(batch), batch.ids == framing.PAD]
        counts += torch.stack([mask.sum() for mask in masks])
    return counts


def finite_rows(nats: Tensor, batch: Batch) -> list[bool]:
    """Return for each row whether the nats [B, L] of all its scored ids are finite."""
    return (nats.cpu().isfinite() | ~batch.scored).all(1).tolist()


def _payload_masks(batch: Batch) -> list[Tensor]:
    """[B, L] bool of each modality: its payload bytes."""
    return [batch.payload & (batch.modality == m.code) for m in MODALITIES.values()]

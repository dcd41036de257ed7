"""A batch of rows as tensors."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

FILLER_DOCUMENT = -1
FRAME, PAYLOAD = 1, 2


@dataclass(frozen=True)
class Origin:
    """Where a row came from: its set and shard, and the ordinals in it of its documents."""

    set: str
    shard: str
    documents: tuple[int, ...]


@dataclass(frozen=True)
class Damage:
    """A piece whose stored bytes were not what the index says; it is PAD in its own place."""

    cause: str
    size: int
    """Payload bytes that the batch lacks."""


@dataclass
class Batch:
    """Rows as tensors."""

    ids: Tensor
    """[B, L] uint16."""
    patch_modality: Tensor
    """[B, L/P] uint8, the modality's code of each patch; 0 on filler."""
    document: Tensor
    """[B, L/P] int32, which document of its row each patch belongs to; -1 on filler."""
    role: Tensor
    """[B, L] uint8: 0 not scored (PAD, preambles of further pieces), FRAME scored framing,
    PAYLOAD a payload byte."""
    origins: list[Origin | None]
    """Of each row; None of filler."""
    damage: list[Damage]
    codec_features: Tensor | None = None
    """[B, L, J] int16 of `model/hints.py`, where the loader was asked for them."""

    def inputs(self, device: torch.device) -> tuple[Tensor, Tensor, Tensor, Tensor | None]:
        """What `Megabyte.forward` reads, on a device: ids, document, modality and hints."""
        codec_features = (
            None
            if self.codec_features is None
            else self.codec_features.to(device, non_blocking=True)
        )
        return (
            self.ids.to(device, non_blocking=True).long(),
            self.document.to(device, non_blocking=True),
            self.modality.to(device, non_blocking=True),
            codec_features,
        )

    @property
    def modality(self) -> Tensor:
        """[B, L] uint8, the modality's code; 0 on filler."""
        patch = self.ids.shape[1] // self.patch_modality.shape[1]
        return self.patch_modality.repeat_interleave(patch, dim=1)

    @property
    def scored(self) -> Tensor:
        """[B, L] bool, ids that the loss counts."""
        return self.role > 0

    @property
    def payload(self) -> Tensor:
        """[B, L] bool, payload bytes."""
        return self.role == PAYLOAD

    def pin_memory(self) -> Batch:
        """The same batch in page-locked memory, for copies to a GPU."""
        return Batch(
            self.ids.pin_memory(),
            self.patch_modality.pin_memory(),
            self.document.pin_memory(),
            self.role.pin_memory(),
            self.origins,
            self.damage,
            None if self.codec_features is None else self.codec_features.pin_memory(),
        )

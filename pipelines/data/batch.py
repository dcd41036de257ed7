"""A batch of framed rows as tensors.

B rows of a batch    L ids in a row    P ids in a patch    J codec features of an id
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from bytelm.modalities.framing import PAYLOAD, UNSCORED


@dataclass(frozen=True)
class Origin:
    """The set and shard that a row came from, and the ordinals of its documents in the shard."""

    set: str
    shard: str
    documents: tuple[int, ...]


@dataclass(frozen=True)
class Damage:
    """A span whose stored bytes do not match the index; PAD fills its positions."""

    cause: str
    size: int
    """Payload bytes that the batch lacks."""


@dataclass
class Batch:
    """Rows as tensors."""

    ids: Tensor
    """[B, L] uint16."""
    patch_modality: Tensor
    """[B, L/P] uint8, code of each patch's modality; 0 on padding."""
    document: Tensor
    """[B, L/P] int32, ordinal of each patch's document in its row; PADDING_DOCUMENT on padding."""
    role: Tensor
    """[B, L] uint8: UNSCORED, FRAME or PAYLOAD of `modalities.framing`."""
    origins: list[Origin | None]
    """[B] origin of each row; None for a row of padding."""
    damage: list[Damage]
    """Damaged spans of all rows."""
    codec_features: Tensor | None = None
    """[B, L, J] int16 of `model.codec_features`, if the loader was asked for them."""

    def inputs(self, device: torch.device) -> tuple[Tensor, Tensor, Tensor, Tensor | None]:
        """Inputs of `Megabyte.forward` on a device: ids, document, modality, codec features."""
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
        """[B, L] uint8, code of each id's modality; 0 on padding."""
        patch = self.ids.shape[1] // self.patch_modality.shape[1]
        return self.patch_modality.repeat_interleave(patch, dim=1)

    @property
    def scored(self) -> Tensor:
        """[B, L] bool, whether the loss counts an id."""
        return self.role != UNSCORED

    @property
    def payload(self) -> Tensor:
        """[B, L] bool, whether an id is a payload byte."""
        return self.role == PAYLOAD

    def pin_memory(self) -> Batch:
        """Copy the tensors to page-locked memory, from which a GPU copies asynchronously."""
        return Batch(
            self.ids.pin_memory(),
            self.patch_modality.pin_memory(),
            self.document.pin_memory(),
            self.role.pin_memory(),
            self.origins,
            self.damage,
            None if self.codec_features is None else self.codec_features.pin_memory(),
        )

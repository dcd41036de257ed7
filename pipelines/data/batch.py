"""A batch of framed rows as tensors.

B rows of a batch    L ids in a row    P ids in a patch    J codec features of an id
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from bytelm.modalities.framing import PAYLOAD, UNSCORED
from bytelm.model.layout import Layout

ModelInputs = tuple[Tensor, Tensor, Tensor, Tensor | None, Layout | None]
"""ids, document, modality, codec features and layout, as `Megabyte.forward` takes them."""


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
    layout: Layout | None = None
    """Order of the patches by document, as the model runs them; the loader makes it."""
    targets: Tensor | None = None
    """[B, L] uint16, the true ids where `ids` have noise; None where they have none."""

    def inputs(self, device: torch.device) -> ModelInputs:
        """Inputs of `Megabyte.forward` on a device, copied without a wait from pinned memory."""
        on_device = self.to(device)
        return (
            on_device.ids.long(),
            on_device.document,
            on_device.modality,
            on_device.codec_features,
            on_device.layout,
        )

    def to(self, device: torch.device) -> Batch:
        """The batch with its tensors on a device, copied without a wait from pinned memory."""
        return self._with(lambda x: x.to(device, non_blocking=True))

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
        return self._with(Tensor.pin_memory)

    def _with(self, moved: Callable[[Tensor], Tensor]) -> Batch:
        """The batch with every tensor `moved`."""
        return Batch(
            moved(self.ids),
            moved(self.patch_modality),
            moved(self.document),
            moved(self.role),
            self.origins,
            self.damage,
            None if self.codec_features is None else moved(self.codec_features),
            None if self.layout is None else self.layout.map(moved),
            None if self.targets is None else moved(self.targets),
        )

"""Codec features of rows that are read id by id, as a decoder needs them.

They equal those of whole rows (`vectorized`), where they are described.

Shapes:
    B rows    n ids of one row    J = FEATURES
"""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from bytelm.model.codec_features.kernels import (
    NO_DOCUMENTS,
    NO_PLACES,
    compile_kernels,
    push_ids,
    read_row,
    write_places,
)
from bytelm.model.codec_features.layout import FEATURES, PLACES
from bytelm.model.codec_features.state import new_state


class BatchFeatures:
    """Codec features of the next id of each of `batch` rows, from the ids pushed so far.

    Args:
        batch: B.
        patch: P of the model.
        length: the most ids that a row takes.
    """

    def __init__(self, batch: int, patch: int, length: int) -> None:
        compile_kernels()
        self.state = new_state(batch, patch, length)
        """Arrays that other kernels may hand to `kernels.push_id`."""
        self._arrays = tuple(self.state)
        self._new_ids = torch.zeros(batch, dtype=torch.int64)
        self._new_ids_array = self._new_ids.numpy()

    def push(self, ids: Tensor) -> None:
        """Take the next id of every row, [B]; one of a full row raises AssertionError."""
        self._new_ids.copy_(ids)  # from any device, in less time than `Tensor.numpy` takes
        push_ids(self._arrays, self._new_ids_array)

    def push_row(self, row: int, ids: Tensor) -> None:
        """Take the next ids of one row, [n]."""
        features = np.empty((len(ids), FEATURES), np.int16)
        read_row(self.state, row, ids.cpu().contiguous().numpy(), NO_DOCUMENTS, features, NO_PLACES)

    def places(self) -> Tensor:
        """Places of the next ids in their payloads, [B, PLACES] int32, on the CPU."""
        places = torch.empty(len(self.state.rows), PLACES, dtype=torch.int32)
        write_places(self.state, places.numpy())
        return places

    def features(self) -> Tensor:
        """[B, J] int16, on the CPU; the next push writes into them."""
        return torch.from_numpy(self.state.features)

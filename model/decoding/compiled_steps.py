"""Steps of the decoder by one compiled kernel, in fp32 on a CPU.

Shapes:
    B   rows of the decoder
    m   positions in a sequence of a stage    r   positions of the preceding one that count
    H   heads of c channels                   V   vocabulary
"""

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from bytelm.model.decoding.decoded_rows import DecodedRows
from bytelm.model.decoding.kv_cache import CacheSlots, KVCache
from bytelm.model.decoding.step_kernel import BUFFERS, advance_rows
from bytelm.model.decoding.step_layout import StepLayout
from bytelm.model.megabyte import Megabyte
from bytelm.model.numba_kernels import compiling


class CompiledSteps:
    """All stages of a model for new positions of B rows.

    Args:
        model: in fp32 on a CPU; its weights are copied as they are.
        rows: what the rows hold; a step appends to it.
        length: the most ids of a row.
        slots: of the caches of each stage.
    """

    def __init__(
        self, model: Megabyte, rows: DecodedRows, length: int, slots: Sequence[CacheSlots]
    ) -> None:
        batch = len(rows.held)
        self._rows = rows
        self._layout = StepLayout(model, batch, length, slots)
        self._all_rows = np.arange(batch)
        self._ids, self._cache = rows.ids.numpy(), self._layout.cache.numpy()
        self._buffers = np.empty((BUFFERS, self._layout.buffer_numbers), np.float32)
        self._active = np.empty(batch, np.int64)
        self._vocab_size = model.config.vocab_size
        with compiling():
            self._advance(self._all_rows[:0], rows.modality, torch.empty(batch, self._vocab_size))

    def kv_caches(self, index: int, row: int) -> list[KVCache]:
        """The row's keys and values in each block of stage `index`, views of [H, r + m, c]."""
        return self._layout.kv_caches(index, row)

    def set_parent_output(self, index: int, output: Tensor, row: int) -> None:
        """Keep the output [1, width] of the parent of stage `index`, for a row's new sequence."""
        self._layout.set_parent_output(index, output, row)

    def step(self, new_ids: Tensor) -> Tensor:
        """Append an id to each row, [B] int64; returns the logits of the next ones, [B, V]."""
        self._rows.push_features(new_ids)
        logits = torch.empty(len(new_ids), self._vocab_size)
        self._advance(self._all_rows, new_ids, logits)
        return logits

    def _advance(self, numbers: npt.NDArray[np.int64], new_ids: Tensor, logits: Tensor) -> None:
        """Run the kernel for some of the rows."""
        rows, layout = self._rows, self._layout
        advance_rows(
            numbers,
            new_ids.numpy(),
            rows.held,
            self._ids,
            rows.lookback,
            rows.modality.numpy(),
            rows.codec_features(),
            layout.weights,
            layout.rotations,
            layout.stages,
            layout.blocks,
            layout.heads,
            self._cache,
            self._buffers,
            self._active,
            logits.numpy(),
        )

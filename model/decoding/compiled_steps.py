"""Steps of the decoder by one compiled kernel, in fp32 on a CPU.

Shapes:
    B   rows of the decoder
    m   positions in a sequence of a stage    r   positions of the preceding one that count
    H   heads of c channels                   V   vocabulary
"""

from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from bytelm.model.decoding.decoded_rows import DecodedRows
from bytelm.model.decoding.kv_cache import CacheSlots, KVCache
from bytelm.model.decoding.step_kernel import BUFFERS, advance_rows
from bytelm.model.decoding.step_layout import StepLayout
from bytelm.model.decoding.step_records import Step
from bytelm.model.flops import costs
from bytelm.model.megabyte import Megabyte
from bytelm.model.numba_kernels import compiling

PART_FLOPS = 2**24
"""Fewest FLOPs of a step, on average, for which a thread is worth its start: some 200 us."""


class CompiledSteps:
    """All stages of a model for new positions of B rows.

    A step of many rows of a large model is split by rows over PyTorch's number of threads. A row
    is computed in the same order wherever it runs.

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
        self._ids, self._cache = rows.ids.numpy(), self._layout.cache.numpy()
        self._vocab_size = model.config.vocab_size
        flops = batch * sum(cost.products for cost in costs(model.config))
        threads = max(1, min(torch.get_num_threads(), batch, int(flops / PART_FLOPS)))
        split = np.array_split(np.arange(batch), threads)
        self._parts = [_Part(part, self._layout) for part in split]
        self._threads = ThreadPoolExecutor(threads - 1) if threads > 1 else None
        with compiling():
            nothing = _Part(np.arange(0), self._layout)
            self._advance(nothing, rows.modality, np.empty((batch, self._vocab_size), np.float32))

    def kv_caches(self, index: int, row: int) -> list[KVCache]:
        """The row's keys and values in each block of stage `index`, views of [H, r + m, c]."""
        return self._layout.kv_caches(index, row)

    def set_parent_output(self, index: int, output: Tensor, row: int) -> None:
        """Keep the output [1, width] of the parent of stage `index`, for a row's new sequence."""
        self._layout.set_parent_output(index, output, row)

    def step(self, new_ids: Tensor) -> Tensor:
        """Append an id to each row, [B] int64; returns the logits of the next ones, [B, V]."""
        self._rows.push_features(new_ids)
        ids = new_ids.contiguous().numpy()
        logits = np.empty((len(ids), self._vocab_size), np.float32)
        first, *others = self._parts
        running = []
        if self._threads is not None:
            submit = self._threads.submit
            running = [submit(self._advance, part, ids, logits) for part in others]
        self._advance(first, ids, logits)
        for part in running:
            part.result()
        return torch.from_numpy(logits)

    def _advance(
        self, part: "_Part", new_ids: npt.NDArray[np.int64], logits: npt.NDArray[np.float32]
    ) -> None:
        """Run the kernel for some of the rows."""
        rows, layout = self._rows, self._layout
        step = Step(
            layout.weights,
            layout.bf16_weights,
            layout.rotations,
            layout.stages,
            layout.blocks,
            layout.heads,
            self._cache,
            part.buffers,
            rows.held,
            self._ids,
            rows.lookback,
            rows.modality,
            rows.codec_features(),
        )
        advance_rows(step, part.rows, new_ids, part.active, logits)


class _Part:
    """Rows [R] that one thread advances, and the space that the kernel takes for them."""

    def __init__(self, rows: npt.NDArray[np.int64], layout: StepLayout) -> None:
        self.rows = rows
        self.active = np.empty_like(rows)
        # PyTorch's memory begins at a multiple of 64 bytes: no vector straddles two cache lines.
        self.buffers = torch.empty(BUFFERS, layout.buffer_numbers(len(rows))).numpy()

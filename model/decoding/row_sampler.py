"""Drawing the next byte of rows that are drawn together: guides, random numbers and ends of rows.

Shapes:
    B   rows                     V   ids
    S   states of a guide        A   bytes of room that a guide tells apart, and more: 0 to A - 1
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from bytelm.model.decoding.sampling import (
    NOISE_BLOCK,
    Noise,
    Sampling,
    sample_by_tensors,
)
from bytelm.model.decoding.sampling_kernel import draw_rows, follow_guide

BYTES = 256
"""Ids below this are bytes; a guide's other ids end a row."""


@dataclass(frozen=True)
class GuideTables:
    """An automaton over bytes that says which ids may come next."""

    allowed: Tensor
    """[S, A, V] bool, in a state and with room for so many bytes."""
    next: Tensor
    """[S, 256] int64, the state after a byte."""
    start: int
    """The state in which rows start."""

    @classmethod
    def of_bytes(cls, vocab_size: int) -> GuideTables:
        """Any byte while there is room, and then the end."""
        allowed = torch.zeros(1, 2, vocab_size, dtype=torch.bool)
        allowed[0, 1, :BYTES] = True
        allowed[0, 0, BYTES] = True
        return cls(allowed, torch.zeros(1, BYTES, dtype=torch.int64), 0)


class RowSampler:
    """Draws the next byte of every row from logits.

    All that changes lies in tensors that stay where they are, and `draw_static` waits for nothing,
    so that a GPU can replay it. `supply_noise` goes before each of its calls.

    Args:
        sampling: settings of the draws.
        seeds: of each row; its random numbers depend on its seed alone.
        guide: of all rows.
        room: bytes that each row may still have.
    """

    def __init__(
        self,
        sampling: Sampling,
        seeds: Sequence[int],
        guide: GuideTables,
        room: Sequence[int],
        device: torch.device,
    ) -> None:
        self._sampling = sampling
        self._allowed, self._next_state = guide.allowed.to(device), guide.next.to(device)
        self._state = torch.full((len(seeds),), guide.start, device=device)  # [B]
        self._room = torch.tensor(room, device=device)  # [B], 0 for rows that have ended
        self.drawn = torch.zeros(len(seeds), dtype=torch.int64, device=device)
        """[B], bytes drawn so far in each row before its end."""
        self._noise = Noise(seeds, torch.device("cpu"))
        self._block = torch.zeros(NOISE_BLOCK, len(seeds), dtype=torch.float64, device=device)
        self._number = torch.zeros(1, dtype=torch.int64, device=device)
        """Random numbers of the block that were used, on the device."""
        self._left = 0
        """Random numbers of the block that were not used, on the host."""
        self._arrays = _HostArrays(self) if device.type == "cpu" else None

    def draw(self, logits: Tensor) -> Tensor:
        """The next byte of every row [B] int64, from logits [B, V]; any byte in rows that ended."""
        self.supply_noise()
        if self._arrays is None:
            return self.draw_static(logits)
        return torch.from_numpy(self._arrays.draw(logits.numpy(), NOISE_BLOCK - 1 - self._left))

    def supply_noise(self) -> None:
        """Make sure that the device has a random number of each row for the next draw."""
        if self._left == 0:
            numbers = torch.stack([self._noise.draw() for _ in range(NOISE_BLOCK)])
            if self._block.device.type == "cuda":  # from page-locked memory nobody waits for a copy
                numbers = numbers.pin_memory()
            self._block.copy_(numbers, non_blocking=True)
            self._number.zero_()
            self._left = NOISE_BLOCK
        self._left -= 1

    def draw_static(self, logits: Tensor) -> Tensor:
        """`draw`, with a random number that is there already."""
        allowed = self._allowed[self._state, self._room.clamp(max=self._allowed.shape[1] - 1)]
        noise = self._block.index_select(0, self._number)[0]
        self._number += 1
        ids = sample_by_tensors(logits, self._sampling, noise, allowed)
        is_byte = ids < BYTES
        ids = ids.clamp(max=BYTES - 1)
        self.drawn += is_byte
        self._room.sub_(1).mul_(is_byte)
        self._state.copy_(self._next_state[self._state, ids])
        return ids


class _HostArrays:
    """A sampler's tensors on a CPU as the arrays that kernels take.

    To make these at each draw takes PyTorch ten times as long as drawing an id.
    """

    def __init__(self, sampler: RowSampler) -> None:
        self._limits = sampler._sampling.limits()
        self._allowed = sampler._allowed.contiguous().numpy()
        self._next_state = sampler._next_state.contiguous().numpy()
        self._state, self._room = sampler._state.numpy(), sampler._room.numpy()
        self._drawn, self._block = sampler.drawn.numpy(), sampler._block.numpy()
        rows, vocab_size = len(self._state), self._allowed.shape[2]
        self._values = np.empty((rows, vocab_size))
        self._is_taken = np.empty(vocab_size, np.bool_)

    def draw(self, logits: npt.NDArray[np.floating], number: int) -> npt.NDArray[np.int64]:
        """`RowSampler.draw` with the random numbers `number` of the block."""
        ids = np.empty(len(logits), np.int64)
        self._values[:] = logits
        draw_rows(
            self._values,
            self._allowed,
            self._state,
            self._room,
            self._block[number],
            *self._limits,
            self._is_taken,
            ids,
        )
        follow_guide(self._next_state, ids, self._state, self._room, self._drawn)
        return ids

"""Drawing ids on the device: guides, random numbers and ends of rows, without a wait for the host.

Shapes:
    B   rows                     V   ids
    S   states of a guide        A   bytes of room that a guide tells apart, and more: 0 to A - 1
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from bytelm.model.decoding.sampling import Noise, Sampling, sample

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
        """Any byte while there is room, and then the id after the last byte."""
        allowed = torch.zeros(1, 2, vocab_size, dtype=torch.bool)
        allowed[0, 1, :BYTES] = True
        allowed[0, 0, BYTES] = True
        return cls(allowed, torch.zeros(1, BYTES, dtype=torch.int64), 0)


class StaticSampler:
    """Draws the next id of every row from logits; all that changes lies in tensors that stay.

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
        self._device = device
        self._allowed, self._next_state = guide.allowed.to(device), guide.next.to(device)
        self._state = torch.full((len(seeds),), guide.start, device=device)  # [B]
        self._room = torch.tensor(room, device=device)  # [B], 0 for rows that have ended
        self.drawn = torch.zeros(len(seeds), dtype=torch.int64, device=device)
        """[B], bytes drawn so far in each row before its end."""
        self._noise = Noise(seeds, torch.device("cpu"))
        self._block = torch.zeros(0, len(seeds), dtype=torch.float64, device=device)
        self._number = torch.zeros(1, dtype=torch.int64, device=device)
        """Random numbers of the block that were used."""
        self._left = 0

    def supply_noise(self, block: int) -> None:
        """Make sure that there is a random number of each row for the next draw.

        Args:
            block: numbers of a row that are sent to the device at once, the same in each call.
        """
        if self._left == 0 and self._sampling.temperature > 0.0:
            numbers = torch.stack([self._noise.draw() for _ in range(block)])
            if self._device.type == "cuda":  # a copy from page-locked memory keeps nobody waiting
                numbers = numbers.pin_memory()
            if len(self._block) == 0:
                self._block = torch.empty_like(numbers, device=self._device)
            self._block.copy_(numbers, non_blocking=True)
            self._number.zero_()
            self._left = block
        self._left -= 1

    def draw(self, logits: Tensor) -> Tensor:
        """The next byte of every row [B] int64, from logits [B, V]; any byte in rows that ended."""
        allowed = self._allowed[self._state, self._room.clamp(max=self._allowed.shape[1] - 1)]
        noise = self._room.double()  # not read at temperature 0
        if self._sampling.temperature > 0.0:
            noise = self._block.index_select(0, self._number)[0]
            self._number += 1
        ids = sample(logits, self._sampling, noise, allowed)
        is_byte = ids < BYTES
        ids = ids.clamp(max=BYTES - 1)
        self.drawn += is_byte
        self._room.sub_(1).mul_(is_byte)
        self._state.copy_(self._next_state[self._state, ids])
        return ids

"""Bring the parts of matrices that ZeRO spread over the ranks together, and send results back.

Each rank holds one flat tensor with its part of M matrices. Every matrix has an owner: the rank
that holds most of it, and among equals the one with the least work so far. Parts travel to the
owner and back in one all-to-all each; the parts that an owner holds itself stay with it.

    M   matrices        W   ranks
    m   rows of a matrix        n   columns of a matrix
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import torch
import torch.distributed as dist
from torch import Tensor


class MatrixShards:
    """The layout of M matrices over the flat tensors of W ranks, seen from one rank."""

    def __init__(
        self,
        shapes: Sequence[torch.Size],
        counts: Tensor,
        starts: Sequence[int],
        rank: int,
        device: torch.device,
    ) -> None:
        """
        Args:
            shapes: [m, n] of each matrix.
            counts: [W, M] int64, how many elements of each matrix each rank holds; the parts of a
                matrix follow one another by rank.
            starts: offset of this rank's part of each matrix in its flat tensor.
            device: on which matrices are exchanged and computed.
        """
        self.shapes = shapes
        self.rank = rank
        self.device = device
        self.counts = counts
        self._starts = starts
        owners = _owners(shapes, counts)
        ranks = range(len(counts))
        self._owned_by = [[i for i, owner in enumerate(owners) if owner == r] for r in ranks]
        self._owned_here = self._owned_by[rank]
        self._send_sizes = [int(counts[rank, self._owned_by[r]].sum()) for r in ranks]
        self._receive_sizes = [int(counts[r, self._owned_here].sum()) for r in ranks]

    @classmethod
    def from_flat_partition(
        cls, shapes: Sequence[torch.Size], size: int, ranks: int, rank: int, device: torch.device
    ) -> MatrixShards:
        """The layout of ZeRO 1 and 2: matrices laid end to end, then cut into parts of `size`."""
        sizes = torch.tensor([math.prod(shape) for shape in shapes])  # [M]
        ends = sizes.cumsum(0)
        begins = ends - sizes
        part_begin = torch.arange(ranks)[:, None] * size  # [W, 1]
        low = begins.clamp(min=part_begin)  # [W, M]
        counts = (ends.clamp(max=part_begin + size) - low).clamp(min=0)
        starts = (low[rank] - part_begin[rank]).clamp(max=size)
        return cls(shapes, counts, starts.tolist(), rank, device)

    @classmethod
    def from_padded_parts(
        cls, shapes: Sequence[torch.Size], ranks: int, rank: int, device: torch.device
    ) -> MatrixShards:
        """The layout of ZeRO 3: each matrix cut into W equal parts, the last ones padded."""
        sizes = torch.tensor([math.prod(shape) for shape in shapes])  # [M]
        part_sizes = -(-sizes // ranks)
        begins = torch.arange(ranks)[:, None] * part_sizes  # [W, M]
        counts = (sizes - begins).clamp(min=0).minimum(part_sizes)
        return cls(shapes, counts, (part_sizes.cumsum(0) - part_sizes).tolist(), rank, device)

    def local_parts(self, flat: Tensor) -> list[Tensor]:
        """Return this rank's part of each matrix, as a view of its flat tensor."""
        counts = self.counts[self.rank].tolist()
        return [
            flat[start : start + count] for start, count in zip(self._starts, counts, strict=True)
        ]

    def map_whole_matrices(
        self, function: Callable[[list[Tensor]], list[Tensor]], flat: Tensor
    ) -> list[Tensor]:
        """Apply a function to whole matrices, and return this rank's part of each result.

        Every rank has to call it.

        Args:
            function: takes the matrices that one rank owns, and keeps shapes and dtype.
            flat: this rank's tensor.
        """
        local = flat.to(self.device)
        results = function(self._gather_owned(local))
        return [part.to(flat.device) for part in self._return_results(results, local[:0])]

    def _gather_owned(self, flat: Tensor) -> list[Tensor]:
        """The matrices [m, n] that this rank owns, put together from the parts of all ranks."""
        parts = self.local_parts(flat)
        outgoing = torch.cat([flat[:0], *(parts[i] for owned in self._owned_by for i in owned)])
        parts_by_rank = [
            received.split(self.counts[rank, self._owned_here].tolist())
            for rank, received in enumerate(
                _exchange(outgoing, self._send_sizes, self._receive_sizes)
            )
        ]
        return [
            torch.cat(parts_of_one).view(self.shapes[i])
            for i, parts_of_one in zip(
                self._owned_here, zip(*parts_by_rank, strict=True), strict=True
            )
        ]

    def _return_results(self, results: list[Tensor], empty: Tensor) -> list[Tensor]:
        """This rank's part of each matrix's result, which its owner computed."""
        parts_by_matrix = [
            result.flatten().split(self.counts[:, i].tolist())
            for i, result in zip(self._owned_here, results, strict=True)
        ]
        outgoing = [part for of_rank in zip(*parts_by_matrix, strict=True) for part in of_rank]
        incoming = _exchange(torch.cat([empty, *outgoing]), self._receive_sizes, self._send_sizes)
        parts: dict[int, Tensor] = {}
        for owned, received in zip(self._owned_by, incoming, strict=True):
            counts = self.counts[self.rank, owned].tolist()
            parts |= zip(owned, received.split(counts), strict=True)
        return [parts[i] for i in range(len(self.shapes))]


def _owners(shapes: Sequence[torch.Size], counts: Tensor) -> list[int]:
    """The rank that computes each matrix, balanced by the cost of the iteration, m n min(m, n)."""
    work = [0] * len(counts)
    owners = []
    for shape, count_by_rank in zip(shapes, counts.T.tolist(), strict=True):
        most = max(count_by_rank)
        candidates = (rank for rank, count in enumerate(count_by_rank) if count == most)
        owner = min(candidates, key=lambda rank: work[rank])
        work[owner] += math.prod(shape) * min(shape)
        owners.append(owner)
    return owners


def _exchange(outgoing: Tensor, send_sizes: list[int], receive_sizes: list[int]) -> list[Tensor]:
    """Send a number of elements to each rank; returns what each rank sent to this one."""
    incoming = outgoing.new_empty(sum(receive_sizes))
    dist.all_to_all_single(incoming, outgoing, receive_sizes, send_sizes)
    return list(incoming.split(receive_sizes))

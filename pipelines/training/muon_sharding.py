"""How ZeRO cuts matrices over ranks, and how each gets to one rank and back."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import torch
import torch.distributed as dist
from torch import Tensor


class Slices:
    """How M matrices lie in a flat tensor of which every rank holds its own part.

    Each matrix has an owner, the rank that holds most of it, or the least busy of those.
    """

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
            counts: [W, M] int64, the elements of each matrix that each rank holds, one rank's
                after another's.
            starts: where this rank's elements of each matrix lie in its tensor.
            device: where matrices are sent and made orthogonal.
        """
        self.shapes = shapes
        self.rank = rank
        self.device = device
        self.counts = counts
        self._starts = starts
        self._owners = _owners(shapes, counts)
        ranks = range(len(counts))
        self._of = [[i for i, owner in enumerate(self._owners) if owner == r] for r in ranks]
        self._own = self._of[rank]
        self._sent = [int(counts[rank, self._of[r]].sum()) for r in ranks]
        self._received = [int(counts[r, self._own].sum()) for r in ranks]

    @classmethod
    def of_sequence(
        cls, shapes: Sequence[torch.Size], size: int, ranks: int, rank: int, device: torch.device
    ) -> Slices:
        """ZeRO 1 and 2: the matrices lie one after another; rank r has elements r * size on."""
        sizes = torch.tensor([math.prod(s) for s in shapes])
        ends = sizes.cumsum(0)
        begins = ends - sizes
        first = torch.arange(ranks)[:, None] * size
        low = begins.clamp(min=first)  # [W, M]
        counts = (ends.clamp(max=first + size) - low).clamp(min=0)
        starts = (low[rank] - first[rank]).clamp(max=size)
        return cls(shapes, counts, starts.tolist(), rank, device)

    @classmethod
    def of_each(
        cls, shapes: Sequence[torch.Size], ranks: int, rank: int, device: torch.device
    ) -> Slices:
        """ZeRO 3: every matrix is cut into W parts, the last ones padded; each rank has one."""
        sizes = torch.tensor([math.prod(s) for s in shapes])
        parts = -(-sizes // ranks)
        first = torch.arange(ranks)[:, None] * parts
        counts = (sizes - first).clamp(min=0).minimum(parts)
        return cls(shapes, counts, (parts.cumsum(0) - parts).tolist(), rank, device)

    def parts(self, flat: Tensor) -> list[Tensor]:
        """This rank's elements of each matrix, as views of its tensor."""
        counts = self.counts[self.rank].tolist()
        return [flat[at : at + n] for at, n in zip(self._starts, counts, strict=True)]

    def on_whole_matrices(
        self, function: Callable[[list[Tensor]], list[Tensor]], flat: Tensor
    ) -> list[Tensor]:
        """This rank's elements of each matrix of function(matrices), which keeps shapes and types.

        flat: this rank's tensor. Every rank has to call it.
        """
        nothing = flat.to(self.device)[:0]
        parts = self.parts(flat.to(self.device))
        sent = torch.cat([nothing, *(parts[i] for of_rank in self._of for i in of_rank)])
        received = _exchange(sent, self._sent, self._received)
        pieces = [r.split(self.counts[k, self._own].tolist()) for k, r in enumerate(received)]
        matrices = [
            torch.cat(of_matrix).view(self.shapes[i])
            for i, of_matrix in zip(self._own, zip(*pieces, strict=True), strict=True)
        ]
        cut = [
            matrix.flatten().split(self.counts[:, i].tolist())
            for i, matrix in zip(self._own, function(matrices), strict=True)
        ]
        sent = torch.cat(
            [nothing, *(piece for of_rank in zip(*cut, strict=True) for piece in of_rank)]
        )
        result: dict[int, Tensor] = {}
        for of_rank, part in zip(
            self._of, _exchange(sent, self._received, self._sent), strict=True
        ):
            counts = self.counts[self.rank, of_rank].tolist()
            result |= zip(of_rank, part.to(flat.device).split(counts), strict=True)
        return [result[i] for i in range(len(self.shapes))]


def _owners(shapes: Sequence[torch.Size], counts: Tensor) -> list[int]:
    """The rank that makes each matrix orthogonal."""
    work = [0] * len(counts)
    owners = []
    for shape, held in zip(shapes, counts.T.tolist(), strict=True):
        most = max(held)
        owner = min((r for r, n in enumerate(held) if n == most), key=lambda r: work[r])
        work[owner] += math.prod(shape) * min(shape)
        owners.append(owner)
    return owners


def _exchange(sent: Tensor, to: list[int], from_: list[int]) -> list[Tensor]:
    """Send so many elements to each rank, and get what each has sent here."""
    received = sent.new_empty(sum(from_))
    dist.all_to_all_single(received, sent, from_, to)
    return list(received.split(from_))

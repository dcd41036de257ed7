"""Rows over several ranks: each has some of the patches, and for attention all patches of some of
the heads (DeepSpeed-Ulysses, arXiv 2309.14509).

Shapes:
    W   ranks that share rows
    S   positions of stage 0 (patches) laid flat; a rank has S / W of them, in their order
    H   heads, each of c channels; for attention a rank has H / W of them
    D   width of stage 0

Stages below stage 0 run where their patch is, so that only stage 0 sends anything: twice for a
layer's attention, and a position for what crosses the border of two ranks.
"""

from dataclasses import dataclass
from typing import Any

import torch
import torch.distributed as dist
from einops import rearrange
from torch import Tensor
from torch.autograd.function import once_differentiable

from bytelm.model.attention_context import PackedContext


class _Exchange(torch.autograd.Function):
    """Part i of x [W, ...] goes to rank i, and part i of the result came from there."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, group: dist.ProcessGroup) -> Tensor:
        ctx.group = group
        received = torch.empty(x.shape, dtype=x.dtype, device=x.device)
        dist.all_to_all_single(received, x.contiguous(), group=group)
        return received

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None]:
        sent = torch.empty(gradient.shape, dtype=gradient.dtype, device=gradient.device)
        dist.all_to_all_single(sent, gradient.contiguous(), group=ctx.group)
        return sent, None


@dataclass(frozen=True)
class SequenceParallel:
    """The W ranks that share rows, which call everything here together."""

    group: dist.ProcessGroup
    ranks: int
    rank: int

    def own(self, positions: int, before: int = 0) -> Tensor:
        """The indices of this rank's part of S `positions`, and of so many `before` them, [n].

        Rank 0 takes the last ones for those before its own: all ranks have equally many.
        """
        assert positions % self.ranks == 0
        share = positions // self.ranks
        return torch.arange(self.rank * share - before, (self.rank + 1) * share) % positions

    def from_before(self, x: Tensor) -> Tensor:
        """The x [n, D] of the rank before, and the last rank's for rank 0."""
        after = (self.rank + 1) % self.ranks
        nothing = torch.zeros_like(x)
        parts = [x if rank == after else nothing for rank in range(self.ranks)]
        received: Tensor = _Exchange.apply(torch.stack(parts), self.group)
        return received[self.rank - 1]


class SequenceParallelContext:
    """As `PackedContext`, of which each rank has a part of the positions.

    whole: of all positions, for some of the heads.
    """

    def __init__(self, whole: PackedContext, sequence_parallel: SequenceParallel) -> None:
        self.whole = whole
        self.sequence_parallel = sequence_parallel

    def attend(self, queries: Tensor, keys: Tensor, values: Tensor) -> Tensor:
        ranks, group = self.sequence_parallel.ranks, self.sequence_parallel.group
        own = rearrange(torch.stack([queries, keys, values]), "t s (W h) c -> W t s h c", W=ranks)
        q, k, v = rearrange(_Exchange.apply(own, group), "W t s h c -> t (W s) h c")
        output = rearrange(self.whole.attend(q, k, v), "(W s) h c -> W s h c", W=ranks)
        return rearrange(_Exchange.apply(output, group), "W s h c -> s (W h) c")

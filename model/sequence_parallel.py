"""Sequence parallelism: ranks share rows (DeepSpeed-Ulysses, arXiv 2309.14509).

A rank has some of the patches of every row, and during attention all patches for some of the heads.

Shapes:
    W   ranks that share rows
    S   positions of stage 0 (patches) laid flat; a rank has S / W of them, in order
    H   heads, each of c channels; during attention a rank has H / W of them
    D   width of stage 0

Stages below stage 0 run on the rank that has their patch. Only stage 0 communicates: two
all-to-alls for the attention of a layer, and one for the outputs at the border of two ranks.
"""

from dataclasses import dataclass
from typing import Any

import torch
import torch.distributed as dist
from einops import rearrange
from torch import Tensor
from torch.autograd.function import once_differentiable

from bytelm.model.attention_context import PackedContext


class AllToAll(torch.autograd.Function):
    """Send part i of x [W, ...] to rank i; part i of the result comes from rank i."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, group: dist.ProcessGroup) -> Tensor:
        """x [W, ...] to [W, ...]."""
        ctx.group = group
        received = torch.empty(x.shape, dtype=x.dtype, device=x.device)
        dist.all_to_all_single(received, x.contiguous(), group=group)
        return received

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None]:
        """Send the gradient of every part back to the rank that it came from."""
        received = torch.empty(gradient.shape, dtype=gradient.dtype, device=gradient.device)
        dist.all_to_all_single(received, gradient.contiguous(), group=ctx.group)
        return received, None


@dataclass(frozen=True)
class SequenceParallel:
    """A group of W ranks that share rows. All of them call each method together."""

    group: dist.ProcessGroup
    ranks: int
    """W."""
    rank: int
    """This rank's number in the group."""

    def local_indices(self, positions: int, preceding: int, device: torch.device) -> Tensor:
        """Indices of this rank's part of S `positions`, after those of the `preceding` ones.

        Rank 0 takes the last positions of the batch as preceding ones, so that all ranks have
        equally many.

        Returns:
            [preceding + S / W] int64.
        """
        assert positions % self.ranks == 0
        count = positions // self.ranks
        first, end = self.rank * count - preceding, (self.rank + 1) * count
        return torch.arange(first, end, device=device) % positions

    def receive_from_previous(self, x: Tensor) -> Tensor:
        """Send x [n, D] to the next rank; return that of the previous one (cyclic)."""
        next_rank = (self.rank + 1) % self.ranks
        zeros = torch.zeros_like(x)
        parts = [x if rank == next_rank else zeros for rank in range(self.ranks)]
        received: Tensor = AllToAll.apply(torch.stack(parts), self.group)
        return received[self.rank - 1]


class SequenceParallelContext:
    """Attention over all positions of a packed batch, of which each rank has some.

    Args:
        full_context: context of all S positions, applied to H / W heads.
        sequence_parallel: the ranks.
    """

    def __init__(self, full_context: PackedContext, sequence_parallel: SequenceParallel) -> None:
        self.full_context = full_context
        self.sequence_parallel = sequence_parallel

    def attend(self, queries: Tensor, keys: Tensor, values: Tensor) -> Tensor:
        """Causal attention of this rank's scaled queries, [S / W, H, c] to [S / W, H, c]."""
        ranks, group = self.sequence_parallel.ranks, self.sequence_parallel.group
        qkv = rearrange(torch.stack([queries, keys, values]), "t s (W h) c -> W t s h c", W=ranks)
        q, k, v = rearrange(AllToAll.apply(qkv, group), "W t s h c -> t (W s) h c")
        output = rearrange(self.full_context.attend(q, k, v), "(W s) h c -> W s h c", W=ranks)
        return rearrange(AllToAll.apply(output, group), "W s h c -> s (W h) c")

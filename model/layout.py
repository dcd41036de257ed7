"""Layout of a packed batch: its patches laid flat, document after document.

A data worker makes the layout beside the rows, on the host, so that the model reads neither a
length nor a count from a tensor: on a GPU each such read waits until all work before it is done.

Shapes:
    B   rows                     T   ids in a row
    P   ids in a patch           K   patches in a row, T / P
    N   blocks of a row for which its document is given
    S   patches of all rows laid flat
    G   documents
    J   codec features of an id
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from einops import rearrange
from torch import Tensor

Groups = Sequence[tuple[int, int]]
"""(M, n) of each run of M sequences of equal length n, in the order in which they lie in S."""

BYTES_PER_PATCH = 2 * torch.int64.itemsize + torch.int32.itemsize
"""Bytes of a layout's tensors for each patch, where every patch is a document."""


@dataclass(frozen=True)
class Layout:
    """Order of the patches of a packed batch: documents sorted by length, one after another."""

    groups: Groups
    """(documents, patches of each) for every length."""
    order: Tensor
    """[S] int64, index of each patch in the row-major order (b k)."""
    position: Tensor
    """[S] int64, position of each patch in its document, from 0."""
    cu_seqlens: Tensor
    """[G + 1] int32, first patch of each document, then S."""

    @classmethod
    def of(cls, document: Tensor) -> Layout:
        """Layout of rows of N patches, on the device of `document`.

        Args:
            document: [B, N]; a document is a run of equal numbers in a row.
        """
        numbers = document.cpu()
        opens = torch.ones_like(numbers, dtype=torch.bool)  # [B, N]
        opens[:, 1:] = numbers[:, 1:] != numbers[:, :-1]
        starts, total = opens.flatten().nonzero().squeeze(1), numbers.numel()
        lengths = torch.diff(starts, append=torch.tensor([total]))
        lengths, by_length = lengths.sort(stable=True)
        values, counts = lengths.unique_consecutive(return_counts=True)

        ends = lengths.cumsum(0)
        position = torch.arange(total) - (ends - lengths).repeat_interleave(lengths)
        order = starts[by_length].repeat_interleave(lengths) + position
        return cls(
            groups=list(zip(counts.tolist(), values.tolist(), strict=True)),
            order=order,
            position=position,
            cu_seqlens=F.pad(ends, (1, 0)).int(),
        ).to(document.device)

    def refined(self, parts: int) -> Layout:
        """The layout of patches of which each one here has `parts`."""
        if parts == 1:
            return self
        part = torch.arange(parts, device=self.order.device)
        return Layout(
            groups=[(count, length * parts) for count, length in self.groups],
            order=(self.order[:, None] * parts + part).flatten(),
            position=(self.position[:, None] * parts + part).flatten(),
            cu_seqlens=self.cu_seqlens * parts,
        )

    def to(self, device: torch.device) -> Layout:
        """The layout with its tensors on a device, copied without a wait from pinned memory."""
        return self.map(lambda x: x.to(device, non_blocking=True))

    def map(self, moved: Callable[[Tensor], Tensor]) -> Layout:
        """The layout with every tensor `moved`, as to a device or into pinned memory."""
        tensors = moved(self.order), moved(self.position), moved(self.cu_seqlens)
        return Layout(self.groups, *tensors)

    def gather(self, ids: Tensor, patch: int, lookback: int) -> Tensor:
        """Ids [B, T] as patches, each after the `lookback` ids before it, [S, lookback + P].

        -1 stands for ids before the start of a document.
        """
        patches = rearrange(ids, "B (K P) -> (B K) P", P=patch)[self.order]
        stream = F.pad(rearrange(patches, "S P -> (S P)"), (lookback, 0), value=-1)
        offset = torch.arange(-lookback, patch, device=ids.device)
        in_document = self.position[:, None] * patch + offset
        windows = stream.unfold(0, lookback + patch, patch)
        return windows.masked_fill(in_document < 0, -1)

    def scatter(self, values: Tensor, rows: int) -> Tensor:
        """Values of the patches, [S, P, ...], as `rows` rows, [B, T, ...]."""
        by_row = torch.empty_like(values).index_copy(0, self.order, values)
        return rearrange(by_row, "(B K) P ... -> B (K P) ...", B=rows)


@dataclass(frozen=True)
class PatchBatch:
    """S patches in the order of a layout, with what the model reads at each of them."""

    ids: Tensor
    """[S, lookback + P] int64, the patch's ids after those before it; -1 before a document."""
    targets: Tensor
    """[S, P] int64, the patch's true ids, of which `ids` may have other ones in their place."""
    position: Tensor
    """[S] int64, position in the document."""
    heads: Tensor
    """[S, P] int64, output head of each id; [S, 0] where the model has one head."""
    codec_features: Tensor
    """[S, P, J], of each id; [S, 0, 0] where the model reads none."""
    places: Tensor
    """[S, P, PLACES] int32 on the host, of each id in its payload; [S, 0, 0] where nothing is
    mixed."""

    def __len__(self) -> int:
        return len(self.ids)

    def __getitem__(self, index: Tensor | slice) -> PatchBatch:
        """The patches at `index`."""
        return PatchBatch(
            self.ids[index],
            self.targets[index],
            self.position[index],
            self.heads[index],
            self.codec_features[index],
            self.places[index if isinstance(index, slice) else index.cpu()],
        )

    def split(self, size: int) -> list[PatchBatch]:
        """Views of `size` consecutive patches each; the last one may be shorter."""
        return [self[start : start + size] for start in range(0, len(self), size)]

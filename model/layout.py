"""How the patches of a batch are laid flat, document after document."""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from einops import rearrange
from torch import Tensor

from bytelm.model.attention_context import Groups


@dataclass(frozen=True)
class Layout:
    """Where the patches of a packed batch lie: documents sorted by length, one after another."""

    groups: Groups
    order: Tensor
    """[S] the row-major index (b k) of each patch."""
    place: Tensor
    """[S] the patch's place in its document, from 0."""

    @classmethod
    def of(cls, document: Tensor, patches: int) -> Layout:
        """From `document` [B, N] for rows of K `patches`; a document is a run of equal numbers."""
        runs = document.cpu()
        opens = torch.ones_like(runs, dtype=torch.bool)  # [B, N]
        opens[:, 1:] = runs[:, 1:] != runs[:, :-1]
        starts = opens.flatten().nonzero().squeeze(1) * (patches // runs.shape[1])
        total = runs.shape[0] * patches
        lengths = torch.diff(starts, append=torch.tensor([total]))
        lengths, by_length = lengths.sort(stable=True)
        values, counts = lengths.unique_consecutive(return_counts=True)

        ends = lengths.cumsum(0)
        place = torch.arange(total) - (ends - lengths).repeat_interleave(lengths)
        order = starts[by_length].repeat_interleave(lengths) + place
        return cls(
            groups=list(zip(counts.tolist(), values.tolist(), strict=True)),
            order=order.to(document.device),
            place=place.to(document.device),
        )

    def gather(self, ids: Tensor, patch: int, back: int) -> Tensor:
        """Ids [B, T] to patches in document order, each with `back` ids before it, [S, back + P].

        -1 stands before the start of a document.
        """
        patches = rearrange(ids, "B (K P) -> (B K) P", P=patch)[self.order]
        stream = F.pad(rearrange(patches, "S P -> (S P)"), (back, 0), value=-1)
        at = self.place[:, None] * patch + torch.arange(-back, patch, device=ids.device)
        return stream.unfold(0, back + patch, patch).masked_fill(at < 0, -1)

    def scatter(self, values: Tensor, rows: int) -> Tensor:
        """Values of the patches [S, P, ...] back to rows, [B, T, ...]."""
        by_row = torch.empty_like(values).index_copy(0, self.order, values)
        return rearrange(by_row, "(B K) P ... -> B (K P) ...", B=rows)

"""Scores: sums of nats and of bytes that add up over rows and ranks.

B rows    L ids in a row    P ids in a patch
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from bytelm.modalities import MODALITIES, framing
from bytelm.modalities.base import EvaluationHead, ScoredSegment
from bytelm.model.megabyte import Megabyte
from bytelm.pipelines.data.batch import Batch
from bytelm.pipelines.runtime.device import autocast

TOTAL = "total"

NatsOf = Callable[[Batch], Tensor]
"""Computes the nats [B, L] of the ids of a batch."""


class Scores:
    """One evaluation head for each modality, with sums that can be reduced over ranks."""

    def __init__(self) -> None:
        self.heads: dict[str, EvaluationHead] = {n: m.head() for n, m in MODALITIES.items()}

    def add_batch(self, batch: Batch, nats: Tensor, patch: int) -> None:
        """Add the segments of a batch to the heads.

        Args:
            nats: [B, L], -log p of each id.
            patch: P.
        """
        values = nats.to("cpu", torch.float64).numpy()
        for row in zip(batch.ids.numpy(), batch.scored.numpy(), values, strict=True):
            self.add_row(*row, patch)

    def add_row(
        self,
        ids: npt.NDArray[np.uint16],
        scored: npt.NDArray[np.bool_],
        nats: npt.NDArray[np.float64],
        patch: int,
    ) -> None:
        """Add the segments of one row to the heads; `ids`, `scored` and `nats` are [L]."""
        for segment in framing.parse(ids, patch):
            frame = [nats[part][scored[part]] for part in (segment.preamble, segment.ends)]
            self.heads[segment.modality.name].update(
                ScoredSegment(
                    header=segment.header,
                    view=segment.view,
                    offset=segment.offset,
                    payload=ids[segment.payload].astype(np.uint8),
                    payload_nats=nats[segment.payload],
                    frame_nats=np.concatenate(frame),
                )
            )

    def reduce(self, sum_over_ranks: Callable[[list[Any], torch.dtype], list[Any]]) -> None:
        """Replace every sum by its sum over ranks. Collective: every rank has to call it."""
        for head in self.heads.values():
            nats = sum_over_ranks(list(head.nats.values()), torch.float64)
            counts = sum_over_ranks(list(head.counts.values()), torch.int64)
            head.nats = dict(zip(head.nats, nats, strict=True))
            head.counts = dict(zip(head.counts, counts, strict=True))

    def metrics(self) -> dict[str, dict[str, float]]:
        """Figures of each modality that has payload bytes, and of all of them as `total`."""
        total = EvaluationHead()
        for head in self.heads.values():
            for name in total.nats:
                total.nats[name] += head.nats[name]
            for name in total.counts:
                total.counts[name] += head.counts[name]
        heads = {n: h for n, h in self.heads.items() if h.counts["payload_bytes"]}
        return {
            name: {**head.metrics(), "payload_bytes": head.counts["payload_bytes"]}
            for name, head in {**heads, TOTAL: total}.items()
        }


def nats_of_model(model: Megabyte, precision: str) -> NatsOf:
    """A function that computes the nats of a batch on the model's device, without gradients."""
    device = model.lm_head.weight.device

    @torch.no_grad()
    def compute(batch: Batch) -> Tensor:
        with autocast(device, precision):
            nats: Tensor = model(*batch.inputs(device))
            return nats

    return compute


def bits_per_byte(nats: float, count: int) -> float:
    """Σ nats / (ln 2 · Σ bytes); NaN where there are no bytes."""
    return nats / (math.log(2) * count) if count else math.nan

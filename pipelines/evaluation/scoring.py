"""Scores: sums of nats and bytes that add up over rows and ranks."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from typing import Any, TypeVar

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from bytelm.modalities import MODALITIES, framing
from bytelm.modalities.base import EvaluationHead, ScoredSegment
from bytelm.pipelines.data.batch import Batch

TOTAL = "total"
T = TypeVar("T")


class Scores:
    """The evaluation heads of all modalities, and their sum over ranks."""

    def __init__(self) -> None:
        self.heads: dict[str, EvaluationHead] = {n: m.head() for n, m in MODALITIES.items()}

    def reduce(self, sum_over_ranks: Callable[[list[Any], torch.dtype], list[Any]]) -> None:
        """Replace every sum by the sum over ranks; every rank has to call it."""
        for head in self.heads.values():
            nats = sum_over_ranks(list(head.nats.values()), torch.float64)
            counts = sum_over_ranks(list(head.counts.values()), torch.int64)
            head.nats = dict(zip(head.nats, nats, strict=True))
            head.counts = dict(zip(head.counts, counts, strict=True))

    def metrics(self) -> dict[str, dict[str, float]]:
        """The figures of each modality that was scored, and of all bytes together."""
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


def score(
    scores: Scores, nats: Callable[[Batch], Tensor], batches: Iterable[Batch], patch: int
) -> None:
    """Add the batches' segments to the heads.

    Args:
        nats: gives [B, L] nats of each id of a batch.
    """
    for batch in batches:
        values = nats(batch).to("cpu", torch.float64).numpy()
        for row in zip(batch.ids.numpy(), batch.scored.numpy(), values, strict=True):
            add_rows(scores, *row, patch)


def add_rows(
    scores: Scores,
    ids: npt.NDArray[np.uint16],
    scored: npt.NDArray[np.bool_],
    nats: npt.NDArray[np.float64],
    patch: int,
) -> None:
    """Add the segments in [n] ids to the heads."""
    for segment in framing.parse(ids, patch):
        frame = [nats[part][scored[part]] for part in (segment.preamble, segment.ends)]
        scores.heads[segment.modality.name].update(
            ScoredSegment(
                header=segment.header,
                view=segment.view,
                offset=segment.offset,
                payload=ids[segment.payload].astype(np.uint8),
                payload_nats=nats[segment.payload],
                frame_nats=np.concatenate(frame),
            )
        )


def bits_per_byte(nats: float, count: int) -> float:
    """Σ nats / (ln 2 · Σ bytes); NaN where there are no bytes."""
    return nats / (math.log(2) * count) if count else math.nan

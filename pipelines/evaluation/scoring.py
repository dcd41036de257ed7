"""Scores: sums of bits and of bytes that add up over rows and ranks.

B rows    L ids in a row    P ids in a patch    J codec features of an id
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from bytelm.modalities import MODALITIES, framing
from bytelm.modalities.base import Bytes, Modality
from bytelm.modalities.evaluation_head import BitMap, EvaluationHead, Floats, Ints, ScoredSegment
from bytelm.modalities.framing import Bools
from bytelm.model.codec_features.vectorized import compute_codec_features
from bytelm.model.megabyte import Megabyte
from bytelm.pipelines.data.batch import Batch
from bytelm.pipelines.evaluation.codec_outcomes import ABSENT, codec_outcomes
from bytelm.pipelines.runtime.device import autocast

TOTAL = "total"

NatsOf = Callable[[Batch], Tensor]
"""Computes the nats [B, L] of the ids of a batch."""


@dataclass(frozen=True)
class ScoredRow:
    """A row of ids, the model's score of each, and what the model saw at each."""

    ids: npt.NDArray[np.uint16]
    """[L]."""
    scored: Bools
    """[L] whether the score of an id counts."""
    nats: Floats
    """[L] -log p of each id."""
    document: npt.NDArray[np.int32]
    """[L/P] ordinal of the document in the row; PADDING_DOCUMENT on padding."""
    context: Ints
    """[L] ids of the same document that the model saw before each id."""
    patch_position: Ints
    """[L] position of each id in the patch that the model read it in."""
    match: Bytes
    """[L] index in MATCHES; ABSENT where the model reads no codec features."""
    error: Bytes
    """[L] index in ERRORS, or ABSENT likewise."""


@dataclass(frozen=True)
class SegmentInRow:
    """A scored segment, and where it comes from."""

    modality: Modality
    document: int
    """Ordinal in the row of its document."""
    segment: ScoredSegment


class Scores:
    """One evaluation head for each modality, with sums that can be reduced over ranks."""

    def __init__(self, patch: int) -> None:
        """
        Args:
            patch: P of the model.
        """
        self.patch = patch
        self.heads: dict[str, EvaluationHead] = {n: m.head(patch) for n, m in MODALITIES.items()}
        self._taken = self._sums()

    def add_batch(self, batch: Batch, nats: Tensor) -> None:
        """Add the segments of a batch; `nats` [B, L] are -log p of each id."""
        for row in scored_rows(batch, nats):
            self.add_row(row)

    def add_row(self, row: ScoredRow) -> None:
        """Add the segments of one row."""
        for found in segments_in_row(row):
            self.add(found)

    def add(self, found: SegmentInRow) -> None:
        """Add one segment, or the part of one that a row holds, to the head of its modality."""
        self.heads[found.modality.name].update(found.segment)

    def take(self) -> dict[str, list[int]]:
        """Return the part added since the last call, by modality; see `finished_work.Sums`."""
        before, self._taken = self._taken, self._sums()
        return {name: (sums - before[name]).tolist() for name, sums in self._taken.items()}

    def put(self, taken: dict[str, list[int]]) -> None:
        """Add what `take` returned elsewhere."""
        for name, sums in taken.items():
            self.heads[name].sums += np.array(sums, np.int64)
        self._taken = self._sums()

    def _sums(self) -> dict[str, npt.NDArray[np.int64]]:
        return {name: head.sums.copy() for name, head in self.heads.items()}

    def reduce(self, sum_over_ranks: Callable[[list[Any], torch.dtype], list[Any]]) -> None:
        """Replace every sum by its sum over ranks. Collective: every rank has to call it."""
        for head in self.heads.values():
            head.sums[:] = sum_over_ranks(head.sums.tolist(), torch.int64)

    def figures(self) -> dict[str, dict[str, float]]:
        """Figures of each modality that has payload bytes, and of all of them as `total`."""
        total = EvaluationHead(self.patch)
        for head in self.heads.values():
            total.sums += head.sums[: len(total.sums)]
        return {
            name: {**head.figures(), "payload_bytes": head.counted("payload_bytes")}
            for name, head in {**self._used_heads(), TOTAL: total}.items()
        }

    def maps(self) -> dict[str, list[BitMap]]:
        """Where the bits go: the maps of each modality that has payload bytes."""
        return {name: head.maps() for name, head in self._used_heads().items()}

    def _used_heads(self) -> dict[str, EvaluationHead]:
        return {n: h for n, h in self.heads.items() if h.counted("payload_bytes")}


def scored_rows(batch: Batch, nats: Tensor) -> Iterator[ScoredRow]:
    """The rows of a batch with the scores of their ids.

    The codec features are those that came with the batch; without them no outcome is known.

    Args:
        nats: [B, L], -log p of each id.
    """
    rows = zip(
        batch.ids.numpy(),
        batch.scored.numpy(),
        nats.to("cpu", torch.float64).numpy(),
        batch.document.numpy(),
        [None] * len(batch.ids) if batch.codec_features is None else batch.codec_features.numpy(),
        strict=True,
    )
    for ids, scored, row_nats, document, features in rows:
        patch = len(ids) // len(document)
        match, error = codec_outcomes(features, ids)
        context = context_positions(document, patch)
        patch_position = np.arange(len(ids)) % patch
        yield ScoredRow(ids, scored, row_nats, document, context, patch_position, match, error)


def context_positions(document: npt.NDArray[np.int32], patch: int) -> Ints:
    """[L] ids of the same document before each id of a row, from the document [L/P] of patches."""
    is_first = np.diff(document, prepend=document[0] - 1) != 0
    index = np.arange(len(document))
    first = np.maximum.accumulate(np.where(is_first, index, 0))
    return np.repeat((index - first) * patch, patch) + np.tile(np.arange(patch), len(document))


def segments_in_row(row: ScoredRow) -> Iterator[SegmentInRow]:
    """The segments of a row, or the parts of some that it holds, in their order."""
    patch = len(row.ids) // len(row.document)
    for found in framing.parse(row.ids, patch):
        frame = [row.nats[part][row.scored[part]] for part in (found.preamble, found.ends)]
        payload = found.payload
        yield SegmentInRow(
            modality=found.modality,
            document=int(row.document[found.preamble.start // patch]),
            segment=ScoredSegment(
                header=found.header,
                view=found.view,
                patch=patch,
                offset=found.offset,
                is_last=found.ends.stop > found.ends.start,
                payload=row.ids[payload].astype(np.uint8),
                payload_nats=row.nats[payload],
                frame_nats=np.concatenate(frame),
                context=row.context[payload],
                patch_position=row.patch_position[payload],
                match=_present(row.match[payload]),
                error=_present(row.error[payload]),
            ),
        )


def _present(outcomes: Bytes) -> Bytes | None:
    """Outcomes of a segment's bytes; None where the model reads no codec features."""
    return None if not len(outcomes) or outcomes[0] == ABSENT else outcomes


def nats_of_model(model: Megabyte, precision: str) -> NatsOf:
    """A function that computes the nats of a batch on the model's device, without gradients.

    Where the model reads codec features, the function leaves them in the batch.
    """
    device = model.lm_head.weight.device

    @torch.no_grad()
    def compute(batch: Batch) -> Tensor:
        if model.config.codec_features and batch.codec_features is None:
            batch.codec_features = compute_codec_features(
                batch.ids, batch.document, model.config.patch
            )
        with autocast(device, precision):
            nats: Tensor = model(*batch.inputs(device))
            return nats

    return compute


def bits_per_byte(nats: float, count: int) -> float:
    """Σ nats / (ln 2 · Σ bytes); NaN where there are no bytes."""
    return nats / (math.log(2) * count) if count else math.nan

"""Scoring documents by windows that overlap, so that less of an id's past is out of sight.

A plain evaluation cuts a document into pieces, and the first ids of a piece see nothing of the one
before; nor do the last ids of a patch see stage 0 at its newest. The paper's two ways (arXiv
2305.07185, on inference) cost two passes each, and four together:

    sliding   a window begins in the middle of the one before, and ids count in the first window
              that has them: all but the first half window's see at least half a window
    strided   each window has a second one that begins half a patch later; of every patch the first
              half counts, in the one or the other

    N ids of a document, framed as one piece    n ids of a window    L ids of a row    P of a patch
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from bytelm.modalities import framing
from bytelm.modalities.base import Bytes
from bytelm.modalities.framing import Framed, Segment, Span
from bytelm.pipelines.data.batch import FILLER_DOCUMENT, Batch
from bytelm.pipelines.data.plan import Plan

PLAIN, SLIDING, STRIDED, BOTH = WAYS = ("plain", "sliding", "strided", "both")

Places = npt.NDArray[np.int64]


@dataclass(frozen=True)
class Window:
    """A part of a document, framed as a piece."""

    framed: Framed
    at: Places
    """[n] the place in the document of each id that counts here, -1 of the others."""


@dataclass(frozen=True)
class ScoredDocument:
    """A document of which every id is given its nats."""

    framed: Framed
    """All of it in one piece."""
    nats: npt.NDArray[np.float64]
    """[N], filled in window by window."""


def scored_documents(
    plan: Plan, nats: Callable[[Batch], Tensor], batch: int, way: str
) -> Iterator[ScoredDocument]:
    """The documents of a plan's sets, scored `way` in rows as the plan's, `batch` at once.

    Args:
        nats: gives [B, L] nats of each id of a batch.
    Raises:
        ValueError: for `strided` and `both` where a patch has one id.
    """
    length, patch = plan.config.row_length, plan.config.patch
    if way in (STRIDED, BOTH) and patch == 1:
        raise ValueError(
            f"--scoring {way} shifts patches by half, and this model has none: use another"
        )
    rows = _Rows(length, patch)
    waiting: list[ScoredDocument] = []
    for segments, payloads in _documents(plan):
        document = _whole(segments, payloads, patch)
        waiting.append(document)
        for window in windows(segments, payloads, length, patch, way):
            rows.add(document, window)
        if rows.count >= batch:
            rows.score(nats, batch)
            yield from waiting
            waiting = []
    rows.score(nats, batch)
    yield from waiting


def windows(
    segments: Sequence[Segment], payloads: Sequence[Bytes], length: int, patch: int, way: str
) -> Iterator[Window]:
    """The windows of a document, of at most `length` ids; every id counts in one of them."""
    parts = [(segment.modality, segment.size) for segment in segments]
    total = sum(_segment_length(segment, patch) for segment in segments)
    is_known = np.zeros(total, np.bool_)

    def window(spans: Sequence[Span], at: Places) -> Window:
        """A piece of which ids at places that no window has had count."""
        at = np.where((at >= 0) & ~is_known[at], at, -1)
        is_known[at[at >= 0]] = True
        return Window(framing.frame(spans, segments, payload, patch), at)

    def payload(segment: int, first: int, stop: int) -> Bytes:
        return payloads[segment][first:stop]

    segment = start = 0
    while segment < len(segments):
        spans = next(framing.cut(parts, patch, lambda: length, segment, start))
        at = _places(spans, segments, patch)
        if way in (STRIDED, BOTH):
            later = [_later(spans[0], segments, length, patch)]
            shifted = _places(later, segments, patch)
            is_first_half = np.arange(len(at)) % patch < patch // 2
            yield window(spans, np.where(is_first_half | ~np.isin(at, shifted), at, -1))
            yield window(later, np.where(np.isin(shifted, at), shifted, -1))
        else:
            yield window(spans, at)
        last = spans[-1]
        segment, start = last.segment, last.start + last.length
        if start == framing.body_length(segments[segment].size, patch):
            segment, start = segment + 1, 0
        if way in (SLIDING, BOTH) and segment < len(segments):
            segment, start = _middle(spans, segments, patch)


def _later(span: Span, segments: Sequence[Segment], length: int, patch: int) -> Span:
    """The span that begins half a patch later, with the rest of its segment as far as it fits."""
    segment, start = segments[span.segment], span.start + patch // 2
    left = framing.up_to_patch(framing.body_length(segment.size, patch) - start, patch)
    room = length - framing.preamble_length(segment.modality, patch)
    return Span(span.segment, start, min(left, room))


def _middle(spans: Sequence[Span], segments: Sequence[Segment], patch: int) -> tuple[int, int]:
    """Segment and body id in the middle of a window, at the start of a patch."""
    openings = [framing.preamble_length(segments[s.segment].modality, patch) for s in spans]
    total = sum(openings) + sum(span.length for span in spans)
    left = total // 2 // patch * patch
    for span, opening in zip(spans, openings, strict=True):
        if left < opening + span.length:
            break
        left -= opening + span.length
    first = span is spans[0]
    return span.segment, span.start + max(left - opening, patch if first else 0)


def _places(spans: Sequence[Span], segments: Sequence[Segment], patch: int) -> Places:
    """[n] the place in the document of each id of a piece; -1 of preambles that go on with a
    segment, and of filler behind its body."""
    begins = np.cumsum([0, *(_segment_length(segment, patch) for segment in segments)])
    places = []
    for span in spans:
        segment, begin = segments[span.segment], begins[span.segment]
        opening = framing.preamble_length(segment.modality, patch)
        head = begin + np.arange(opening)
        places.append(head if span.start == 0 else np.full(opening, -1))
        body = span.start + np.arange(span.length)
        is_there = body < framing.body_length(segment.size, patch)
        places.append(np.where(is_there, begin + opening + body, -1))
    return np.concatenate(places)


def _segment_length(segment: Segment, patch: int) -> int:
    opening = framing.preamble_length(segment.modality, patch)
    return opening + framing.body_length(segment.size, patch)


def _whole(segments: Sequence[Segment], payloads: Sequence[Bytes], patch: int) -> ScoredDocument:
    spans = [Span(i, 0, framing.body_length(s.size, patch)) for i, s in enumerate(segments)]
    framed = framing.frame(spans, segments, lambda i, a, b: payloads[i][a:b], patch)
    return ScoredDocument(framed, np.full(len(framed.ids), np.nan))


def _documents(plan: Plan) -> Iterator[tuple[list[Segment], list[Bytes]]]:
    """Segments and payloads of every document of a plan's sets, shard by shard."""
    for source in plan.sources:
        for shard in source.set.one_by_one(source.set.split(source.split)):
            index = source.set.index(shard)
            for document in np.unique(index["document"]):
                rows = index[index["document"] == document]
                segments = [plan.segment(row) for row in rows]
                samples = (source.set.sample(shard, row) for row in rows)
                yield (
                    segments,
                    [
                        segment.modality.to_view(sample, segment.view, plan.config.patch)
                        for segment, sample in zip(segments, samples, strict=True)
                    ],
                )


class _Rows:
    """Windows laid into rows of L ids, each a document of its row."""

    def __init__(self, length: int, patch: int) -> None:
        self._length = length
        self._patch = patch
        self._rows: list[list[tuple[ScoredDocument, Window]]] = []
        self._room = 0

    @property
    def count(self) -> int:
        """Rows that are begun."""
        return len(self._rows)

    def add(self, document: ScoredDocument, window: Window) -> None:
        """Put a window into the last row, or a new one."""
        if len(window.at) > self._room:
            self._rows.append([])
            self._room = self._length
        self._rows[-1].append((document, window))
        self._room -= len(window.at)

    def score(self, nats: Callable[[Batch], Tensor], batch: int) -> None:
        """Give all ids that count their nats, and begin anew."""
        for first in range(0, len(self._rows), batch):
            rows = self._rows[first : first + batch]
            values = nats(self._batch(rows)).to("cpu", torch.float64).numpy()
            for row, own in zip(rows, values, strict=True):
                begin = 0
                for document, window in row:
                    counts = window.at >= 0
                    part = own[begin : begin + len(window.at)]
                    document.nats[window.at[counts]] = part[counts]
                    begin += len(window.at)
        self._rows, self._room = [], 0

    def _batch(self, rows: Sequence[Sequence[tuple[ScoredDocument, Window]]]) -> Batch:
        shape, patch = (len(rows), self._length), self._patch
        ids = np.full(shape, framing.PAD, np.uint16)
        modality = np.zeros((shape[0], shape[1] // patch), np.uint8)
        document = np.full(modality.shape, FILLER_DOCUMENT, np.int32)
        for b, row in enumerate(rows):
            begin = 0
            for number, (_, window) in enumerate(row):
                end = begin + len(window.at)
                patches = slice(begin // patch, end // patch)
                ids[b, begin:end] = window.framed.ids
                modality[b, patches] = window.framed.modality[::patch]
                document[b, patches] = number
                begin = end
        return Batch(
            ids=torch.from_numpy(ids),
            patch_modality=torch.from_numpy(modality),
            document=torch.from_numpy(document),
            role=torch.zeros(shape, dtype=torch.uint8),
            origins=[None] * len(rows),
            damage=[],
        )

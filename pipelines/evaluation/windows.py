"""Documents scored in windows that overlap, so that fewer ids lack the ids before them.

Plain scoring cuts a document into pieces. The first ids of a piece do not see the piece before it,
and the last ids of a patch do not see the patch itself in stage 0. The paper (arXiv 2305.07185,
section on inference) reduces both losses, each at the cost of two passes; both together cost four:

    sliding   A window begins in the middle of the window before it. An id counts in the first
              window that holds it, so all ids behind the first half window see at least half a
              window.
    strided   Each window is repeated half a patch later. The first half of every patch counts, in
              one window or the other.

    N ids of a document, framed as one piece    n ids of a window    L ids of a row
    P ids of a patch    B rows
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch

from bytelm.modalities import framing
from bytelm.modalities.base import Bytes
from bytelm.modalities.evaluation_head import Floats, Ints
from bytelm.modalities.framing import Framed, Segment, Span
from bytelm.pipelines.data.batch import Batch
from bytelm.pipelines.data.packing import PlanConfig
from bytelm.pipelines.evaluation import BOTH, PLAIN, SLIDING, STRIDED
from bytelm.pipelines.evaluation.codec_outcomes import ABSENT
from bytelm.pipelines.evaluation.scoring import NatsOf, ScoredRow, scored_rows

Positions = npt.NDArray[np.int64]


@dataclass(frozen=True)
class Document:
    """Segments and their payloads in the model's views."""

    segments: Sequence[Segment]
    payloads: Sequence[Bytes]

    def frame(self, spans: Sequence[Span], patch: int) -> Framed:
        """The ids of the piece that holds `spans`."""
        return framing.frame(
            spans, self.segments, lambda i, start, stop: self.payloads[i][start:stop], patch
        )

    def only(self, numbers: Sequence[int]) -> Document:
        """The document of some of the segments, in this order."""
        return Document(
            [self.segments[number] for number in numbers],
            [self.payloads[number] for number in numbers],
        )


@dataclass(frozen=True)
class Window:
    """A part of a document, framed as a piece."""

    framed: Framed
    positions: Positions
    """[n], position in the document of each id that counts in this window; -1 of the others."""


@dataclass(frozen=True)
class ScoredDocument:
    """A document and the nats of its ids."""

    framed: Framed
    """The whole document as one piece."""
    nats: Floats
    """[N], filled in window by window as all that follow; NaN until then."""
    context: Ints
    """[N] ids that the model saw before each id, in the window where it counts."""
    patch_position: Ints
    """[N] position of each id in the patch of that window."""
    match: Bytes
    """[N] outcome of the codec features in that window, as in `ScoredRow`."""
    error: Bytes
    """[N] the same of their predictions."""

    def row(self) -> ScoredRow:
        """The document as a row."""
        framed = self.framed
        columns = (self.nats, framed.document, self.context, self.patch_position)
        return ScoredRow(framed.ids, framed.scored, *columns, self.match, self.error)

    def fill(self, positions: Positions, row: ScoredRow, part: slice) -> None:
        """Take the scores of a window, the ids `part` of a row.

        positions: [n] as in `Window`.
        """
        counts = positions >= 0
        for name in ("nats", "context", "patch_position", "match", "error"):
            getattr(self, name)[positions[counts]] = getattr(row, name)[part][counts]


def check_scoring(scoring: str, patch: int) -> None:
    """Raise ValueError for `strided` and `both` where a patch has one id."""
    if scoring in (STRIDED, BOTH) and patch == 1:
        raise ValueError(
            f"--scoring {scoring} shifts windows by half a patch, and the patches of this model "
            f"have one byte: use {PLAIN} or {SLIDING}"
        )


def score_documents(
    documents: Sequence[Document], nats_of: NatsOf, plan: PlanConfig, batch: int, scoring: str
) -> list[ScoredDocument]:
    """Score some documents together, `batch` rows at once.

    The batches, and so the last digits of the nats, depend on these documents alone.
    """
    rows = _WindowRows(plan.row_length, plan.patch)
    scored = [_unscored(document, plan.patch) for document in documents]
    for document, result in zip(documents, scored, strict=True):
        for window in windows(document, plan.row_length, plan.patch, scoring):
            rows.add(result, window)
    rows.score(nats_of, batch)
    return scored


def score_document(document: Document, nats_of: NatsOf, length: int, patch: int) -> ScoredDocument:
    """Score one document in plain pieces of at most `length` ids, one after the other."""
    scored = _unscored(document, patch)
    rows = _WindowRows(min(length, len(scored.nats)), patch)
    for window in windows(document, length, patch, PLAIN):
        rows.add(scored, window)
    rows.score(nats_of, batch=1)
    return scored


def windows(document: Document, length: int, patch: int, scoring: str) -> Iterator[Window]:
    """The windows of a document, of at most `length` ids; every id counts in one of them."""
    total = sum(segment_length(segment, patch) for segment in document.segments)
    is_counted = np.zeros(total, np.bool_)
    for spans, positions in _candidates(document.segments, length, patch, scoring):
        counts = (positions >= 0) & ~is_counted[positions]
        is_counted[positions[counts]] = True
        yield Window(document.frame(spans, patch), np.where(counts, positions, -1))


def segment_length(segment: Segment, patch: int) -> int:
    """Ids of a whole segment: its preamble and its body."""
    opening = framing.preamble_length(segment.modality, patch)
    return opening + framing.body_length(segment.size, patch)


def _candidates(
    segments: Sequence[Segment], length: int, patch: int, scoring: str
) -> Iterator[tuple[list[Span], Positions]]:
    """Spans of each window, and the positions [n] that count unless an earlier window has them."""
    parts = [(segment.modality, segment.size) for segment in segments]
    segment = start = 0
    while segment < len(segments):
        spans = next(framing.split_document(parts, patch, lambda: length, segment, start))
        positions = _positions(spans, segments, patch)
        if scoring in (STRIDED, BOTH):
            yield from _strided(spans, positions, segments, length, patch)
        else:
            yield spans, positions
        segment, start = _end(spans[-1], segments, patch)
        if scoring in (SLIDING, BOTH) and segment < len(segments):
            segment, start = _middle(spans, segments, patch)


def _strided(
    spans: list[Span], positions: Positions, segments: Sequence[Segment], length: int, patch: int
) -> Iterator[tuple[list[Span], Positions]]:
    """A window and its repetition half a patch later, each with the positions that count there."""
    shifted_spans = [_shifted(spans[0], segments, length, patch)]
    shifted = _positions(shifted_spans, segments, patch)
    in_first_half = np.arange(len(positions)) % patch < patch // 2
    yield spans, np.where(in_first_half | ~np.isin(positions, shifted), positions, -1)
    yield shifted_spans, np.where(np.isin(shifted, positions), shifted, -1)


def _shifted(span: Span, segments: Sequence[Segment], length: int, patch: int) -> Span:
    """The span that begins half a patch later, with as much of its segment as fits a window."""
    segment, start = segments[span.segment], span.start + patch // 2
    rest = framing.up_to_patch(framing.body_length(segment.size, patch) - start, patch)
    room = length - framing.preamble_length(segment.modality, patch)
    return Span(span.segment, start, min(rest, room))


def _end(span: Span, segments: Sequence[Segment], patch: int) -> tuple[int, int]:
    """Segment and body id that follow a span."""
    end = span.start + span.length
    if end == framing.body_length(segments[span.segment].size, patch):
        return span.segment + 1, 0
    return span.segment, end


def _middle(spans: Sequence[Span], segments: Sequence[Segment], patch: int) -> tuple[int, int]:
    """Segment and body id in the middle of a window, at the start of a patch."""
    openings = [framing.preamble_length(segments[s.segment].modality, patch) for s in spans]
    total = sum(openings) + sum(span.length for span in spans)
    rest = total // 2 // patch * patch
    for span, opening in zip(spans, openings, strict=True):
        if rest < opening + span.length:
            break
        rest -= opening + span.length
    # A window that did not move would be scored forever.
    least = patch if span is spans[0] else 0
    return span.segment, span.start + max(rest - opening, least)


def _positions(spans: Sequence[Span], segments: Sequence[Segment], patch: int) -> Positions:
    """[n], position in the document of each id of a piece; -1 of filler behind a body and of
    preambles that repeat a segment's header."""
    begins = np.cumsum([0, *(segment_length(segment, patch) for segment in segments)])
    positions = []
    for span in spans:
        segment, begin = segments[span.segment], begins[span.segment]
        opening = framing.preamble_length(segment.modality, patch)
        preamble = begin + np.arange(opening)
        positions.append(preamble if span.start == 0 else np.full(opening, -1))
        body = span.start + np.arange(span.length)
        is_present = body < framing.body_length(segment.size, patch)
        positions.append(np.where(is_present, begin + opening + body, -1))
    return np.concatenate(positions)


def _unscored(document: Document, patch: int) -> ScoredDocument:
    spans = [
        Span(i, 0, framing.body_length(segment.size, patch))
        for i, segment in enumerate(document.segments)
    ]
    framed = document.frame(spans, patch)
    count = len(framed.ids)
    return ScoredDocument(
        framed,
        nats=np.full(count, np.nan),
        context=np.zeros(count, np.int64),
        patch_position=np.zeros(count, np.int64),
        match=np.full(count, ABSENT, np.uint8),
        error=np.full(count, ABSENT, np.uint8),
    )


class _WindowRows:
    """Rows of L ids that are filled with windows; the model reads each window as a document."""

    def __init__(self, length: int, patch: int) -> None:
        self._length = length
        self._patch = patch
        self._rows: list[list[tuple[ScoredDocument, Window]]] = []
        self._room = 0  # ids left in the last row

    def add(self, document: ScoredDocument, window: Window) -> None:
        """Put a window of a document into the last row, or into a new one."""
        if len(window.positions) > self._room:
            self._rows.append([])
            self._room = self._length
        self._rows[-1].append((document, window))
        self._room -= len(window.positions)

    def score(self, nats_of: NatsOf, batch: int) -> None:
        """Fill in the nats of all ids that count, and drop the rows."""
        for first in range(0, len(self._rows), batch):
            rows = self._rows[first : first + batch]
            window_batch = self._batch(rows)
            scored = scored_rows(window_batch, nats_of(window_batch))
            for row, scored_row in zip(rows, scored, strict=True):
                begin = 0
                for document, window in row:
                    end = begin + len(window.positions)
                    document.fill(window.positions, scored_row, slice(begin, end))
                    begin = end
        self._rows, self._room = [], 0

    def _batch(self, rows: Sequence[Sequence[tuple[ScoredDocument, Window]]]) -> Batch:
        framed = [self._frame(row) for row in rows]
        return Batch(
            ids=torch.from_numpy(np.stack([row.ids for row in framed])),
            patch_modality=torch.from_numpy(np.stack([row.patch_modality for row in framed])),
            document=torch.from_numpy(np.stack([row.document for row in framed])),
            role=torch.from_numpy(np.stack([row.role for row in framed])),
            origins=[None] * len(rows),
            damage=[],
        )

    def _frame(self, windows: Sequence[tuple[ScoredDocument, Window]]) -> Framed:
        row = Framed.padding(self._length, self._patch)
        begin = 0
        for number, (_, window) in enumerate(windows):
            end = begin + len(window.positions)
            patches = slice(begin // self._patch, end // self._patch)
            row.ids[begin:end] = window.framed.ids
            row.role[begin:end] = window.framed.role
            row.patch_modality[patches] = window.framed.patch_modality
            row.document[patches] = number
            begin = end
        return row

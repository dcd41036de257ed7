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
import torch

from bytelm.modalities import framing
from bytelm.modalities.base import Bytes
from bytelm.modalities.evaluation_head import Floats, Ints
from bytelm.modalities.framing import Framed, Segment, Span
from bytelm.pipelines.data.batch import Batch
from bytelm.pipelines.data.packing import PlanConfig
from bytelm.pipelines.data.windows import Positions, window_spans
from bytelm.pipelines.evaluation import BOTH, PLAIN, SLIDING, STRIDED
from bytelm.pipelines.evaluation.codec_outcomes import ABSENT
from bytelm.pipelines.evaluation.scoring import NatsOf, ScoredRow, scored_rows


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
    scored = [unscored(document, plan.patch) for document in documents]
    for document, result in zip(documents, scored, strict=True):
        for window in windows(document, plan.row_length, plan.patch, scoring):
            rows.add(result, window)
    rows.score(nats_of, batch)
    return scored


def windows(document: Document, length: int, patch: int, scoring: str) -> Iterator[Window]:
    """The windows of a document, of at most `length` ids; every id counts in one of them."""
    overlap, shift = scoring in (SLIDING, BOTH), scoring in (STRIDED, BOTH)
    for spans, positions in window_spans(document.segments, length, patch, overlap, shift):
        yield Window(document.frame(spans, patch), positions)


def unscored(document: Document, patch: int) -> ScoredDocument:
    """A document whose nats are to be filled in."""
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


def batch_of(rows: Sequence[Framed]) -> Batch:
    """A batch of rows of equal length."""
    return Batch(
        ids=torch.from_numpy(np.stack([row.ids for row in rows])),
        patch_modality=torch.from_numpy(np.stack([row.patch_modality for row in rows])),
        document=torch.from_numpy(np.stack([row.document for row in rows])),
        role=torch.from_numpy(np.stack([row.role for row in rows])),
        origins=[None] * len(rows),
        damage=[],
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
            window_batch = batch_of([self._frame(row) for row in rows])
            scored = scored_rows(window_batch, nats_of(window_batch))
            for row, scored_row in zip(rows, scored, strict=True):
                begin = 0
                for document, window in row:
                    end = begin + len(window.positions)
                    document.fill(window.positions, scored_row, slice(begin, end))
                    begin = end
        self._rows, self._room = [], 0

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

"""Documents as pieces, and the runs of pieces that are coded one after another.

A model that mixes its outputs, or learns, knows the pieces of a document that it has coded: they
are one run, whose ids one row codes. For another model each piece is a run of its own.

n ids of a row    P ids in a patch
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from bytelm.modalities import framing
from bytelm.modalities.base import Bytes, Modality
from bytelm.modalities.framing import MAX_ENDS, Framed, Span
from bytelm.model.adaptation import Adaptation
from bytelm.model.config import ModelConfig
from bytelm.pipelines.compression.documents import Document
from bytelm.pipelines.compression.range_coding import Ids
from bytelm.pipelines.data.windows import growing_window_spans


@dataclass(frozen=True)
class Row:
    """Ids of a document or piece from its start on."""

    modality: Modality
    ids: Ids
    """[n]; coding writes the ids from `known` on in place."""
    known: int
    """Number of ids at the start that encoder and decoder both know."""
    start: int = 0
    """Bytes of the document's payload before the row's."""


@dataclass(frozen=True)
class Piece:
    """A part of a document: body ids [start, stop), without padding."""

    document: Document
    start: int
    stop: int
    known: int = 0
    """Ids of the framed piece that earlier ones hold, where it overlaps with them."""

    @property
    def size(self) -> int:
        """Payload bytes, EOM and EOD."""
        return self.stop - self.start

    @property
    def payload(self) -> Bytes:
        """The part of the document's payload, without its ends."""
        return self.document.payload[self.start : self.stop]

    def frame(self, patch: int) -> Framed:
        """The framed piece, with the document's payload as it is now."""
        span = Span(0, self.start, framing.up_to_patch(self.size, patch))
        payload = self.document.payload
        return framing.frame(
            [span], [self.document.segment], lambda _, start, stop: payload[start:stop], patch
        )

    def row(self, framed: Framed, patch: int) -> Row:
        """The ids of the framed piece without the padding at its end; its preamble is known."""
        modality = self.document.segment.modality
        opening = framing.preamble_length(modality, patch)
        ids = framed.ids[: opening + self.size].copy()
        return Row(modality, ids, max(self.known, opening), self.start)

    def store(self, row: Row, framed: Framed) -> None:
        """Copy a row's payload into the document; ValueError where it ends at another position."""
        is_payload = framed.payload[: len(row.ids)]
        payload, framing_ids = row.ids[is_payload], row.ids[~is_payload]
        expected = framed.ids[: len(row.ids)][~is_payload]
        if (payload >= framing.PAD).any() or (framing_ids != expected).any():
            raise ValueError("a payload ends at another position than it should")
        self.document.payload[self.start : self.stop] = payload


@dataclass(frozen=True)
class Run:
    """Pieces of a document that a row codes one after another, in their order."""

    pieces: Sequence[Piece]

    @property
    def whole(self) -> Piece:
        """All that the pieces hold, as one."""
        return Piece(self.pieces[0].document, self.pieces[0].start, self.pieces[-1].stop)


def runs_of(document: Document, config: ModelConfig, adaptation: Adaptation | None) -> list[Run]:
    """The runs of a document, for a model that learns by an adaptation or does not."""
    segment = document.segment
    if adaptation is not None:
        sizes = adaptation.window_length(config), adaptation.step_length(config)
        windows = growing_window_spans([segment], *sizes, config.patch)
        return [Run([_piece(document, span, int(np.argmax(p >= 0))) for (span,), p in windows])]
    parts = [(segment.modality, segment.size)]
    spans = framing.split_document(parts, config.patch, lambda: config.context)
    pieces = [_piece(document, span) for (span,) in spans]
    return [Run(pieces)] if config.output_mixing else [Run([piece]) for piece in pieces]


def _piece(document: Document, span: Span, known: int = 0) -> Piece:
    stop = min(span.start + span.length, document.segment.size + MAX_ENDS)
    return Piece(document, span.start, stop, known)

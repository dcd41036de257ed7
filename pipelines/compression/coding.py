"""Coding of documents: their ids, step by step, under the model's probabilities.

A document is framed as in training, and every id that evaluation scores is coded: SOM, header,
payload, EOM and EOD. All SOMs are coded first, then all headers, then the payloads in pieces. Rows
step together through one `Decoder`. Decoding takes the same steps in batches of the same shape,
because probabilities from any other computation, such as a parallel forward, differ in their last
bits and decode to nonsense.

    B rows of a batch    R rows that code an id in a step    n ids of a row    V ids
    P ids in a patch
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import torch

from bytelm.modalities import BY_SOM, MODALITIES, framing
from bytelm.modalities.base import Modality
from bytelm.modalities.framing import MAX_ENDS, Framed, Segment, Span
from bytelm.model.decoding.decoder import Decoder
from bytelm.model.megabyte import Megabyte
from bytelm.pipelines.compression.container import ContainerEntry, Words
from bytelm.pipelines.compression.documents import Document
from bytelm.pipelines.compression.range_coding import Coder, Ids, RangeDecoder, RangeEncoder

Advance = Callable[[int], object]
"""Called with the number of payload ids and ends that were just coded."""


@dataclass(frozen=True)
class _Row:
    """Ids of a document or piece from its start on."""

    modality: Modality
    ids: Ids
    """[n]; coding writes the ids from `known` on in place."""
    known: int
    """Number of ids at the start that encoder and decoder both know."""


@dataclass(frozen=True)
class _Piece:
    """A part of a document: body ids [start, stop), without padding."""

    document: Document
    start: int
    stop: int

    @property
    def size(self) -> int:
        """Ids that are coded: payload bytes, EOM and EOD."""
        return self.stop - self.start

    def frame(self, patch: int) -> Framed:
        """The framed piece, with the document's payload as it is now."""
        span = Span(0, self.start, framing.up_to_patch(self.size, patch))
        payload = self.document.payload
        return framing.frame(
            [span], [self.document.segment], lambda _, start, stop: payload[start:stop], patch
        )

    def store(self, row: _Row, framed: Framed) -> None:
        """Copy a row's payload into the document; ValueError where it ends at another position."""
        is_payload = framed.payload[: len(row.ids)]
        payload, framing_ids = row.ids[is_payload], row.ids[~is_payload]
        expected = framed.ids[: len(row.ids)][~is_payload]
        if (payload >= framing.PAD).any() or (framing_ids != expected).any():
            raise ValueError("a payload ends at another position than it should")
        self.document.payload[self.start : self.stop] = payload


def encode_documents(
    model: Megabyte, documents: Sequence[Document], batch: int, advance: Advance
) -> Words:
    """Code documents.

    Args:
        batch: most rows that step together.
    Returns:
        the range coder's output.
    """
    encoder, patch = RangeEncoder(), model.config.patch
    segments = [document.segment for document in documents]
    openings = [_opening(segment, patch) for segment in segments]
    kinds = [segment.modality for segment in segments]
    soms = [_Row(kind, ids[:1], known=0) for kind, ids in zip(kinds, openings, strict=True)]
    headers = [_Row(kind, ids, known=1) for kind, ids in zip(kinds, openings, strict=True)]
    _code_rows(model, encoder, soms, batch)
    _code_rows(model, encoder, headers, batch)
    _code_payloads(model, encoder, documents, batch, advance)
    return encoder.words()


def decode_documents(
    model: Megabyte, words: Words, entries: Sequence[ContainerEntry], batch: int, advance: Advance
) -> list[Document]:
    """Decode the documents of a container's entries; the inverse of `encode_documents`.

    Raises ValueError for words that these entries cannot have been coded to.
    """
    decoder, patch = RangeDecoder(words), model.config.patch
    text = MODALITIES["text"]  # stands in until the SOM is known
    soms = [_Row(text, np.zeros(1, np.uint16), known=0) for _ in entries]
    _code_rows(model, decoder, soms, batch)
    headers = [_header_row(int(row.ids[0])) for row in soms]
    _code_rows(model, decoder, headers, batch)
    documents = [
        Document(entry, _parse_segment(row, entry.size, patch), np.zeros(entry.size, np.uint8))
        for row, entry in zip(headers, entries, strict=True)
    ]
    _code_payloads(model, decoder, documents, batch, advance)
    if not decoder.is_at_end:
        raise ValueError("words are left when all is decoded")
    return documents


def _opening(segment: Segment, patch: int) -> Ids:
    """SOM and header of a segment, without padding."""
    ids = framing.preamble(segment.modality, segment.header, segment.view, 0, patch)
    return ids[: 1 + segment.modality.header_size]


def _header_row(som: int) -> _Row:
    """A row with room for the header that follows a SOM; ValueError for an id that is no SOM."""
    if som not in BY_SOM:
        raise ValueError(f"a document begins with the id {som}")
    modality = BY_SOM[som]
    ids = np.zeros(1 + modality.header_size, np.uint16)
    ids[0] = som
    return _Row(modality, ids, known=1)


def _parse_segment(row: _Row, size: int, patch: int) -> Segment:
    """The segment that SOM and header describe; ValueError for a broken header."""
    parsed = next(framing.parse(row.ids, patch))
    return Segment(parsed.modality, parsed.header, parsed.view, size)


def _code_payloads(
    model: Megabyte, coder: Coder, documents: Sequence[Document], batch: int, advance: Advance
) -> None:
    """Code the bodies of all documents, with known preambles; a decoder fills `payload`.

    Pieces of about the same length step together. Raises ValueError where a payload does not end
    where it should.
    """
    patch = model.config.patch
    pieces = [piece for d in documents for piece in _split(d, model.config.context, patch)]
    pieces.sort(key=lambda piece: -piece.size)
    for first in range(0, len(pieces), batch):
        together = pieces[first : first + batch]
        framed = [piece.frame(patch) for piece in together]
        rows = [_payload_row(*pair, patch) for pair in zip(together, framed, strict=True)]
        _code_batch(model, coder, rows, advance)
        for piece, row, ids in zip(together, rows, framed, strict=True):
            piece.store(row, ids)


def _split(document: Document, context: int, patch: int) -> list[_Piece]:
    """The pieces of a document, in rows of `context` ids."""
    modality, size = document.segment.modality, document.segment.size
    spans = framing.split_document([(modality, size)], patch, lambda: context)
    return [
        _Piece(document, span.start, min(span.start + span.length, size + MAX_ENDS))
        for (span,) in spans
    ]


def _payload_row(piece: _Piece, framed: Framed, patch: int) -> _Row:
    """A piece's ids without the padding at the end, of which the preamble is known."""
    modality = piece.document.segment.modality
    opening = framing.preamble_length(modality, patch)
    return _Row(modality, framed.ids[: opening + piece.size].copy(), known=opening)


def _code_rows(model: Megabyte, coder: Coder, rows: Sequence[_Row], batch: int) -> None:
    """Code rows, at most `batch` of them at once."""
    for first in range(0, len(rows), batch):
        _code_batch(model, coder, rows[first : first + batch], lambda coded: None)


@torch.no_grad()
def _code_batch(model: Megabyte, coder: Coder, rows: Sequence[_Row], advance: Advance) -> None:
    """Step rows together, and code in each step the ids [R] that are not known."""
    device = model.lm_head.weight.device
    lengths = np.array([len(row.ids) for row in rows])
    known = np.array([row.known for row in rows])
    longest = int(lengths.max())
    ids = np.full((len(rows), longest), framing.PAD, np.uint16)  # [B, n]
    for padded, row in zip(ids, rows, strict=True):
        padded[: len(row.ids)] = row.ids
    codes = torch.tensor([row.modality.code for row in rows], device=device)
    nothing = torch.zeros(0, dtype=torch.int64, device=device)

    decoder = Decoder(model, len(rows), longest)
    logits = decoder.prefill([nothing] * len(rows), torch.zeros_like(codes))
    for position in range(longest):
        if position:
            previous = torch.from_numpy(ids[:, position - 1].astype(np.int64)).to(device)
            logits = decoder.step(previous, codes if position == 1 else None)
        coded = np.flatnonzero((known <= position) & (position < lengths))
        if coded.size:
            probabilities = logits.double().softmax(dim=1).cpu().numpy()[coded]  # [R, V]
            ids[coded, position] = coder.code(ids[coded, position], probabilities)
            advance(coded.size)
    for padded, row in zip(ids, rows, strict=True):
        row.ids[:] = padded[: len(row.ids)]

"""The coder of documents, whose pieces step together: see `coding`.

B rows of a batch    R rows that code an id in a step    n ids of a row    V ids
P ids in a patch
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from bytelm.modalities import framing
from bytelm.modalities.base import Bytes, Modality
from bytelm.modalities.framing import MAX_ENDS, Framed, Span
from bytelm.model.decoding.decoder import Decoder
from bytelm.model.megabyte import Megabyte
from bytelm.model.output_mixing.bit_coder import BitDecoder, BitEncoder
from bytelm.model.output_mixing.mixer import RowMixer
from bytelm.pipelines.compression.container import Words
from bytelm.pipelines.compression.documents import Document
from bytelm.pipelines.compression.range_coding import Ids, RangeDecoder, RangeEncoder

STREAM_IDS = 1 << 15
"""Ids from which on a stream takes no further batch; containers of format 3 depend on it. A stream
costs some ten bytes, a thousandth of what so many ids come to."""

StreamEncoder = RangeEncoder | BitEncoder
StreamDecoder = RangeDecoder | BitDecoder
Coder = StreamEncoder | StreamDecoder
"""Coders of a stream: of binary decisions where the model mixes its outputs. Both sides of the
compressor run the same code with them."""

Advance = Callable[[int], object]
"""Called with the number of payload ids and ends that were just coded."""


@dataclass(frozen=True)
class Row:
    """Ids of a document or piece from its start on."""

    modality: Modality
    ids: Ids
    """[n]; coding writes the ids from `known` on in place."""
    known: int
    """Number of ids at the start that encoder and decoder both know."""


@dataclass(frozen=True)
class Piece:
    """A part of a document: body ids [start, stop), without padding."""

    document: Document
    start: int
    stop: int

    @property
    def size(self) -> int:
        """Ids that are coded: payload bytes, EOM and EOD."""
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

    def store(self, row: Row, framed: Framed) -> None:
        """Copy a row's payload into the document; ValueError where it ends at another position."""
        is_payload = framed.payload[: len(row.ids)]
        payload, framing_ids = row.ids[is_payload], row.ids[~is_payload]
        expected = framed.ids[: len(row.ids)][~is_payload]
        if (payload >= framing.PAD).any() or (framing_ids != expected).any():
            raise ValueError("a payload ends at another position than it should")
        self.document.payload[self.start : self.stop] = payload


def payload_row(piece: Piece, framed: Framed, patch: int, known: int = 0) -> Row:
    """A piece's ids without the padding at the end.

    Args:
        known: ids at the start that are known, if more than the preamble are.
    """
    modality = piece.document.segment.modality
    opening = framing.preamble_length(modality, patch)
    return Row(modality, framed.ids[: opening + piece.size].copy(), max(known, opening))


@dataclass(frozen=True)
class DocumentCoder:
    """The steps of a model in which an encoder or a decoder codes ids."""

    model: Megabyte
    batch: int
    """Most rows that step together."""
    threads: int
    """Threads of the products that more of them would sum up otherwise."""
    advance: Advance

    def encoder(self) -> StreamEncoder:
        """An encoder of a new stream."""
        return BitEncoder() if self.model.config.output_mixing else RangeEncoder()

    def decoder(self, words: Words) -> StreamDecoder:
        """A decoder of a stream's words."""
        return BitDecoder(words) if self.model.config.output_mixing else RangeDecoder(words)

    def pieces(self, document: Document) -> list[Piece]:
        """The pieces of a document, in rows of the model's context."""
        config, segment = self.model.config, document.segment
        parts = [(segment.modality, segment.size)]
        spans = framing.split_document(parts, config.patch, lambda: config.context)
        most = segment.size + MAX_ENDS
        return [
            Piece(document, span.start, min(span.start + span.length, most)) for (span,) in spans
        ]

    def streams(self, documents: Sequence[Document]) -> list[list[list[Piece]]]:
        """The batches of pieces that each stream holds; one stream at least.

        Pieces of about the same length step together.
        """
        pieces = [piece for document in documents for piece in self.pieces(document)]
        pieces.sort(key=lambda piece: -piece.size)
        streams: list[list[list[Piece]]] = [[]]
        ids = 0
        for first in range(0, len(pieces), self.batch):
            if ids >= STREAM_IDS:
                streams.append([])
                ids = 0
            together = pieces[first : first + self.batch]
            streams[-1].append(together)
            ids += sum(piece.size for piece in together)
        return streams

    def code_payloads(self, coder: Coder, batches: Sequence[Sequence[Piece]]) -> None:
        """Code bodies with known preambles; a decoder fills the documents' payloads.

        Raises ValueError where a payload does not end where it should.
        """
        patch = self.model.config.patch
        for together in batches:
            framed = [piece.frame(patch) for piece in together]
            rows = [payload_row(*pair, patch) for pair in zip(together, framed, strict=True)]
            self._code_batch(coder, rows, self.advance)
            for piece, row, ids in zip(together, rows, framed, strict=True):
                piece.store(row, ids)

    def code_rows(self, coder: Coder, rows: Sequence[Row]) -> None:
        """Code rows, at most `batch` of them at once."""
        for first in range(0, len(rows), self.batch):
            self._code_batch(coder, rows[first : first + self.batch], lambda coded: None)

    @torch.no_grad()
    def _code_batch(self, coder: Coder, rows: Sequence[Row], advance: Advance) -> None:
        """Step rows together, and code in each step the ids [R] that are not known."""
        config = self.model.config
        mixer = RowMixer(len(rows), config.context) if config.output_mixing else None
        device = self.model.lm_head.weight.device
        lengths = np.array([len(row.ids) for row in rows])
        known = np.array([row.known for row in rows])
        longest = int(lengths.max())
        ids = np.full((len(rows), longest), framing.PAD, np.uint16)  # [B, n]
        for padded, row in zip(ids, rows, strict=True):
            padded[: len(row.ids)] = row.ids
        codes = torch.tensor([row.modality.code for row in rows], device=device)
        nothing = torch.zeros(0, dtype=torch.int64, device=device)

        decoder = Decoder(self.model, len(rows), longest, mixes=False)
        with torch_threads(self.threads):
            logits = decoder.prefill([nothing] * len(rows), torch.zeros_like(codes))
        for position in range(longest):
            if position:
                previous = torch.from_numpy(ids[:, position - 1].astype(np.int64)).to(device)
                logits = decoder.step(previous, codes if position == 1 else None)
            coded = np.flatnonzero((known <= position) & (position < lengths))  # [R]
            if coded.size == 0:
                continue
            places = None if mixer is None else decoder.places
            ids[coded, position] = code_ids(
                coder, coded, ids[coded, position], logits, mixer, places
            )
            advance(coded.size)
        for padded, row in zip(ids, rows, strict=True):
            row.ids[:] = padded[: len(row.ids)]


def code_ids(
    coder: Coder,
    rows: npt.NDArray[np.int64],
    ids: Ids,
    logits: Tensor,
    mixer: RowMixer | None,
    places: Tensor | None,
) -> npt.NDArray[np.integer]:
    """Code the next ids [R] of some rows [R], under logits [B, V]; returns the ids.

    Args:
        mixer: of a model that mixes.
        places: [B, PLACES] of the rows' next ids, for the mixer.
    """
    if isinstance(coder, BitEncoder | BitDecoder):
        assert mixer is not None
        assert places is not None
        return mixer.code(coder, rows, ids, logits, places)
    probabilities = logits.double().softmax(dim=1).cpu().numpy()[rows]  # [R, V]
    return coder.code(ids, probabilities)


@contextmanager
def torch_threads(count: int) -> Iterator[None]:
    """Compute with `count` threads: another number may round the products of PyTorch otherwise."""
    previous = torch.get_num_threads()
    torch.set_num_threads(count)
    try:
        yield
    finally:
        torch.set_num_threads(previous)

"""Coding of documents: their ids, step by step, under the model's probabilities.

A document is framed as in training, and every id that evaluation scores is coded: SOM, header,
payload, EOM and EOD. All SOMs are coded first, then all headers, then the payloads in pieces, in
batches. A stream of the range coder holds the SOMs, the headers and the first batches, and each
further one batches of about STREAM_IDS ids, so that ranks can share the streams out. Rows
step together through one `Decoder`. Decoding takes the same steps in batches of the same shape,
because probabilities from any other computation, such as a parallel forward, differ in their last
bits and decode to nonsense.

    B rows of a batch    R rows that code an id in a step    n ids of a row    V ids
    P ids in a patch
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

import numpy as np
import torch

from bytelm.modalities import BY_SOM, MODALITIES, framing
from bytelm.modalities.base import Bytes, Modality
from bytelm.modalities.framing import MAX_ENDS, Framed, Segment, Span
from bytelm.model.decoding.decoder import Decoder
from bytelm.model.megabyte import Megabyte
from bytelm.model.output_mixing.bit_coder import BitDecoder, BitEncoder
from bytelm.model.output_mixing.mixer import RowMixer
from bytelm.pipelines.compression.container import Container, Words
from bytelm.pipelines.compression.documents import Document
from bytelm.pipelines.compression.range_coding import Ids, RangeDecoder, RangeEncoder
from bytelm.pipelines.runtime.ranks import Ranks

STREAM_IDS = 1 << 15
"""Ids from which on a stream takes no further batch; containers of format 3 depend on it. A stream
costs some ten bytes, a thousandth of what so many ids come to."""
PREFILL_THREADS = 1
"""Threads of PyTorch's products. In fp32 on a CPU the steps behind them are those of a kernel whose
rows do not depend on the number of threads, so that a process may have any."""
ONE_RANK = Ranks()

StreamEncoder = RangeEncoder | BitEncoder
StreamDecoder = RangeDecoder | BitDecoder
Coder = StreamEncoder | StreamDecoder
"""Coders of a stream: of binary decisions where the model mixes its outputs. Both sides of the
compressor run the same code with them."""

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

    def store(self, row: _Row, framed: Framed) -> None:
        """Copy a row's payload into the document; ValueError where it ends at another position."""
        is_payload = framed.payload[: len(row.ids)]
        payload, framing_ids = row.ids[is_payload], row.ids[~is_payload]
        expected = framed.ids[: len(row.ids)][~is_payload]
        if (payload >= framing.PAD).any() or (framing_ids != expected).any():
            raise ValueError("a payload ends at another position than it should")
        self.document.payload[self.start : self.stop] = payload


def encode_documents(
    model: Megabyte,
    documents: Sequence[Document],
    batch: int,
    advance: Advance,
    ranks: Ranks = ONE_RANK,
) -> list[Words]:
    """Code documents. Every rank has to call it.

    Args:
        batch: most rows that step together.
        ranks: code a share of the streams each.
    Returns:
        the range coder's output, by stream, which does not depend on the number of ranks.
    """
    coder = _DocumentCoder(model, batch, PREFILL_THREADS, advance)
    segments = [document.segment for document in documents]
    openings = [_opening(segment, model.config.patch) for segment in segments]
    kinds = [segment.modality for segment in segments]
    soms = [_Row(kind, ids[:1], known=0) for kind, ids in zip(kinds, openings, strict=True)]
    headers = [_Row(kind, ids, known=1) for kind, ids in zip(kinds, openings, strict=True)]
    words: dict[int, Words] = {}
    for number, batches in ranks.share(enumerate(coder.streams(documents))):
        encoder = coder.encoder()
        if number == 0:
            coder.code_rows(encoder, soms)
            coder.code_rows(encoder, headers)
        coder.code_payloads(encoder, batches)
        words[number] = encoder.words()
    parts = ranks.gather(words)
    return [parts[number % ranks.count][number] for number in range(sum(map(len, parts)))]


def decode_documents(
    model: Megabyte, container: Container, advance: Advance, ranks: Ranks = ONE_RANK
) -> list[Document]:
    """Decode the documents of a container; the inverse of `encode_documents`.

    Every rank has to call it.

    Args:
        ranks: decode a share of the streams each, and return all documents.
    Raises:
        ValueError: for words that the container's entries cannot have been coded to.
    """
    coder = _DocumentCoder(model, container.batch, container.threads, advance)

    def decode() -> tuple[list[Document], list[_Piece]]:
        documents, first_decoder = _decode_openings(coder, container)
        own: list[_Piece] = []
        planned = coder.streams(documents)
        if not container.first_streams:  # a single stream, of any length in formats 1 and 2
            planned = [[batch for batches in planned for batch in batches]]
        if len(planned) != len(container.first_streams) + 1:
            raise ValueError("another number of streams than its files need")
        streams = zip(container.streams, planned, strict=True)
        for number, (words, batches) in ranks.share(enumerate(streams)):
            decoder = coder.decoder(words) if number else first_decoder
            coder.code_payloads(decoder, batches)
            if not decoder.is_at_end:
                raise ValueError("words are left when all is decoded")
            own += [piece for together in batches for piece in together]
        return documents, own

    documents, own = ranks.together(decode)
    numbers = {id(document): number for number, document in enumerate(documents)}
    parts = [(numbers[id(p.document)], p.start, p.payload.tobytes()) for p in own]
    for other, received in enumerate(ranks.gather(parts)):
        for number, start, payload in received if other != ranks.rank else ():
            values = np.frombuffer(payload, np.uint8)
            documents[number].payload[start : start + len(values)] = values
    return documents


def _decode_openings(
    coder: _DocumentCoder, container: Container
) -> tuple[list[Document], StreamDecoder]:
    """Documents without payloads, and the decoder of the first stream behind their headers."""
    decoder, entries = coder.decoder(container.streams[0]), container.entries
    text = MODALITIES["text"]  # stands in until the SOM is known
    soms = [_Row(text, np.zeros(1, np.uint16), known=0) for _ in entries]
    coder.code_rows(decoder, soms)
    headers = [_header_row(int(row.ids[0])) for row in soms]
    coder.code_rows(decoder, headers)
    patch = coder.model.config.patch
    documents = [
        Document(entry, _parse_segment(row, entry.size, patch), np.zeros(entry.size, np.uint8))
        for row, entry in zip(headers, entries, strict=True)
    ]
    return documents, decoder


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


@dataclass(frozen=True)
class _DocumentCoder:
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

    def streams(self, documents: Sequence[Document]) -> list[list[list[_Piece]]]:
        """The batches of pieces that each stream holds; one stream at least.

        Pieces of about the same length step together.
        """
        config = self.model.config
        pieces = [piece for d in documents for piece in _split(d, config.context, config.patch)]
        pieces.sort(key=lambda piece: -piece.size)
        streams: list[list[list[_Piece]]] = [[]]
        ids = 0
        for first in range(0, len(pieces), self.batch):
            if ids >= STREAM_IDS:
                streams.append([])
                ids = 0
            together = pieces[first : first + self.batch]
            streams[-1].append(together)
            ids += sum(piece.size for piece in together)
        return streams

    def code_payloads(self, coder: Coder, batches: Sequence[Sequence[_Piece]]) -> None:
        """Code bodies with known preambles; a decoder fills the documents' payloads.

        Raises ValueError where a payload does not end where it should.
        """
        patch = self.model.config.patch
        for together in batches:
            framed = [piece.frame(patch) for piece in together]
            rows = [_payload_row(*pair, patch) for pair in zip(together, framed, strict=True)]
            self._code_batch(coder, rows, self.advance)
            for piece, row, ids in zip(together, rows, framed, strict=True):
                piece.store(row, ids)

    def code_rows(self, coder: Coder, rows: Sequence[_Row]) -> None:
        """Code rows, at most `batch` of them at once."""
        for first in range(0, len(rows), self.batch):
            self._code_batch(coder, rows[first : first + self.batch], lambda coded: None)

    @torch.no_grad()
    def _code_batch(
        self,
        coder: Coder,
        rows: Sequence[_Row],
        advance: Advance,
        mixer: RowMixer | None = None,
    ) -> None:
        """Step rows together, and code in each step the ids [R] that are not known.

        Args:
            mixer: of a model that mixes; by default the rows begin anew. One that has coded earlier
                pieces of the rows' documents, and was told to `go_on`, mixes with what it learned.
        """
        if mixer is None and self.model.config.output_mixing:
            mixer = RowMixer(len(rows), self.model.config.context)
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
        with _torch_threads(self.threads):
            logits = decoder.prefill([nothing] * len(rows), torch.zeros_like(codes))
        for position in range(longest):
            if position:
                previous = torch.from_numpy(ids[:, position - 1].astype(np.int64)).to(device)
                logits = decoder.step(previous, codes if position == 1 else None)
            coded = np.flatnonzero((known <= position) & (position < lengths))  # [R]
            if coded.size == 0:
                continue
            own = ids[coded, position]
            if isinstance(coder, BitEncoder | BitDecoder):
                assert mixer is not None
                own = mixer.code(coder, coded, own, logits, decoder.places)
            else:
                probabilities = logits.double().softmax(dim=1).cpu().numpy()[coded]  # [R, V]
                own = coder.code(own, probabilities)
            ids[coded, position] = own
            advance(coded.size)
        for padded, row in zip(ids, rows, strict=True):
            row.ids[:] = padded[: len(row.ids)]


@contextmanager
def _torch_threads(count: int) -> Iterator[None]:
    """Compute with `count` threads: another number may round the products of PyTorch otherwise."""
    previous = torch.get_num_threads()
    torch.set_num_threads(count)
    try:
        yield
    finally:
        torch.set_num_threads(previous)

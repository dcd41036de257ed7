"""Coding of documents: their ids, step by step, under the model's probabilities.

A document is framed as in training, and every id that evaluation scores is coded: SOM, header,
payload, EOM and EOD. All SOMs are coded first, then all headers, then the payloads in pieces, in
batches. A stream of the range coder holds the SOMs, the headers and the first batches, and each
further one batches of about STREAM_IDS ids, so that ranks can share the streams out. Rows
step together through one `Decoder`. Decoding takes the same steps in batches of the same shape,
because probabilities from any other computation, such as a parallel forward, differ in their last
bits and decode to nonsense. Where the model mixes its outputs, the pieces of a document are coded
one after another in a row, whose mixer goes on; with an `Adaptation` also by one row at a time.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from bytelm.modalities import BY_SOM, MODALITIES, framing
from bytelm.modalities.framing import Segment
from bytelm.model.adaptation import Adaptation
from bytelm.model.megabyte import Megabyte
from bytelm.pipelines.compression.container import Container, Words
from bytelm.pipelines.compression.document_coder import Advance, DocumentCoder, StreamDecoder
from bytelm.pipelines.compression.documents import Document
from bytelm.pipelines.compression.range_coding import Ids
from bytelm.pipelines.compression.runs import Piece, Row
from bytelm.pipelines.runtime.ranks import Ranks

PREFILL_THREADS = 1
"""Threads of PyTorch's products. In fp32 on a CPU the steps behind them are those of a kernel whose
rows do not depend on the number of threads, so that a process may have any."""
ONE_RANK = Ranks()


def encode_documents(
    model: Megabyte,
    documents: Sequence[Document],
    batch: int,
    advance: Advance,
    ranks: Ranks = ONE_RANK,
    adaptation: Adaptation | None = None,
) -> list[Words]:
    """Code documents. Every rank has to call it.

    Args:
        batch: most rows that step together.
        ranks: code a share of the streams each.
        adaptation: how the model learns from each document while it codes it; None: it does not.
    Returns:
        the range coder's output, by stream, which does not depend on the number of ranks.
    """
    coder = DocumentCoder(model, batch, PREFILL_THREADS, advance, adaptation)
    segments = [document.segment for document in documents]
    openings = [_opening(segment, model.config.patch) for segment in segments]
    kinds = [segment.modality for segment in segments]
    soms = [Row(kind, ids[:1], known=0) for kind, ids in zip(kinds, openings, strict=True)]
    headers = [Row(kind, ids, known=1) for kind, ids in zip(kinds, openings, strict=True)]
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
    batch, threads = container.batch, container.threads
    coder = DocumentCoder(model, batch, threads, advance, container.adaptation)

    def decode() -> tuple[list[Document], list[Piece]]:
        documents, first_decoder = _decode_openings(coder, container)
        own: list[Piece] = []
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
            own += [run.whole for together in batches for run in together]
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
    coder: DocumentCoder, container: Container
) -> tuple[list[Document], StreamDecoder]:
    """Documents without payloads, and the decoder of the first stream behind their headers."""
    decoder, entries = coder.decoder(container.streams[0]), container.entries
    text = MODALITIES["text"]  # stands in until the SOM is known
    soms = [Row(text, np.zeros(1, np.uint16), known=0) for _ in entries]
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


def _header_row(som: int) -> Row:
    """A row with room for the header that follows a SOM; ValueError for an id that is no SOM."""
    if som not in BY_SOM:
        raise ValueError(f"a document begins with the id {som}")
    modality = BY_SOM[som]
    ids = np.zeros(1 + modality.header_size, np.uint16)
    ids[0] = som
    return Row(modality, ids, known=1)


def _parse_segment(row: Row, size: int, patch: int) -> Segment:
    """The segment that SOM and header describe; ValueError for a broken header."""
    parsed = next(framing.parse(row.ids, patch))
    return Segment(parsed.modality, parsed.header, parsed.view, size)

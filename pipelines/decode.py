"""Decoding documents in worker processes, with the results in order and memory bounded.

A worker gets a batch of documents and gives back samples. It stops early where the samples grow
large, and the rest of the batch is given out again; so what is in flight is bounded in bytes
though nobody knows the size of a sample before it is decoded.
"""

from __future__ import annotations

import heapq
import io
import multiprocessing
import signal
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from multiprocessing.connection import Connection, wait
from multiprocessing.process import BaseProcess

from bytelm.modalities import MODALITIES
from bytelm.modalities.base import DecodeOptions, MediaError, Sample
from bytelm.pipelines.sources import CAPTION_ALONE, Document, Part, Skip

BATCH_FILE_BYTES = 1 << 20
BATCH_DOCUMENTS = 64
BATCH_SAMPLE_BYTES = 1 << 24
READY_BYTES = 1 << 26
"""Decoded bytes that may wait for their turn before no further batch is given out."""


@dataclass(frozen=True)
class Decoded:
    """A document's samples and where each came from, and what was skipped."""

    samples: list[Sample]
    sources: list[str]
    skipped: list[Skip]

    @property
    def size(self) -> int:
        """Bytes of all samples."""
        return sum(len(s.data) for s in self.samples)


def decode_documents(
    documents: Sequence[Document], options: DecodeOptions, workers: int
) -> Iterator[Decoded]:
    """Decode documents, in order.

    Args:
        workers: processes; 1 decodes in this one.
    Raises:
        RuntimeError: where a worker dies; it names the documents it had.
    """
    batches = list(_batches(documents))
    workers = min(workers, len(batches))
    if workers <= 1:
        for document in documents:
            yield decode_document(document, options)
        return
    pool = _start(workers, options)
    try:
        yield from _in_order(batches, list(pool))
    finally:
        for connection, process in pool.items():
            connection.close()
            process.terminate()
        for process in pool.values():
            process.join()


def decode_document(document: Document, options: DecodeOptions) -> Decoded:
    """Decode one document; a part that cannot be decoded is skipped, and its caption with it."""
    decoded = Decoded([], [], [])
    parts = list(document.parts)
    for i, part in enumerate(parts):
        if part.path is None:
            continue
        sample = _decode_part(part, options)
        caption = parts[i - 1] if i and parts[i - 1].path is None else None
        if isinstance(sample, Skip):
            decoded.skipped.append(sample)
            if caption:
                decoded.skipped.append(Skip(part.name, CAPTION_ALONE, "its file was skipped"))
            continue
        if caption:
            text = _decode_part(caption, options)
            if isinstance(text, Skip):
                decoded.skipped.append(text)
            else:
                decoded.samples.append(text)
                decoded.sources.append(caption.name)
        decoded.samples.append(sample)
        decoded.sources.append(part.name)
    return decoded


def _decode_part(part: Part, options: DecodeOptions) -> Sample | Skip:
    try:
        with open(part.path, "rb") if part.path else io.BytesIO(part.caption.encode()) as file:
            return MODALITIES[part.modality].decode(file, options)
    except MediaError as error:
        return Skip(part.name, error.reason, error.detail)
    except FileNotFoundError:
        return Skip(part.name, "missing", "no such file")
    except OSError as error:
        return Skip(part.name, "unreadable", error.strerror or "cannot be read")


def _batches(documents: Sequence[Document]) -> Iterator[tuple[int, Sequence[Document]]]:
    """(place of the first, documents): runs of small files, and large files alone."""
    first, size = 0, 0
    for i, document in enumerate(documents):
        grown = size + sum(p.size for p in document.parts)
        if i > first and (grown > BATCH_FILE_BYTES or i - first == BATCH_DOCUMENTS):
            yield first, documents[first:i]
            grown -= size
            first = i
        size = grown
    if first < len(documents):
        yield first, documents[first:]


def _start(workers: int, options: DecodeOptions) -> dict[Connection, BaseProcess]:
    """Worker processes by the parent's end of their pipes. They end when that end closes, so
    none outlives a killed parent."""
    context = multiprocessing.get_context("spawn")
    pool: dict[Connection, BaseProcess] = {}
    for _ in range(workers):
        ours, theirs = context.Pipe()
        process = context.Process(target=_work, args=(theirs, options), daemon=True)
        process.start()
        theirs.close()
        pool[ours] = process
    return pool


def _work(connection: Connection, options: DecodeOptions) -> None:
    """A worker: batches in, samples out, to the end of the pipe."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the parent handles it for all
    try:
        while True:
            documents = connection.recv()
            results: list[Decoded] = []
            size = 0
            for document in documents:
                results.append(decode_document(document, options))
                size += results[-1].size
                if size > BATCH_SAMPLE_BYTES:
                    break
            connection.send(results)
    except (EOFError, BrokenPipeError, ConnectionResetError):
        return


def _in_order(
    batches: list[tuple[int, Sequence[Document]]], idle: list[Connection]
) -> Iterator[Decoded]:
    """Give batches to idle workers, and give the results out in the order of the documents."""
    heapq.heapify(batches)  # by place
    total = sum(len(documents) for _, documents in batches)
    busy: dict[Connection, tuple[int, Sequence[Document]]] = {}
    ready: dict[int, Decoded] = {}
    ready_bytes, place = 0, 0
    while place < total:
        while idle and batches and (batches[0][0] == place or ready_bytes < READY_BYTES):
            batch = heapq.heappop(batches)
            connection = idle.pop()
            busy[connection] = batch
            _send(connection, batch[1])
        for answered in wait(list(busy)):
            assert isinstance(answered, Connection)
            first, documents = busy.pop(answered)
            results = _receive(answered, documents)
            idle.append(answered)
            for i, decoded in enumerate(results):
                ready[first + i] = decoded
                ready_bytes += decoded.size
            if len(results) < len(documents):
                heapq.heappush(batches, (first + len(results), documents[len(results) :]))
        while place in ready:
            decoded = ready.pop(place)
            ready_bytes -= decoded.size
            place += 1
            yield decoded


def _send(connection: Connection, documents: Sequence[Document]) -> None:
    try:
        connection.send(documents)
    except OSError as error:
        raise RuntimeError(_died(documents)) from error


def _receive(connection: Connection, documents: Sequence[Document]) -> list[Decoded]:
    try:
        return connection.recv()
    except (EOFError, OSError) as error:
        raise RuntimeError(_died(documents)) from error


def _died(documents: Sequence[Document]) -> str:
    names = [p.name for d in documents for p in d.parts]
    more = f" and {len(names) - 1} more files" if len(names) > 1 else ""
    return f"a decoding worker died at {names[0]}{more}; run the command again to go on"

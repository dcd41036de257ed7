"""A pool of processes that decode documents, with the results in order and memory bounded.

A worker (`decode_worker.py`) gets a batch of documents and returns samples; its next batch waits
for it already. It ends a batch early where the samples grow large, and the rest is sent again. So
the bytes in flight are bounded, though nobody knows the size of a sample before it is decoded.

A worker that dies costs at most one file. A file over its limit of processor time is refused at
once. A file at which a worker died for another reason is tried once more, since the worker may have
been killed or stopped from outside. The rest of the batch is sent again.
"""

from __future__ import annotations

import heapq
import io
import signal
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from multiprocessing.connection import Connection, wait

from bytelm.modalities import MODALITIES
from bytelm.modalities.base import DecodeOptions, MediaError, Sample
from bytelm.pipelines.prepare.decode_worker import (
    BatchResult,
    FileTask,
    Refusal,
    cpu_seconds,
)
from bytelm.pipelines.prepare.documents import (
    CAPTION_ALONE,
    DocumentPart,
    SkippedFile,
    SourceDocument,
)
from bytelm.pipelines.prepare.table_decode import Instalment
from bytelm.pipelines.prepare.table_pool import TableDecoding, TablePosition
from bytelm.pipelines.prepare.tables import TableUnit
from bytelm.pipelines.prepare.worker_process import REQUESTS_PER_WORKER, START_ATTEMPTS, Worker
from bytelm.pipelines.runtime.processes import cause_of_death

BATCH_FILE_BYTES = 1 << 20
BATCH_DOCUMENTS = 64
READY_BYTES = 1 << 26
"""Decoded bytes that wait for earlier documents, above which no further batch is sent."""

FileId = tuple[int, int]
"""Position of a document among all, and of a part in it."""


@dataclass(frozen=True)
class DecodedDocument:
    """A document's samples, the name of each one's source file, and what was skipped."""

    samples: list[Sample] = field(default_factory=list)
    sources: list[str] = field(default_factory=list)
    skipped: list[SkippedFile] = field(default_factory=list)

    @cached_property
    def size(self) -> int:
        """Bytes of all samples."""
        return sum(len(s.data) for s in self.samples)

    @property
    def notes(self) -> list[tuple[str, str]]:
        """Names of files, and what decoding changed in each."""
        named = zip(self.sources, self.samples, strict=True)
        return [(name, note) for name, sample in named for note in sample.notes]


class DecodePool:
    """Worker processes that decode documents, as a context manager that ends them.

    The first process starts at once, since Python takes a moment to start. The others start when
    there are documents for them.
    """

    def __init__(self, options: DecodeOptions, workers: int):
        self._options = options
        self._max_workers = workers
        self._workers = [Worker(options)]
        self._failures = _Failures()
        self._batches: list[_Batch] = []  # that no worker has, as a heap
        self._ready: dict[int, list[DecodedDocument]] = {}  # by position of the first document
        self._ready_bytes = 0

    def __enter__(self) -> DecodePool:
        return self

    def __exit__(self, *error: object) -> None:
        for worker in self._workers:
            worker.end()

    def decode_documents(self, documents: Sequence[SourceDocument]) -> Iterator[DecodedDocument]:
        """Decode documents, in order. Each call's documents are decoded before the next call.

        Raises RuntimeError where workers die before their first file.
        """
        self._failures = _Failures()  # whose positions count from the first of these documents
        self._batches += _batches(documents)
        missing = min(self._max_workers, len(self._batches)) - len(self._workers)
        self._workers += (Worker(self._options) for _ in range(missing))
        position = 0
        while position < len(documents):
            self._send_batches(position)
            busy = {w.connection: w for w in self._workers if w.requests}
            need_not_wait = not busy or position in self._ready
            for connection in wait(list(busy), 0 if need_not_wait else None):
                assert isinstance(connection, Connection)
                self._receive(busy[connection])
            if position in self._ready:
                decoded = self._ready.pop(position)
                self._ready_bytes -= sum(d.size for d in decoded)
                position += len(decoded)
                yield from decoded

    def decode_tables(
        self,
        units: Sequence[TableUnit],
        position: TablePosition,
        shares: tuple[float, float, float],
    ) -> Iterator[tuple[int, Instalment]]:
        """Decode the rows of tables, after all documents; see TableDecoding.instalments."""
        missing = min(self._max_workers, len(units)) - len(self._workers)
        self._workers += (Worker(self._options) for _ in range(missing))
        decoding = TableDecoding(units, shares, self._workers, lambda: Worker(self._options))
        return decoding.instalments(position)

    def _send_batches(self, position: int) -> None:
        """Fill the workers up with batches; each gets one before any gets a second. The batch at
        `position`, which the caller waits for, is sent however much is ready."""
        for held in range(REQUESTS_PER_WORKER):
            for worker in list(self._workers):
                may_send = self._batches and (
                    self._batches[0].position == position or self._ready_bytes < READY_BYTES
                )
                if may_send and len(worker.requests) == held:
                    batch = heapq.heappop(self._batches)
                    try:
                        worker.send(batch, self._nested_tasks(batch))
                    except OSError:
                        self._replace_dead(worker)

    def _receive(self, worker: Worker) -> None:
        """Take a worker's results, or replace it where it has died."""
        try:
            batch, results, has_ended = _receive_batch(worker)
        except (EOFError, OSError):
            self._replace_dead(worker)
            return
        self._failures.at_start = 0
        decoded: list[DecodedDocument] = []
        next_results = iter(results)
        for position, document in enumerate(batch.documents, batch.position):
            part_results = self._part_results(position, document, next_results)
            if part_results is None:
                break
            decoded.append(_assemble(document, part_results, self._options))
        if decoded:
            self._ready[batch.position] = decoded
            self._ready_bytes += sum(d.size for d in decoded)
        self._requeue(batch, len(decoded))
        if has_ended:
            self._replace(worker)

    def _tasks(self, batch: _Batch) -> Iterator[tuple[FileId, FileTask]]:
        """The task of each file of a batch that is not refused already."""
        for position, document in enumerate(batch.documents, batch.position):
            for i, part in enumerate(document.parts):
                if part.path is not None and (position, i) not in self._failures.refusals:
                    task = FileTask(part.name, part.path, part.offset, part.size)
                    yield (position, i), task

    def _nested_tasks(self, batch: _Batch) -> list[list[FileTask]]:
        """The tasks of each document of a batch."""
        nested: list[list[FileTask]] = [[] for _ in batch.documents]
        for (position, _), task in self._tasks(batch):
            nested[position - batch.position].append(task)
        return nested

    def _part_results(
        self, position: int, document: SourceDocument, results: Iterator[Refusal | Sample]
    ) -> dict[int, Refusal | Sample] | None:
        """The results of a document's files, by part; None where `results` end before them."""
        part_results: dict[int, Refusal | Sample] = {}
        for i, part in enumerate(document.parts):
            if part.path is None:
                continue
            result = self._failures.refusals.get((position, i)) or next(results, None)
            if result is None:
                return None
            part_results[i] = result
        return part_results

    def _requeue(self, batch: _Batch, done: int) -> None:
        """Put the documents of a batch back, without the first `done`."""
        if done < len(batch.documents):
            rest = _Batch(batch.position + done, batch.documents[done:])
            heapq.heappush(self._batches, rest)

    def _replace_dead(self, worker: Worker) -> None:
        exit_code = worker.exit_code()
        begun = worker.begun()
        if begun:
            batch = worker.requests[0]
            assert isinstance(batch, _Batch)
            file_id, task = list(self._tasks(batch))[begun - 1]
            self._failures.add(file_id, task, exit_code)
        else:
            self._failures.add_at_start(exit_code, len(self._workers))
        self._replace(worker)

    def _replace(self, worker: Worker) -> None:
        """Start a fresh worker for one that has ended, whose batches are sent again."""
        for batch in worker.requests:
            assert isinstance(batch, _Batch)
            self._requeue(batch, 0)
        worker.end()
        self._workers[self._workers.index(worker)] = Worker(self._options)


@dataclass(frozen=True)
class _Batch:
    """Documents that a worker gets together; the earliest batch sorts first."""

    position: int
    """Position of its first document among all documents."""
    documents: Sequence[SourceDocument]

    def __lt__(self, other: _Batch) -> bool:
        return self.position < other.position


def _batches(documents: Sequence[SourceDocument]) -> Iterator[_Batch]:
    """Batches of small files, and large files alone."""
    first, batch_size = 0, 0
    for i, document in enumerate(documents):
        size = sum(p.size for p in document.parts)
        is_full = batch_size + size > BATCH_FILE_BYTES or i - first == BATCH_DOCUMENTS
        if i > first and is_full:
            yield _Batch(first, documents[first:i])
            first, batch_size = i, 0
        batch_size += size
    if first < len(documents):
        yield _Batch(first, documents[first:])


def _receive_batch(worker: Worker) -> tuple[_Batch, list[Refusal | Sample], bool]:
    """A worker's oldest batch, the results of its first files, and whether the worker has ended.

    Raises EOFError or OSError where it has died.
    """
    batch, batch_result, memory = worker.receive()
    assert isinstance(batch, _Batch)
    assert isinstance(batch_result, BatchResult)
    results: list[Refusal | Sample] = []
    for result in batch_result.files:
        if isinstance(result, Refusal):
            results.append(result)
            continue
        results.append(replace(result.sample, data=memory.read(result.size)))
    return batch, results, batch_result.is_last


class _Failures:
    """Deaths of workers, and the files that are refused for them."""

    def __init__(self) -> None:
        self.refusals: dict[FileId, Refusal] = {}
        self.at_start = 0
        """Workers that died before their first file, since the last one that answered."""
        self._deaths: Counter[FileId] = Counter()

    def add(self, file_id: FileId, task: FileTask, exit_code: int) -> None:
        """Record a death at a file."""
        self._deaths[file_id] += 1
        is_second = self._deaths[file_id] == 2
        if exit_code == -signal.SIGPROF or (exit_code == -signal.SIGALRM and is_second):
            seconds = cpu_seconds(task.size)
            detail = f"decoding takes over {seconds:.0f} seconds of processor time"
            self.refusals[file_id] = Refusal("too slow", detail)
        elif is_second:
            self.refusals[file_id] = Refusal("decoder died", cause_of_death(exit_code))

    def add_at_start(self, exit_code: int, workers: int) -> None:
        """Record a death before the first file; RuntimeError after START_ATTEMPTS of each
        worker."""
        self.at_start += 1
        if self.at_start == START_ATTEMPTS * workers:
            raise RuntimeError(
                f"decoding workers die before their first file ({cause_of_death(exit_code)}): "
                "is there memory for them? Try fewer --workers"
            )


def _assemble(
    document: SourceDocument, part_results: dict[int, Refusal | Sample], options: DecodeOptions
) -> DecodedDocument:
    """A document of its parts. A part without a sample is skipped, and its caption with it."""
    decoded = DecodedDocument()
    parts = document.parts
    for i, result in part_results.items():
        part = parts[i]
        caption = parts[i - 1] if i and parts[i - 1].path is None else None
        if isinstance(result, Refusal):
            decoded.skipped.append(SkippedFile(part.name, result.reason, result.detail, part.size))
            if caption:
                detail = "its file was skipped"
                decoded.skipped.append(SkippedFile(part.name, CAPTION_ALONE, detail))
            continue
        if caption:
            _add_caption(decoded, caption, options)
        decoded.samples.append(result)
        decoded.sources.append(part.name)
    return decoded


def _add_caption(decoded: DecodedDocument, caption: DocumentPart, options: DecodeOptions) -> None:
    try:
        text = MODALITIES["text"].decode_file(io.BytesIO(caption.caption.encode()), options)
    except MediaError as error:
        decoded.skipped.append(SkippedFile(caption.name, error.reason, error.detail))
    else:
        decoded.samples.append(text)
        decoded.sources.append(caption.name)

"""Decoding documents in worker processes, with the results in order and memory bounded.

A worker gets a batch of documents and gives back samples, and has the next batch waiting for it.
It stops early where the samples grow large, and the rest of the batch is given out again; so what
is in flight is bounded in bytes though nobody knows the size of a sample before it is decoded.

A worker that dies costs one file at most. A file that is over its processor time is refused at
once; one that a worker died at for another reason is tried once more, since the worker may have
been killed or stopped from outside. The rest of the batch is given out again.
"""

from __future__ import annotations

import contextlib
import heapq
import io
import multiprocessing
import os
import signal
import subprocess
import sys
from collections import Counter, deque
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from multiprocessing.connection import Connection, wait

from bytelm.modalities import MODALITIES
from bytelm.modalities.base import DecodeOptions, MediaError, Sample
from bytelm.pipelines.prepare.decode_worker import (
    BATCH_SAMPLE_BYTES,
    PROGRESS_BYTES,
    Answer,
    Refusal,
    Task,
    cpu_seconds,
)
from bytelm.pipelines.prepare.sources import CAPTION_ALONE, Part, Skip, SourceDocument

BATCH_FILE_BYTES = 1 << 20
BATCH_DOCUMENTS = 64
READY_BYTES = 1 << 26
"""Decoded bytes that may wait for their turn before no further batch is given out."""
BATCHES_AT_WORKER = 2
START_ATTEMPTS = 3

_WORK = "from bytelm.pipelines.prepare.decode_worker import main; main()"


@dataclass(frozen=True)
class Decoded:
    """A document's samples and where each came from, and what was skipped."""

    samples: list[Sample]
    sources: list[str]
    skipped: list[Skip]

    @cached_property
    def size(self) -> int:
        """Bytes of all samples."""
        return sum(len(s.data) for s in self.samples)


@dataclass(frozen=True)
class _Batch:
    place: int
    """Of the first document."""
    documents: Sequence[SourceDocument]

    def __lt__(self, other: _Batch) -> bool:
        return self.place < other.place


def _batches(documents: Sequence[SourceDocument]) -> Iterator[_Batch]:
    """Runs of small files, and large files alone."""
    first, size = 0, 0
    for i, document in enumerate(documents):
        grown = size + sum(p.size for p in document.parts)
        if i > first and (grown > BATCH_FILE_BYTES or i - first == BATCH_DOCUMENTS):
            yield _Batch(first, documents[first:i])
            grown -= size
            first = i
        size = grown
    if first < len(documents):
        yield _Batch(first, documents[first:])


class _Worker:
    """The parent's side of a worker process, and the batches that it has."""

    def __init__(self, options: DecodeOptions):
        self.connection, theirs = multiprocessing.Pipe()
        self.batches: deque[_Batch] = deque()
        self._memories = deque(os.memfd_create("samples") for _ in range(BATCHES_AT_WORKER))
        descriptors = (theirs.fileno(), *self._memories)
        command = [sys.executable, "-P", "-c", _WORK, *map(str, descriptors)]
        with theirs:
            self._process = subprocess.Popen(
                command, pass_fds=descriptors, stdin=subprocess.DEVNULL
            )
        with contextlib.suppress(OSError):  # it has died, which shows when it gets a batch
            self.connection.send(options)

    def give(self, batch: _Batch, tasks: list[list[Task]]) -> None:
        """Send a batch; OSError where the worker has died."""
        os.pwrite(self._memories[len(self.batches)], bytes(PROGRESS_BYTES), 0)
        self.batches.append(batch)
        self.connection.send(tasks)

    def receive(self) -> tuple[_Batch, list[Refusal | Sample], bool]:
        """The oldest batch, what became of its first files, and whether the worker has ended;
        EOFError or OSError where it has died."""
        answer: Answer = self.connection.recv()
        memory = self._memories[0]
        results: list[Refusal | Sample] = []
        end = PROGRESS_BYTES
        for result in answer.results:
            if isinstance(result, Refusal):
                results.append(result)
                continue
            data = os.pread(memory, result.size, end)
            assert len(data) == result.size
            end += result.size
            results.append(Sample(result.modality, result.header, data, result.is_file))
        if end > 2 * BATCH_SAMPLE_BYTES:
            os.ftruncate(memory, PROGRESS_BYTES)
        self._memories.rotate(-1)
        return self.batches.popleft(), results, answer.is_last

    def begun(self) -> int:
        """How many files of the oldest batch were begun."""
        return int.from_bytes(os.pread(self._memories[0], PROGRESS_BYTES, 0))

    def exit_code(self) -> int:
        """The process's exit status, or the number of the signal that ended it, negative."""
        return self._process.wait()

    def end(self) -> None:
        """End the process, and wait for it."""
        self.connection.close()
        self._process.kill()
        self._process.wait()
        for memory in self._memories:
            os.close(memory)


class Decoders:
    """Worker processes that decode documents, as a context manager that ends them.

    The first one starts at once, since Python takes a moment for that, the others when there are
    documents for them.
    """

    def __init__(self, options: DecodeOptions, workers: int):
        self._options = options
        self._most = workers
        self._workers = [_Worker(options)]
        self._batches: list[_Batch] = []  # that no worker has, a heap by place
        self._ready: dict[int, list[Decoded]] = {}  # by the place of the first document
        self._ready_bytes = 0
        self._refused: dict[tuple[int, int], Refusal] = {}  # by place and part
        self._deaths: Counter[tuple[int, int]] = Counter()
        self._deaths_at_start = 0

    def __enter__(self) -> Decoders:
        return self

    def __exit__(self, *error: object) -> None:
        for worker in self._workers:
            worker.end()

    def decode(self, documents: Sequence[SourceDocument]) -> Iterator[Decoded]:
        """Decode documents, in order. To be called once.

        Raises RuntimeError where workers do not even start.
        """
        self._batches += _batches(documents)
        more = min(self._most, len(self._batches)) - len(self._workers)
        self._workers += (_Worker(self._options) for _ in range(more))
        place = 0
        while place < len(documents):
            self._give_out(place)
            waiting = {w.connection: w for w in self._workers if w.batches}
            is_idle = not waiting or place in self._ready
            for connection in wait(list(waiting), 0 if is_idle else None):
                assert isinstance(connection, Connection)
                self._take(waiting[connection])
            if place in self._ready:
                decoded = self._ready.pop(place)
                self._ready_bytes -= sum(d.size for d in decoded)
                place += len(decoded)
                yield from decoded

    def _give_out(self, place: int) -> None:
        """Every worker gets one batch before one gets a second."""
        for held in range(BATCHES_AT_WORKER):
            for worker in list(self._workers):
                is_open = self._batches and (
                    self._batches[0].place == place or self._ready_bytes < READY_BYTES
                )
                if is_open and len(worker.batches) == held:
                    batch = heapq.heappop(self._batches)
                    try:
                        worker.give(batch, self._nested_tasks(batch))
                    except OSError:
                        self._replace_dead(worker)

    def _tasks(self, batch: _Batch) -> Iterator[tuple[int, int, Task]]:
        """(place, part, task) of each file of a batch that is not refused already."""
        for place, document in enumerate(batch.documents, batch.place):
            for i, part in enumerate(document.parts):
                if part.path is not None and (place, i) not in self._refused:
                    yield place, i, Task(part.path, part.offset, part.size, part.modality)

    def _nested_tasks(self, batch: _Batch) -> list[list[Task]]:
        """The tasks of each document of a batch."""
        nested: list[list[Task]] = [[] for _ in batch.documents]
        for place, _, task in self._tasks(batch):
            nested[place - batch.place].append(task)
        return nested

    def _take(self, worker: _Worker) -> None:
        """Take what a worker has, or find out what it died of."""
        try:
            batch, results, has_ended = worker.receive()
        except (EOFError, OSError):
            self._replace_dead(worker)
            return
        self._deaths_at_start = 0
        decoded: list[Decoded] = []
        next_results = iter(results)
        for place, document in enumerate(batch.documents, batch.place):
            of_parts = self._of_parts(place, document, next_results)
            if of_parts is None:
                break
            decoded.append(_assemble(document, of_parts, self._options))
        if decoded:
            self._ready[batch.place] = decoded
            self._ready_bytes += sum(d.size for d in decoded)
        self._give_back(batch, len(decoded))
        if has_ended:
            self._replace(worker)

    def _of_parts(
        self, place: int, document: SourceDocument, results: Iterator[Refusal | Sample]
    ) -> dict[int, Refusal | Sample] | None:
        """What became of a document's files, by part; None where the results end before them."""
        of_parts: dict[int, Refusal | Sample] = {}
        for i, part in enumerate(document.parts):
            if part.path is None:
                continue
            result = self._refused.get((place, i)) or next(results, None)
            if result is None:
                return None
            of_parts[i] = result
        return of_parts

    def _give_back(self, batch: _Batch, done: int) -> None:
        if done < len(batch.documents):
            heapq.heappush(self._batches, _Batch(batch.place + done, batch.documents[done:]))

    def _replace_dead(self, worker: _Worker) -> None:
        exit_code = worker.exit_code()
        begun = worker.begun()
        if begun:
            place, i, task = list(self._tasks(worker.batches[0]))[begun - 1]
            self._deaths[place, i] += 1
            is_second = self._deaths[place, i] == 2
            if exit_code == -signal.SIGPROF or (exit_code == -signal.SIGALRM and is_second):
                seconds = cpu_seconds(task.size)
                self._refused[place, i] = Refusal(
                    "too slow", f"decoding takes over {seconds:.0f} seconds of processor time"
                )
            elif is_second:
                self._refused[place, i] = Refusal("decoder died", _cause(exit_code))
        else:
            self._deaths_at_start += 1
            if self._deaths_at_start == START_ATTEMPTS * len(self._workers):
                raise RuntimeError(
                    f"decoding workers die before their first file ({_cause(exit_code)}): "
                    "is there memory for them? Try fewer --workers"
                )
        self._replace(worker)

    def _replace(self, worker: _Worker) -> None:
        """Put a fresh worker in the place of one that has ended; its batches are given out anew."""
        for batch in worker.batches:
            self._give_back(batch, 0)
        worker.end()
        self._workers[self._workers.index(worker)] = _Worker(self._options)


def _cause(exit_code: int) -> str:
    if exit_code < 0:
        return f"killed by {signal.Signals(-exit_code).name}"
    return f"exit status {exit_code}"


def _assemble(
    document: SourceDocument, of_parts: dict[int, Refusal | Sample], options: DecodeOptions
) -> Decoded:
    """A document of its parts; a part without a sample is skipped, and its caption with it."""
    decoded = Decoded([], [], [])
    parts = document.parts
    for i, result in of_parts.items():
        part = parts[i]
        caption = parts[i - 1] if i and parts[i - 1].path is None else None
        if isinstance(result, Refusal):
            decoded.skipped.append(Skip(part.name, result.reason, result.detail))
            if caption:
                decoded.skipped.append(Skip(part.name, CAPTION_ALONE, "its file was skipped"))
            continue
        if caption:
            _add_caption(decoded, caption, options)
        decoded.samples.append(result)
        decoded.sources.append(part.name)
    return decoded


def _add_caption(decoded: Decoded, caption: Part, options: DecodeOptions) -> None:
    try:
        text = MODALITIES["text"].decode(io.BytesIO(caption.caption.encode()), options)
    except MediaError as error:
        decoded.skipped.append(Skip(caption.name, error.reason, error.detail))
    else:
        decoded.samples.append(text)
        decoded.sources.append(caption.name)

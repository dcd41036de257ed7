"""The process that decodes files, one after the other, under limits of memory and time.

`decode_pool.py` starts it. A hostile file can make a decoder hang, crash, or ask for all memory;
here it costs itself only:

- memory: the process may not grow beyond MEMORY_BYTES. A decoder that asks for more fails. The
  file is tried again as the first one of a fresh process before it is refused.
- time: a file has `cpu_seconds` of processor time, so that a busy machine refuses no file that an
  idle one takes, and WALL_FACTOR times as long by the clock. At the limit the kernel ends the
  process, also inside a decoder, and also where the parent is gone.

The bytes of samples go to the parent through a file in memory that both have open; a pipe carries
everything else. A worker ends when its pipe does.
"""

from __future__ import annotations

import contextlib
import gc
import io
import mmap
import os
import resource
import signal
import sys
from collections.abc import Sequence
from dataclasses import replace
from multiprocessing.connection import Connection
from pathlib import Path
from typing import BinaryIO, NamedTuple

from bytelm.modalities import MODALITIES
from bytelm.modalities.base import DecodeOptions, MediaError, Sample
from bytelm.modalities.detect import START_BYTES, detect_modality
from bytelm.pipelines.errors import one_line
from bytelm.pipelines.prepare.table_decode import Instalment, TableTask, UnitDecoder

MEMORY_BYTES = 960 << 20
"""Memory of a worker: its modules, the file, the decoder and the samples. Where sounds are
resampled, torch's libraries (500 MB) come on top."""
CPU_SECONDS = 5.0
CPU_SECONDS_PER_BYTE = 1e-6
READING_SECONDS_PER_BYTE = 5e-6
"""Rate for the rows of a table: two bytes can be a row, and a bad one takes some 5 us."""
WALL_FACTOR = 12
BATCH_SAMPLE_BYTES = 1 << 24
"""A batch ends early where its samples grow larger than this; the rest is sent again."""
READ_WHOLE_BYTES = 1 << 20
"""Files up to this size are read at once."""
PROGRESS_BYTES = 8
"""Size of the number at the start of a file in memory: how many files of the batch were begun; of
a table's unit, READING_ROWS, or 2 more than the number of the row that is decoded."""
READING_ROWS = 1
MAX_PARTS = 1024
"""Parts that the system writes in one call."""
DETAIL_CHARACTERS = 200


class FileTask(NamedTuple):
    """A file to decode, or a member of a tar."""

    name: str
    """Relative to its source; its suffix is checked against the content."""
    path: str
    offset: int | None
    """Position of the member's first byte; None for a whole file."""
    size: int
    """Bytes, as they were when the sources were scanned."""


class Refusal(NamedTuple):
    """The reason why a file gives no sample."""

    reason: str
    detail: str


class SampleInfo(NamedTuple):
    """A sample whose bytes lie in the file in memory, one sample after the other."""

    sample: Sample
    """Without its bytes."""
    size: int


class BatchResult(NamedTuple):
    """A refusal or a sample for each of a batch's first files."""

    files: list[Refusal | SampleInfo]
    is_last: bool
    """Whether the process ends after this batch."""


def cpu_seconds(size: int) -> float:
    """Processor time for a file of `size` bytes, several times that of a sound one."""
    return CPU_SECONDS + size * CPU_SECONDS_PER_BYTE


def reading_seconds(size: int) -> float:
    """Processor time to read the rows of `size` bytes of a table, without decoding them."""
    return CPU_SECONDS + size * READING_SECONDS_PER_BYTE


def main() -> None:
    """Run a worker. The arguments are descriptors: of the pipe, and of files in memory.

    The pipe brings the options and then tasks, each with the number of the file for its answer.
    """
    pipe, *descriptors = map(int, sys.argv[1:])
    memories = [_SampleFile(descriptor) for descriptor in descriptors]
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the parent handles it for all
    silence()
    with Connection(pipe) as connection, contextlib.suppress(EOFError, OSError):
        options: DecodeOptions = connection.recv()
        limit_memory(options)
        tables = _Tables(options)
        gc.freeze()  # what is imported stays: collections need not look at it
        is_fresh = True
        while True:
            slot, task = connection.recv()
            samples = memories[slot]
            samples.clear()
            result: BatchResult | Instalment
            if isinstance(task, TableTask):
                result = tables.read(task, samples, is_fresh)
            else:
                result = _decode_batch(task, samples, options, is_fresh)
            connection.send(result)
            if result.is_last:
                return
            is_fresh = False


class _Tables:
    """The units of tables that the process has open."""

    def __init__(self, options: DecodeOptions):
        self._options = options
        self._open: dict[int, UnitDecoder] = {}
        self._watch = _TableWatch()

    def read(self, task: TableTask, samples: _SampleFile, is_fresh: bool) -> Instalment:
        """The next instalment of a unit."""
        self._watch.begin_instalment(samples, task.unit.size)
        if task.position is not None:
            self._open[task.number] = UnitDecoder(task, self._options, self._watch)
        instalment = self._open[task.number].read(samples, is_fresh)
        if instalment.is_end:
            del self._open[task.number]
        limit_time(0)
        return instalment


class _TableWatch:
    """Tells the parent which row is decoded, and limits the time of that and of reading."""

    def begin_instalment(self, samples: _SampleFile, unit_size: int) -> None:
        """Rows are about to be read to a file in memory."""
        self._samples, self._unit_size = samples, unit_size
        self.end_row()

    def begin_row(self, number: int, size: int) -> None:
        """See RowWatch."""
        self._samples.set_begun(number + 2)
        limit_time(cpu_seconds(size))

    def end_row(self) -> None:
        """See RowWatch."""
        self._samples.set_begun(READING_ROWS)
        limit_time(reading_seconds(self._unit_size))


class _SampleFile:
    """A file in memory: the number of files begun, and then the bytes of samples."""

    def __init__(self, descriptor: int):
        self._descriptor = descriptor
        self._mapping: mmap.mmap | None = None
        self.clear()

    def clear(self) -> None:
        """Begin anew, for another task."""
        self._begun = 0
        self.size = PROGRESS_BYTES

    def begin_file(self) -> None:
        """Tell the parent that the next file of the batch is begun."""
        self.set_begun(self._begun + 1)

    def set_begun(self, begun: int) -> None:
        """Tell the parent a number; see PROGRESS_BYTES."""
        self._begun = begun
        os.pwrite(self._descriptor, begun.to_bytes(PROGRESS_BYTES), 0)

    def append(self, sample: Sample) -> SampleInfo:
        """Store the bytes of a sample."""
        size = len(sample.data)
        written = os.pwrite(self._descriptor, sample.data, self.size)
        assert written == size
        self.size += size
        return SampleInfo(replace(sample, data=b""), size)

    def reserve(self, size: int) -> memoryview:
        """See MemberMemory. The parent may have made the file shorter since the last task."""
        start, self.size = self.size, self.size + size
        if os.fstat(self._descriptor).st_size < self.size:
            os.ftruncate(self._descriptor, self.size)
        if self._mapping is None or len(self._mapping) < self.size:
            self._mapping = mmap.mmap(self._descriptor, self.size)
        return memoryview(self._mapping)[start : self.size]

    def append_parts(self, parts: Sequence[bytes | memoryview]) -> None:
        """Store the bytes of a table's documents."""
        for first in range(0, len(parts), MAX_PARTS):
            some = parts[first : first + MAX_PARTS]
            written = os.pwritev(self._descriptor, some, self.size)
            assert written == sum(map(len, some))
            self.size += written


def _decode_batch(
    documents: Sequence[Sequence[FileTask]],
    samples: _SampleFile,
    options: DecodeOptions,
    is_fresh: bool,
) -> BatchResult:
    """Decode documents up to the end of the batch, BATCH_SAMPLE_BYTES, or the memory limit."""
    results: list[Refusal | SampleInfo] = []
    is_last = False
    for tasks in documents:
        for task in tasks:
            samples.begin_file()
            try:
                result = _decode_file(task, options)
            except MemoryError:
                is_last = True
                if not is_fresh:  # earlier samples may hold the memory
                    return BatchResult(results, is_last)
                detail = f"decoding takes over {MEMORY_BYTES >> 20} MiB"
                result = Refusal("over the memory limit", detail)
            results.append(result if isinstance(result, Refusal) else samples.append(result))
        is_fresh = False
        if is_last or samples.size > BATCH_SAMPLE_BYTES:
            break
    limit_time(0)
    return BatchResult(results, is_last)


def _decode_file(task: FileTask, options: DecodeOptions) -> Sample | Refusal:
    """A file's sample, or the reason why there is none. Raises MemoryError."""
    limit_time(cpu_seconds(task.size))
    try:
        with _open(task) as file:
            modality = detect_modality(task.name, file.read(START_BYTES))
            file.seek(0)
            return MODALITIES[modality].decode_file(file, options)
    except MediaError as error:
        return Refusal(error.reason, error.detail[:DETAIL_CHARACTERS])
    except FileNotFoundError:
        return Refusal("missing", "no such file")
    except OSError as error:
        return Refusal("unreadable", error.strerror or "cannot be read")
    except MemoryError:
        raise
    except Exception as error:  # a decoder's bug costs this file only
        return Refusal("decoder failed", one_line(error)[:DETAIL_CHARACTERS])


def _open(task: FileTask) -> BinaryIO:
    """A task's file or member. All but large files are read at once."""
    if task.offset is None and task.size > READ_WHOLE_BYTES:
        return open(task.path, "rb")
    with open(task.path, "rb", buffering=0) as file:
        if task.offset is None:
            return io.BytesIO(file.readall())
        data = os.pread(file.fileno(), task.size, task.offset)
    if len(data) < task.size:
        raise MediaError("truncated", f"{len(data)} bytes of {task.size}")
    return io.BytesIO(data)


def silence() -> None:
    """Discard stderr, where decoders complain. The report says what is wrong with a file."""
    null = os.open(os.devnull, os.O_WRONLY)
    os.dup2(null, 2)
    os.close(null)


def limit_memory(options: DecodeOptions) -> None:
    """Let the process's own data grow by MEMORY_BYTES less what it holds now."""
    growth = MEMORY_BYTES - _status_bytes("VmRSS")
    if options.audio_rate:
        import torchaudio.functional  # noqa: F401  (before memory is limited)
    limit = _status_bytes("VmData") + growth
    resource.setrlimit(resource.RLIMIT_DATA, (limit, limit))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))


def _status_bytes(field: str) -> int:
    """A size in this process's status, in bytes."""
    status = Path("/proc/self/status").read_text()
    return int(status.partition(f"{field}:")[2].split()[0]) << 10


def limit_time(seconds: float) -> None:
    """End the process after `seconds` of processor time; 0 removes the limit."""
    signal.setitimer(signal.ITIMER_PROF, seconds)
    signal.setitimer(signal.ITIMER_REAL, seconds * WALL_FACTOR)

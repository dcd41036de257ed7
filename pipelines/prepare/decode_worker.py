"""The process that decodes files, one after the other, under limits of memory and time.

A hostile file can make a decoder hang, crash, or ask for all memory. Here it costs itself only:

- memory: the process may not grow beyond MEMORY_BYTES. A decoder that asks for more fails; the
  file is tried again as the first one of a fresh process before it is given up.
- time: a file has `cpu_seconds` of processor time, so a busy machine refuses nothing that an idle
  one takes, and WALL_FACTOR times as long by the clock. The kernel ends the process then, also
  inside a decoder, and also where the parent is gone.

Samples go to the parent through a file in memory that both have open; the pipe carries what
describes them. A worker ends when its pipe does.
"""

from __future__ import annotations

import contextlib
import io
import os
import resource
import signal
import sys
from collections.abc import Sequence
from multiprocessing.connection import Connection
from pathlib import Path
from typing import BinaryIO, NamedTuple

from bytelm.modalities import MODALITIES
from bytelm.modalities.base import DecodeOptions, Header, MediaError, Sample
from bytelm.modalities.detect import START_BYTES, UNKNOWN_KIND, modality_of

MEMORY_BYTES = 960 << 20
"""Of a worker, all in all: its modules, the file, the decoder, and the samples. What torch takes to
be there (500 MB, mostly its libraries) comes on top where sounds are resampled."""
CPU_SECONDS = 5.0
CPU_SECONDS_PER_BYTE = 1e-6
WALL_FACTOR = 12
BATCH_SAMPLE_BYTES = 1 << 24
"""A batch ends early where its samples grow larger than this; the rest is given out again."""
READ_WHOLE_BYTES = 1 << 20
PROGRESS_BYTES = 8
"""A file in memory begins with how many of its batch's files have been begun."""
DETAIL_CHARACTERS = 200


class Task(NamedTuple):
    """A file to decode, or the part of one that a tar's member is."""

    path: str
    offset: int | None
    """Where the member begins; None for a whole file."""
    size: int
    """Bytes, as they were when the sources were looked through."""
    modality: str | None
    """None where the first bytes have yet to tell."""


class Refusal(NamedTuple):
    """Why a file gives no sample."""

    reason: str
    detail: str


class Described(NamedTuple):
    """A sample but for its bytes, which lie in the file in memory, one sample after the other."""

    modality: str
    header: Header
    is_file: bool
    size: int


class Answer(NamedTuple):
    """What became of a batch's files, up to one of them."""

    results: list[Refusal | Described]
    is_last: bool
    """True where the process ends with this answer."""


def cpu_seconds(size: int) -> float:
    """Processor time that a file of `size` bytes may take, several times what a sound one does."""
    return CPU_SECONDS + size * CPU_SECONDS_PER_BYTE


def main() -> None:
    """Be a worker. The arguments are descriptors: of the pipe, and of two files in memory.

    The options come first through the pipe, then batches, for the two files in turn.
    """
    pipe, *memories = map(int, sys.argv[1:])
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the parent handles it for all
    _silence()
    with Connection(pipe) as connection, contextlib.suppress(EOFError, OSError):
        options: DecodeOptions = connection.recv()
        _limit_memory(options)
        fresh = True
        while True:
            answer = _decode_batch(connection.recv(), memories[0], options, fresh)
            connection.send(answer)
            if answer.is_last:
                return
            memories.reverse()
            fresh = False


def _silence() -> None:
    """Decoders complain on stderr; what is wrong with a file goes into the report instead."""
    nowhere = os.open(os.devnull, os.O_WRONLY)
    os.dup2(nowhere, 2)
    os.close(nowhere)


def _limit_memory(options: DecodeOptions) -> None:
    """Let the process's own data grow up to what is left of MEMORY_BYTES."""
    left = MEMORY_BYTES - _own_bytes("VmRSS")
    if options.audio_rate:
        import torchaudio.functional  # noqa: F401  (before memory is limited)
    limit = _own_bytes("VmData") + left
    resource.setrlimit(resource.RLIMIT_DATA, (limit, limit))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))


def _own_bytes(field: str) -> int:
    """A field of this process's status that is a size."""
    status = Path("/proc/self/status").read_text()
    return int(status.partition(f"{field}:")[2].split()[0]) << 10


def _decode_batch(
    documents: Sequence[Sequence[Task]], memory: int, options: DecodeOptions, fresh: bool
) -> Answer:
    """Decode documents up to the end of the batch, BATCH_SAMPLE_BYTES, or the memory limit."""
    results: list[Refusal | Described] = []
    begun, end = 0, PROGRESS_BYTES
    is_last = False
    for tasks in documents:
        for task in tasks:
            begun += 1
            os.pwrite(memory, begun.to_bytes(PROGRESS_BYTES), 0)
            try:
                sample = _decode(task, options)
            except MemoryError:
                is_last = True
                if not fresh:  # what was decoded before may hold the memory
                    return Answer(results, is_last)
                detail = f"decoding takes over {MEMORY_BYTES >> 20} MiB"
                sample = Refusal("over the memory limit", detail)
            if isinstance(sample, Refusal):
                results.append(sample)
            else:
                size = len(sample.data)
                written = os.pwrite(memory, sample.data, end)
                assert written == size
                end += size
                results.append(Described(sample.modality, sample.header, sample.is_file, size))
        fresh = False
        if is_last or end > BATCH_SAMPLE_BYTES:
            break
    _limit_time(0)
    return Answer(results, is_last)


def _limit_time(seconds: float) -> None:
    """End the process after so much processor time; 0 sets no limit."""
    signal.setitimer(signal.ITIMER_PROF, seconds)
    signal.setitimer(signal.ITIMER_REAL, seconds * WALL_FACTOR)


def _decode(task: Task, options: DecodeOptions) -> Sample | Refusal:
    """One file's sample, or why there is none. Raises MemoryError."""
    _limit_time(cpu_seconds(task.size))
    try:
        with _open(task) as file:
            modality = task.modality or modality_of(file.read(START_BYTES))
            if modality is None:
                return Refusal(*UNKNOWN_KIND)
            file.seek(0)
            return MODALITIES[modality].decode(file, options)
    except MediaError as error:
        return Refusal(error.reason, error.detail[:DETAIL_CHARACTERS])
    except FileNotFoundError:
        return Refusal("missing", "no such file")
    except OSError as error:
        return Refusal("unreadable", error.strerror or "cannot be read")
    except MemoryError:
        raise
    except Exception as error:  # only this file's loss, whatever the decoder did
        detail = " ".join(f"{type(error).__name__}: {error}".split())
        return Refusal("decoder failed", detail[:DETAIL_CHARACTERS])


def _open(task: Task) -> BinaryIO:
    """The file, read in one go where it is small, or the member of a tar."""
    if task.offset is None and task.size > READ_WHOLE_BYTES:
        return open(task.path, "rb")
    with open(task.path, "rb", buffering=0) as file:
        if task.offset is None:
            return io.BytesIO(file.readall())
        data = os.pread(file.fileno(), task.size, task.offset)
    if len(data) < task.size:
        raise MediaError("truncated", f"{len(data)} bytes of {task.size}")
    return io.BytesIO(data)

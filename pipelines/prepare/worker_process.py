"""The parent's side of a decoding process: what it was asked for, and how it ended."""

from __future__ import annotations

import contextlib
import mmap
import multiprocessing
import os
import subprocess
import sys
import weakref
from collections import deque
from collections.abc import Callable
from multiprocessing.connection import Connection
from typing import Any

import numpy as np
import numpy.typing as npt

from bytelm.modalities.base import DecodeOptions
from bytelm.pipelines.prepare.decode_worker import BATCH_SAMPLE_BYTES, PROGRESS_BYTES

REQUESTS_PER_WORKER = 2
MEMORIES_PER_WORKER = 8
"""Files in memory: for the answer to each request, and for answers that are still in use."""
START_ATTEMPTS = 3

_ENVIRONMENT = {
    "MALLOC_MMAP_THRESHOLD_": str(1 << 25),
    "MALLOC_TRIM_THRESHOLD_": str(1 << 26),
    "OPENBLAS_NUM_THREADS": "1",
}
"""Settings of a process. glibc keeps memory that is freed for the next batch, since new pages cost
more time than what is written to them. NumPy's OpenBLAS, which nothing here uses, starts no
threads: their start takes a seventh of NumPy's import."""
_MAIN = "from bytelm.pipelines.prepare.decode_worker import main; main()"


class Worker:
    """A process that decodes, and the requests that it has."""

    def __init__(self, options: DecodeOptions):
        self.connection: Connection
        self.connection, child_connection = multiprocessing.Pipe()
        self.requests: deque[object] = deque()
        """Requests to the process, the oldest first."""
        self._slots: deque[int] = deque()  # numbers of the files for the answers to `requests`
        self._memories = [SampleMemory() for _ in range(MEMORIES_PER_WORKER)]
        descriptors = (child_connection.fileno(), *(m.descriptor for m in self._memories))
        command = [sys.executable, "-P", "-c", _MAIN, *map(str, descriptors)]
        with child_connection:
            self._process = subprocess.Popen(
                command,
                pass_fds=descriptors,
                stdin=subprocess.DEVNULL,
                env={**os.environ, **_ENVIRONMENT},
            )
        with contextlib.suppress(OSError):  # a dead worker shows when it gets a request
            self.connection.send(options)

    def send(self, request: object, message: object) -> None:
        """Send a message, and remember the request; OSError where the worker has died."""
        slot = self._free_slots()[0]
        self._memories[slot].clear()
        self.requests.append(request)
        self._slots.append(slot)
        self.connection.send((slot, message))

    def receive(self) -> tuple[object, Any, SampleMemory]:
        """The oldest request, the answer, and the samples, which are to be read before the next
        request is sent.

        Raises EOFError or OSError where it has died.
        """
        answer = self.connection.recv()
        slot = self._slots.popleft()
        memory = self._memories[slot]
        memory.begin_reading(may_lend=len(self._free_slots()) > REQUESTS_PER_WORKER)
        return self.requests.popleft(), answer, memory

    def _free_slots(self) -> list[int]:
        """Numbers of the files in memory that hold nothing that is in use; at least one where a
        request may be sent."""
        return [
            slot
            for slot, memory in enumerate(self._memories)
            if slot not in self._slots and not memory.is_lent
        ]

    def begun(self) -> int:
        """The number that the process has set for its oldest request, or 0; see PROGRESS_BYTES."""
        return self._memories[self._slots[0]].begun()

    def exit_code(self) -> int:
        """Wait for the end of the process; its exit status, or a signal's number, negative."""
        return self._process.wait()

    def end(self) -> None:
        """End the process, and wait for it."""
        self.connection.close()
        self._process.kill()
        self._process.wait()
        for memory in self._memories:
            os.close(memory.descriptor)


class SampleMemory:
    """A file in memory, to which a worker writes the samples of an answer. They are read from its
    start, or lent as views, while which the file is not written again."""

    def __init__(self) -> None:
        self.descriptor = os.memfd_create("samples")
        self._offset = PROGRESS_BYTES
        self._may_lend = False
        self._mapping: mmap.mmap | None = None
        self._lent: Callable[[], npt.NDArray[np.uint8] | None] = lambda: None

    @property
    def is_lent(self) -> bool:
        """Whether a view is in use."""
        return self._lent() is not None

    def clear(self) -> None:
        """Make it ready for an answer."""
        if os.fstat(self.descriptor).st_size > 2 * BATCH_SAMPLE_BYTES:
            os.ftruncate(self.descriptor, PROGRESS_BYTES)
        os.pwrite(self.descriptor, bytes(PROGRESS_BYTES), 0)

    def begun(self) -> int:
        """The number that the worker has set, or 0; see PROGRESS_BYTES."""
        return int.from_bytes(os.pread(self.descriptor, PROGRESS_BYTES, 0))

    def begin_reading(self, may_lend: bool) -> None:
        """The answer has come; `may_lend` says whether views need not be copies. Large answers are
        copied, so that their files are used again, and cut, before others grow."""
        is_small = os.fstat(self.descriptor).st_size <= BATCH_SAMPLE_BYTES
        self._offset, self._may_lend = PROGRESS_BYTES, may_lend and is_small

    def read(self, size: int) -> bytes:
        """A copy of the next `size` bytes."""
        data = os.pread(self.descriptor, size, self._offset)
        assert len(data) == size
        self._offset += size
        return data

    def view(self, size: int) -> memoryview:
        """The next `size` bytes where they lie, or a copy."""
        if not self._may_lend:
            return memoryview(self.read(size))
        stored = os.fstat(self.descriptor).st_size
        if self._mapping is None or len(self._mapping) < stored:
            self._mapping = mmap.mmap(self.descriptor, stored, prot=mmap.PROT_READ)
        whole = self._lent()
        if whole is None:
            whole = np.frombuffer(self._mapping, np.uint8)
            self._lent = weakref.ref(whole)  # which its views keep alive
        start, self._offset = self._offset, self._offset + size
        return whole.data[start : self._offset]

"""The parent's side of a decoding process: what it was asked for, and how it ended."""

from __future__ import annotations

import contextlib
import multiprocessing
import os
import signal
import subprocess
import sys
from collections import deque
from multiprocessing.connection import Connection
from typing import Any

from bytelm.modalities.base import DecodeOptions
from bytelm.pipelines.prepare.decode_worker import BATCH_SAMPLE_BYTES, PROGRESS_BYTES

REQUESTS_PER_WORKER = 2
START_ATTEMPTS = 3

_KEPT_HEAP = {"MALLOC_MMAP_THRESHOLD_": str(1 << 25), "MALLOC_TRIM_THRESHOLD_": str(1 << 26)}
"""Settings of glibc for memory that is freed: a process keeps it for the next batch, since new
pages cost more time than what is written to them."""
_MAIN = "from bytelm.pipelines.prepare.decode_worker import main; main()"


class Worker:
    """A process that decodes, and the requests that it has."""

    def __init__(self, options: DecodeOptions):
        self.connection: Connection
        self.connection, child_connection = multiprocessing.Pipe()
        self.requests: deque[object] = deque()
        """Requests to the process, the oldest first."""
        self._memories = deque(os.memfd_create("samples") for _ in range(REQUESTS_PER_WORKER))
        descriptors = (child_connection.fileno(), *self._memories)
        command = [sys.executable, "-P", "-c", _MAIN, *map(str, descriptors)]
        with child_connection:
            self._process = subprocess.Popen(
                command,
                pass_fds=descriptors,
                stdin=subprocess.DEVNULL,
                env={**os.environ, **_KEPT_HEAP},
            )
        with contextlib.suppress(OSError):  # a dead worker shows when it gets a request
            self.connection.send(options)

    def send(self, request: object, message: object) -> None:
        """Send a message, and remember the request; OSError where the worker has died."""
        memory = self._memories[len(self.requests)]
        if os.fstat(memory).st_size > 2 * BATCH_SAMPLE_BYTES:
            os.ftruncate(memory, PROGRESS_BYTES)
        os.pwrite(memory, bytes(PROGRESS_BYTES), 0)
        self.requests.append(request)
        self.connection.send(message)

    def receive(self) -> tuple[object, Any, SampleMemory]:
        """The oldest request, the answer, and the samples, which are to be read before the next
        request is sent.

        Raises EOFError or OSError where it has died.
        """
        answer = self.connection.recv()
        memory = SampleMemory(self._memories[0])
        self._memories.rotate(-1)
        return self.requests.popleft(), answer, memory

    def begun(self) -> int:
        """The number that the process has set for its oldest request, or 0; see PROGRESS_BYTES."""
        return int.from_bytes(os.pread(self._memories[0], PROGRESS_BYTES, 0))

    def exit_code(self) -> int:
        """Wait for the end of the process; its exit status, or a signal's number, negative."""
        return self._process.wait()

    def end(self) -> None:
        """End the process, and wait for it."""
        self.connection.close()
        self._process.kill()
        self._process.wait()
        for memory in self._memories:
            os.close(memory)


class SampleMemory:
    """The bytes of an answer's samples in a file in memory, read from its start."""

    def __init__(self, descriptor: int):
        self._descriptor = descriptor
        self._offset = PROGRESS_BYTES

    def read(self, size: int) -> bytes:
        """The next `size` bytes."""
        data = os.pread(self._descriptor, size, self._offset)
        assert len(data) == size
        self._offset += size
        return data


def cause_of_death(exit_code: int) -> str:
    """How a process ended, in words."""
    if exit_code < 0:
        return f"killed by {signal.Signals(-exit_code).name}"
    return f"exit status {exit_code}"

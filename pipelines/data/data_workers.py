"""Processes that read batches ahead, each through a socket of its own.

Batches travel as bytes through unnamed sockets, so neither the size of /dev/shm nor the length of
TMPDIR matters. Worker k of N reads batches k, k + N, k + 2N, ... of the sampler; a thread of the
parent receives them in order. The main thread only ever waits for that thread, in short turns. Thus
it hears signals, and notices a worker that has died, is stopped or never began.

PyTorch's DataLoader does neither: it puts batches into /dev/shm, or sends them through a socket
below TMPDIR, and waits without end for a worker that is stopped (docs/architecture.md, "Signals and
death").

A worker ends when its socket closes: when its parent ends or closes it.
"""

from __future__ import annotations

import io
import math
import multiprocessing
import os
import pickle
import queue
import signal
import socket
import struct
import threading
import traceback
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass
from itertools import islice
from multiprocessing.process import BaseProcess
from multiprocessing.util import Finalize
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from bytelm.pipelines.data.batch import Batch
from bytelm.pipelines.data.row_dataset import RowDataset
from bytelm.pipelines.runtime import signals
from bytelm.pipelines.runtime.processes import is_stopped

Rows = Iterable[Sequence[tuple[int, int] | None]]

POLL_SECONDS = 0.1
STOPPED_SECONDS = 30.0
"""How long a worker may be stopped (SIGSTOP) while its batch is waited for."""
STOP_SECONDS = 1.0
"""How long a batch is waited for after a request to stop."""
END_SECONDS = 1.0
"""How long a worker may take to end once its socket is closed, before it is killed."""


class StopWaitingError(Exception):
    """A request to stop came while a batch was waited for; the text says on which worker."""


@dataclass(frozen=True)
class _Worker:
    number: int
    process: BaseProcess
    socket: socket.socket

    def __str__(self) -> str:
        return f"DataLoader worker {self.number} (process {self.process.pid})"

    @property
    def is_stopped(self) -> bool:
        """Whether a signal has stopped the process."""
        return is_stopped(self.process.pid or 0)

    def ending(self) -> str:
        """How the process ended."""
        self.process.join(END_SECONDS)
        code = self.process.exitcode
        if code is None:
            return "has closed its connection"
        if code >= 0:
            return f"ended with status {code}"
        name = signal.Signals(-code).name
        if name != "SIGKILL":
            return f"was ended by {name}"
        return "was ended by SIGKILL, which the kernel also sends where memory is exhausted"


class WorkerBatches(Iterator[Batch]):
    """The batches that worker processes read, in the order of the sampler."""

    def __init__(
        self,
        dataset: RowDataset,
        rows: Rows,
        workers: int,
        prefetch: int,
        timeout: float = math.inf,
        should_stop: Callable[[], bool] = lambda: False,
    ):
        """
        Args:
            dataset: reads the rows.
            rows: the positions of each batch; every worker iterates it.
            workers: number of processes, at least 1.
            prefetch: batches that each worker holds ready, at least 1.
            timeout: seconds that a batch may take.
            should_stop: asked while a batch is waited for.
        """
        self._timeout = timeout
        self._should_stop = should_stop
        self._workers: list[_Worker] = []
        for number in range(workers):
            own, theirs = socket.socketpair()
            inherited = [own, *(worker.socket for worker in self._workers)]
            # Forked, they share the plan's tables with this process.
            process = multiprocessing.get_context("fork").Process(
                target=_work,
                args=(dataset, rows, number, workers, prefetch, theirs, inherited),
                daemon=True,
            )
            process.start()
            theirs.close()
            self._workers.append(_Worker(number, process, own))
        self._received: queue.Queue[tuple[int, Any]] = queue.Queue(1)
        self._next = 0  # the worker whose batch comes next
        self._has_begun = False
        thread = threading.Thread(
            target=_receive_in_order, args=(self._workers, self._received), daemon=True
        )
        thread.start()
        # At exit it runs before multiprocessing waits for its processes, even for a stopped one.
        self._finalizer = Finalize(
            self, _end_workers, (self._workers, self._received, thread), exitpriority=10
        )

    def __next__(self) -> Batch:
        """Return the next batch.

        Raises:
            RuntimeError: if the worker that reads it has died, or does not deliver it in time.
            StopWaitingError: if `should_stop` is true while the batch is not there.
            Exception: what the worker raised as it read the batch.
        """
        if not self._finalizer.still_active():
            raise StopIteration
        number, message = self._take()
        self._next = (number + 1) % len(self._workers)
        self._has_begun = True
        if isinstance(message, Batch):
            return message
        worker = self._workers[number]
        ending = worker.ending() if isinstance(message, _Closed) else ""
        self.close()
        if isinstance(message, Exception):
            raise message
        if ending:
            raise RuntimeError(f"{worker} {ending}: data.workers: 0 reads without such processes")
        raise StopIteration

    def close(self) -> None:
        """End the workers. No further batch comes."""
        self._finalizer()

    def _take(self) -> tuple[int, Any]:
        """The next message and its worker, waited for in turns of POLL_SECONDS."""
        waited = stopped = 0.0  # counted in turns: this process may itself be stopped for a while
        while True:
            try:
                return self._received.get(timeout=POLL_SECONDS)
            except queue.Empty:
                waited += POLL_SECONDS
            worker = self._workers[self._next]
            stopped = stopped + POLL_SECONDS if worker.is_stopped else 0.0
            if waited >= STOP_SECONDS and self._should_stop():
                raise StopWaitingError(self._delay(worker, waited))
            if waited >= self._timeout or stopped >= STOPPED_SECONDS:
                delay = self._delay(worker, waited)
                self.close()
                raise RuntimeError(f"{delay}: data.workers: 0 reads without such processes")

    def _delay(self, worker: _Worker, waited: float) -> str:
        condition = ", which is stopped," if worker.is_stopped else ""
        batch = "the next batch" if self._has_begun else "its first batch"
        return f"{worker}{condition} has not delivered {batch} for {waited:.0f} s"


# --- in the parent's thread ---


class _Closed:
    """Stands for a socket that a worker has closed."""


def _receive_in_order(workers: Sequence[_Worker], received: queue.Queue[tuple[int, Any]]) -> None:
    """Receive a message of each worker in turn, until one brings no batch."""
    while True:
        for worker in workers:
            message = _receive(worker.socket)
            if isinstance(message, Batch) and torch.cuda.is_available():
                message = message.pin_memory()
            received.put((worker.number, message))
            if not isinstance(message, Batch):
                return


def _receive(connection: socket.socket) -> Any:
    """A message: a Batch, an Exception, None at the end of the rows; _Closed without one."""
    try:
        count, size = struct.unpack("<IQ", _read(connection, 12))
        sizes = struct.unpack(f"<{count}Q", _read(connection, 8 * count))
        pickled = _read(connection, size)
        return pickle.loads(pickled, buffers=[_read(connection, n) for n in sizes])
    except (EOFError, OSError):
        return _Closed()


def _read(connection: socket.socket, size: int) -> bytearray:
    """Receive `size` bytes; raises EOFError where the connection ends before."""
    data = bytearray(size)
    view = memoryview(data)
    while view:
        count = connection.recv_into(view, flags=socket.MSG_WAITALL)
        if not count:
            raise EOFError
        view = view[count:]
    return data


def _end_workers(
    workers: Sequence[_Worker], received: queue.Queue[tuple[int, Any]], thread: threading.Thread
) -> None:
    """Close the sockets, at which the workers end; kill those that do not."""
    for worker in workers:
        worker.socket.shutdown(socket.SHUT_RDWR)
    while thread.is_alive():  # it may wait to hand over a batch that nobody wants
        try:
            received.get(timeout=POLL_SECONDS)
        except queue.Empty:
            continue
    for worker in workers:
        worker.socket.close()
        worker.process.join(END_SECONDS)
        worker.process.kill()
        worker.process.join()


# --- in the worker ---


def _work(
    dataset: RowDataset,
    rows: Rows,
    number: int,
    workers: int,
    prefetch: int,
    connection: socket.socket,
    inherited: Sequence[socket.socket],
) -> None:
    """Read this worker's batches and send them, until the rows end or the socket closes."""
    for other in inherited:
        other.close()
    signals.ignore_in_worker()
    Path("/proc/self/comm").write_text("pt_data_worker")
    torch.set_num_threads(1)
    threading.Thread(target=_exit_when_closed, args=(connection,), daemon=True).start()
    ready: queue.SimpleQueue[Any] = queue.SimpleQueue()
    room = threading.Semaphore(prefetch)
    sender = threading.Thread(target=_send_all, args=(connection, ready, room), daemon=True)
    sender.start()
    try:
        for positions in islice(rows, number, None, workers):
            room.acquire()
            ready.put(dataset.__getitems__(positions))
        ready.put(None)
    except Exception as error:
        ready.put(_picklable(error))
    sender.join()


def _exit_when_closed(connection: socket.socket) -> None:
    """End this process when the parent closes the connection or ends; it never sends anything."""
    with suppress(OSError):
        connection.recv(1)
    os._exit(0)


def _send_all(
    connection: socket.socket, ready: queue.SimpleQueue[Any], room: threading.Semaphore
) -> None:
    """Send messages up to the first that is no batch."""
    while True:
        message = ready.get()
        try:
            _send(connection, message)
        except OSError:
            os._exit(0)
        if not isinstance(message, Batch):
            return
        del message  # its buffer is used again
        room.release()


class _Pickler(pickle.Pickler):
    """Pickles tensors as arrays, whose memory goes beside the pickle without a copy."""

    def reducer_override(self, value: Any) -> Any:
        """How to make a tensor again; all else as pickle does it."""
        return (torch.from_numpy, (value.numpy(),)) if isinstance(value, Tensor) else NotImplemented


def _send(connection: socket.socket, message: Any) -> None:
    """Send the tensors of a message as they lie in memory, behind the pickled rest."""
    buffers: list[pickle.PickleBuffer] = []
    pickled = io.BytesIO()
    _Pickler(pickled, protocol=5, buffer_callback=buffers.append).dump(message)
    views = [buffer.raw() for buffer in buffers]
    sizes = [view.nbytes for view in views]
    head = struct.pack(f"<IQ{len(sizes)}Q", len(sizes), pickled.tell(), *sizes)
    connection.sendall(head + pickled.getbuffer())
    for view in views:
        connection.sendall(view)


def _picklable(error: Exception) -> Exception:
    """The error with its traceback as a note; a RuntimeError of its text if it cannot travel."""
    error.add_note("in a DataLoader worker:\n" + "".join(traceback.format_exception(error)))
    try:
        pickle.loads(pickle.dumps(error))
    except Exception:  # whatever its class does
        return RuntimeError(f"{type(error).__name__}: {error}")
    return error

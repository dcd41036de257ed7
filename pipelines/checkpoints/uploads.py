"""Has a run's checkpoints uploaded, by a process of their own (`upload_process.py`).

One checkpoint is uploaded at a time. If a newer one is offered meanwhile, it waits; if one waits
already, the newer one takes its place. An upload is spread over time, until a newer checkpoint or
the end of the run waits for it. A thread of the training would not do: at a low priority it
is put off the processor while it holds the interpreter's lock, for which a step then waits.
"""

from __future__ import annotations

import math
import multiprocessing
import os
import signal
import subprocess
import sys
import threading
from contextlib import suppress
from dataclasses import dataclass
from multiprocessing.connection import Connection
from pathlib import Path

from bytelm.pipelines.checkpoints.upload_process import HURRY, Answer, Job, UploadSettings
from bytelm.pipelines.runtime.processes import cause_of_death

_MAIN = "from bytelm.pipelines.checkpoints.upload_process import main; main()"


@dataclass(frozen=True)
class Upload:
    """The end of an upload."""

    name: str
    """The checkpoint's folder name."""
    seconds: float
    size: int
    """Bytes of its files; 0 if it was in the store already."""
    passed_over: int
    """Checkpoints so far that were not uploaded, since a newer one was there first."""
    error: str
    """Why it failed; empty if it is whole in the store."""


class CheckpointUploads:
    """Uploads the checkpoints of a run, and removes old ones in the store.

    Its methods may be called by any thread. Each of them takes notice of an upload that has ended,
    and begins the next one.
    """

    def __init__(
        self, url: str, run: Path, keep_last: int, keep_every: int, share: float = math.inf
    ):
        """
        Args:
            share: of one core, that uploads take; `math.inf` has no limit.
        """
        self._share = share
        self._settings = UploadSettings(url, run, keep_last, keep_every, os.getpid())
        self._lock = threading.Lock()
        self._waiting: Path | None = None
        self._uploading: Path | None = None
        self._passed_over = 0
        self._ended: list[Upload] = []
        self._connection, self._process = _start(self._settings)

    def offer(self, folder: Path) -> None:
        """Have a whole checkpoint uploaded, in place of an older one that still waits."""
        with self._lock:
            self._passed_over += self._waiting is not None
            self._waiting = folder
            self._go_on()
            if self._waiting:
                self._send(HURRY)

    def hurry(self) -> None:
        """Upload what is under way and what waits without rests, since the run waits for it."""
        with self._lock:
            self._share = math.inf
            self._send(HURRY)

    def is_held(self, folder: Path) -> bool:
        """Return whether a checkpoint's folder is read, or will be, and so has to stay."""
        with self._lock:
            self._go_on()
            return folder in (self._uploading, self._waiting)

    def ended(self) -> list[Upload]:
        """Return the uploads that have ended since the last call."""
        with self._lock:
            self._go_on()
            ended, self._ended = self._ended, []
            return ended

    @property
    def is_idle(self) -> bool:
        """Whether nothing waits and nothing is being uploaded."""
        with self._lock:
            self._go_on()
            return self._waiting is None and self._uploading is None

    def close(self) -> None:
        """Break off what is under way; what is not whole in the store by then is no checkpoint.
        Nothing else is called afterwards."""
        with self._lock:
            self._end_process()

    def _go_on(self) -> None:
        """Take the answer of an upload that has ended, and begin the next one."""
        if self._uploading and self._connection.poll():
            answer = self._answer()
            name, passed_over = self._uploading.name, self._passed_over
            ended = Upload(name, answer.seconds, answer.size, passed_over, answer.error)
            self._ended.append(ended)
            self._uploading = None
        if self._waiting and not self._uploading:
            self._uploading, self._waiting = self._waiting, None
            if self._process.poll() is not None:  # killed, perhaps for the machine's memory
                self._end_process()
                self._connection, self._process = _start(self._settings)
            self._send(Job(self._uploading, self._share))

    def _send(self, message: object) -> None:
        with suppress(OSError):  # if it dies now, the connection's end is the answer
            self._connection.send(message)

    def _answer(self) -> Answer:
        try:
            return self._connection.recv()
        except (EOFError, OSError):
            cause = cause_of_death(self._process.wait())
            return Answer(0.0, 0, f"the process that uploads ended ({cause})")

    def _end_process(self) -> None:
        self._process.kill()
        self._process.wait()
        self._connection.close()


def _start(settings: UploadSettings) -> tuple[Connection, subprocess.Popen[bytes]]:
    """Start the process that uploads."""
    connection, other_end = multiprocessing.Pipe()
    with other_end:
        command = [sys.executable, "-P", "-c", _MAIN, str(other_end.fileno())]
        # A terminal and a cluster's scheduler signal every process, and the run decides when
        # uploads end. The process inherits what is blocked, and stays so.
        blocked = signal.pthread_sigmask(signal.SIG_BLOCK, signal.valid_signals())
        try:
            process = subprocess.Popen(
                command, pass_fds=[other_end.fileno()], stdin=subprocess.DEVNULL
            )
        finally:
            signal.pthread_sigmask(signal.SIG_SETMASK, blocked)
    with suppress(OSError):  # a dead process shows when it is to upload
        connection.send(settings)
    return connection, process

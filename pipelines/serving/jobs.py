"""Jobs of the page's users. One runs at a time, in a thread of its own, and a few wait for it.

Torch keeps a pool of threads for each thread that calls it, so one thread makes all calls.
"""

from __future__ import annotations

import os
import sys
import threading
import time
from collections.abc import Callable
from typing import Any

from bytelm.pipelines.errors import one_line

MAX_WAITING = 8
"""Jobs that may wait."""
DEFAULT_SECONDS = 300.0
"""Limit of a job's time, from its start on."""

NICENESS = 10
"""Niceness of the thread that runs the jobs, and of those that it starts."""

STOPPED_BY_USER = "Stopped."
SERVER_ENDS = "The server ends."


class QueueFullError(ValueError):
    """No further job may wait."""


class JobStoppedError(Exception):
    """Raised inside of a job that is to stop; its text says why."""


Work = Callable[["Job"], Any]
"""Function of a job, which calls the job's `check` often and may `show` results on the way."""


class Job:
    """Something that the model does for one user.

    Attributes:
        shown: what the work has shown last; None before.
        result: what the work returned; None before, and where it was stopped or failed.
        stopped: why the job was stopped before its end, in a sentence.
        error: why it failed, in a sentence.
    """

    def __init__(self, work: Work, queue: JobQueue) -> None:
        self._work, self._queue = work, queue
        self._stop_reason = ""
        self._deadline = float("inf")
        self._ended = threading.Event()
        self.shown: Any = None
        self.result: Any = None
        self.stopped = ""
        self.error = ""

    def show(self, value: Any) -> None:
        """Set what the page shows while the work goes on."""
        self.shown = value

    def check(self) -> None:
        """Raise JobStoppedError where the job is to stop."""
        if not self._stop_reason and time.monotonic() > self._deadline:
            self._stop_reason = f"Stopped at the limit of {self._queue.seconds:g} seconds."
        if self._stop_reason:
            raise JobStoppedError(self._stop_reason)

    def stop(self, reason: str = STOPPED_BY_USER) -> None:
        """Let the job end at its next check, or leave the queue; nothing where it has ended."""
        self._stop_reason = self._stop_reason or reason
        self._queue.drop(self)

    def wait(self, seconds: float) -> bool:
        """Wait for the end, at most some seconds; returns whether it has come."""
        return self._ended.wait(seconds)

    @property
    def place(self) -> int:
        """Place in the queue: 0 of the running job, 1 of the next one."""
        return self._queue.place(self)

    def run(self) -> None:
        """Do the work, and keep its result or the reason why there is none."""
        self._deadline = time.monotonic() + self._queue.seconds
        try:
            self.check()
            self.result = self._work(self)
        except JobStoppedError as reason:
            self.stopped = str(reason)
        except ValueError as error:
            self.error = str(error)
        except Exception as error:  # the thread goes on with the next user's job
            self.error = f"The server failed: {one_line(error)[:200]}"
            print(f"bytelm serve: unexpected {one_line(error)}", file=sys.stderr, flush=True)
        finally:
            self._ended.set()

    def leave(self) -> None:
        """End a job that was stopped before it began."""
        self.stopped = self._stop_reason
        self._ended.set()


class JobQueue:
    """Runs jobs one after the other."""

    def __init__(self, seconds: float = DEFAULT_SECONDS, max_waiting: int = MAX_WAITING) -> None:
        """Start the thread.

        Args:
            seconds: limit of each job's time.
            max_waiting: most jobs that wait.
        """
        self.seconds = seconds
        self._max_waiting = max_waiting
        self._changed = threading.Condition()
        self._running: Job | None = None
        self._waiting: list[Job] = []
        self._is_closed = False
        self._thread = threading.Thread(target=self._run_jobs, name="jobs", daemon=True)
        self._thread.start()

    def submit(self, work: Work) -> Job:
        """Put a job at the end of the queue. QueueFullError if as many wait as may."""
        job = Job(work, self)
        with self._changed:
            if self._running and len(self._waiting) >= self._max_waiting:
                raise QueueFullError(
                    f"The queue is full: {len(self._waiting)} requests wait. Try again in a while."
                )
            self._waiting.append(job)
            self._changed.notify()
        return job

    def place(self, job: Job) -> int:
        """A job's place: 1 of the next one, 0 of one that runs or has ended."""
        with self._changed:
            return 1 + self._waiting.index(job) if job in self._waiting else 0

    def drop(self, job: Job) -> None:
        """Take a job out of the queue, where it waits there."""
        with self._changed:
            if job not in self._waiting:
                return
            self._waiting.remove(job)
        job.leave()

    def close(self, seconds: float) -> None:
        """Stop all jobs, and wait for the running one, at most some seconds."""
        with self._changed:
            jobs = [*self._waiting, *([self._running] if self._running else [])]
            self._is_closed = True
            self._changed.notify()
        for job in jobs:
            job.stop(SERVER_ENDS)
        self._thread.join(seconds)

    def _run_jobs(self) -> None:
        _yield_to_others()
        while True:
            with self._changed:
                self._running = None
                self._changed.wait_for(lambda: self._waiting or self._is_closed)
                if self._is_closed:
                    return
                self._running = job = self._waiting.pop(0)
            job.run()


def _yield_to_others() -> None:
    """Give this thread a lower priority than those that answer the browser, and than the browser
    where it runs on this machine, whose page would stand still otherwise."""
    if sys.platform == "linux":  # elsewhere it would be the priority of the whole process
        os.setpriority(os.PRIO_PROCESS, threading.get_native_id(), NICENESS)

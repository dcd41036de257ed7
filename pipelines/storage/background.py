"""Work that gives way to the other work of the machine: by its priority, and by rests."""

from __future__ import annotations

import math
import os
import sys
import threading
import time
from collections.abc import Callable
from contextlib import suppress

_MAX_NICENESS = 19


def lower_priority(niceness: int) -> None:
    """Lower the priority of the calling thread, and of those that it starts, by `niceness`."""
    if sys.platform != "linux":  # threads have no priority of their own
        return
    thread = threading.get_native_id()
    value = min(_MAX_NICENESS, os.getpriority(os.PRIO_PROCESS, thread) + niceness)
    with suppress(OSError):  # a sandbox may forbid it, which costs time alone
        os.setpriority(os.PRIO_PROCESS, thread, value)


def run_when_idle() -> None:
    """Let this process, all its threads, run where nothing else wants the processor.

    Under SCHED_IDLE it leaves at once when other work wakes up; at the lowest priority it stays for
    milliseconds (Linux 6.6 and newer), for which threads that compute together wait.
    """
    if sys.platform != "linux":
        return
    for thread in os.listdir("/proc/self/task"):
        with suppress(OSError):  # as above; or the thread has ended
            os.sched_setscheduler(int(thread), os.SCHED_IDLE, os.sched_param(0))


class Throttle:
    """Keeps a piece of work to a share of one core, by rests between its parts.

    Work of the lowest priority, too, costs those beside it time: caches, memory and the network's
    part of the kernel are shared. So it is spread. One thread works; any thread may call `hurry`.
    """

    def __init__(
        self, share: float, processor_time: Callable[[], float], seconds: float = math.inf
    ):
        """
        Args:
            share: processor seconds a second that the work may take; `math.inf` has no rests.
            processor_time: `time.thread_time` or `time.process_time`, of what works.
            seconds: time from now on after which there are no rests.
        """
        self._share = share
        self._processor_time = processor_time
        self._end = time.monotonic() + seconds
        self._last_rest: tuple[float, float] | None = None
        """Processor time and time at the end of the last rest."""
        self._hurried = threading.Event()

    def rest(self) -> None:
        """Wait until the work since the last rest is within the share. The first call does not
        wait: the work begins there."""
        if self._last_rest:
            taken, now = self._processor_time() - self._last_rest[0], time.monotonic()
            seconds = min(taken / self._share - (now - self._last_rest[1]), self._end - now)
            if seconds > 0:
                self._hurried.wait(seconds)
        self._last_rest = self._processor_time(), time.monotonic()

    def hurry(self) -> None:
        """End the rest that is under way, if any, and let there be no others."""
        self._hurried.set()


def no_rest() -> None:
    """Go on at once: the `rest` of work that others wait for."""

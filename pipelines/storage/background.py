"""Threads and processes that give way to the other work of the machine."""

from __future__ import annotations

import os
import sys
import threading
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

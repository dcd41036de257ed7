"""Threads that give way to the other work of the machine."""

from __future__ import annotations

import os
import sys
import threading
from contextlib import suppress

MAX_NICENESS = 19


def lower_priority(niceness: int) -> None:
    """Lower the priority of the calling thread, and of those that it starts, by `niceness`."""
    if sys.platform != "linux":  # threads have no priority of their own
        return
    thread = threading.get_native_id()
    value = min(MAX_NICENESS, os.getpriority(os.PRIO_PROCESS, thread) + niceness)
    with suppress(OSError):  # a sandbox may forbid it, which costs time alone
        os.setpriority(os.PRIO_PROCESS, thread, value)

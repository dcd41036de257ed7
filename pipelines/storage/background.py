"""Threads that give way to the other work of the machine, and an event loop in one of them."""

from __future__ import annotations

import asyncio
import os
import sys
import threading
from contextlib import suppress
from functools import cache

NICENESS = 15
"""Niceness of uploads beside other work: on a core that is busy they get 3.4 % of it. A step of a
training waits for the slowest of its threads, so a share of S costs it 1 / (1 - S) of its time."""
MAX_NICENESS = 19


def lower_priority(niceness: int) -> None:
    """Lower the priority of the calling thread, and of those that it starts, by `niceness`."""
    if sys.platform != "linux":  # threads have no priority of their own
        return
    thread = threading.get_native_id()
    value = min(MAX_NICENESS, os.getpriority(os.PRIO_PROCESS, thread) + niceness)
    with suppress(OSError):  # a sandbox may forbid it, which costs time alone
        os.setpriority(os.PRIO_PROCESS, thread, value)


@cache
def background_loop() -> asyncio.AbstractEventLoop:
    """The event loop of the process that runs in a thread of low priority, without end.

    fsspec's own loop serves the reading of data as well, for which steps of a training wait.
    """
    loop = asyncio.new_event_loop()

    def run() -> None:
        lower_priority(NICENESS)
        loop.run_forever()

    threading.Thread(target=run, daemon=True, name="background requests").start()
    return loop

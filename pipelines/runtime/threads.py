"""Waiting of OpenMP's threads for each other, short where other processes want the cores.

A thread of libgomp that waits spins for 300,000 rounds, some milliseconds, before it sleeps. Alone
on its cores that is fastest. Beside other processes it burns the time that the thread it waits for
would need, and a step takes many times its fair share. libgomp has a second number of rounds, 100,
which it uses at any moment when it manages more threads than there are cores (`do_spin` in
libgomp/config/linux/wait.h). So where this process's threads wait for cores, a team of sleeping
threads is added that makes them more; where they wait no longer, it ends.

The number of threads that share a computation stays as it is, and so do its results.
"""

from __future__ import annotations

import ctypes
import os
import signal
import sys
import threading
import time
from collections.abc import Callable, Mapping
from pathlib import Path

USERS_VARIABLES = ("GOMP_SPINCOUNT", "OMP_WAIT_POLICY")
INTERVAL = 0.25
"""Seconds between two readings."""
CONTENDED_SHARE = 0.15
"""Share of the time in which threads were ready, but had no core, that shows competition."""
FREE_SHARE = 0.05
FREE_READINGS = 12
"""Readings in a row below `FREE_SHARE` after which threads spin again.

A competitor that pauses often, such as a training that evaluates, would switch to and fro else.
"""
LEAST_READY = 0.1
"""Threads that must have been ready, on average over a reading, for its share to count."""
MOST_CORES = 64
"""Cores above which the team, a thread larger than them, would be too many threads."""


def share_cores(environment: Mapping[str, str] = os.environ) -> None:
    """Let OpenMP's threads of this process sleep soon while other processes want its cores.

    Starts a thread that watches until the process ends. Nothing happens where the user has chosen
    how threads wait, and on systems other than Linux.
    """
    if any(name in environment for name in USERS_VARIABLES) or sys.platform != "linux":
        return
    if len(os.sched_getaffinity(0)) > MOST_CORES:
        return
    # Threads inherit what is blocked. A signal that this one took would not interrupt the waits of
    # the main thread, or end the process while the main thread has it blocked.
    blocked = signal.pthread_sigmask(signal.SIG_BLOCK, signal.valid_signals())
    threading.Thread(target=_watch, name="share-cores", daemon=True).start()
    signal.pthread_sigmask(signal.SIG_SETMASK, blocked)


def _watch() -> None:
    monitor, throttle, clock = ContentionMonitor(), SpinThrottle(), RunDelayClock()
    while True:
        time.sleep(INTERVAL)
        throttle.set(monitor.update(*clock.lap()))


class ContentionMonitor:
    """Decides from readings of the scheduler whether others want the cores."""

    def __init__(self) -> None:
        self.is_contended = False
        self._free_readings = 0

    def update(self, delayed: float, running: float) -> bool:
        """Take a reading, and tell whether there is competition.

        Args:
            delayed: threads that were ready and had no core, on average over the interval.
            running: threads that ran.
        """
        ready = delayed + running
        share = delayed / ready if ready >= LEAST_READY else 0.0
        self._free_readings = self._free_readings + 1 if share < FREE_SHARE else 0
        if share > CONTENDED_SHARE:
            self.is_contended = True
        elif self._free_readings >= FREE_READINGS:
            self.is_contended = False
        return self.is_contended


class RunDelayClock:
    """Reads how long the threads of this process ran, and waited for a core, between two laps."""

    def __init__(self) -> None:
        self._time = time.monotonic_ns()
        self._threads = _read_threads()

    def lap(self) -> tuple[float, float]:
        """Threads that waited for a core, and threads that ran, on average since the last lap.

        Threads that started since then do not count yet.
        """
        before, self._threads = self._threads, _read_threads()
        start, self._time = self._time, time.monotonic_ns()
        both = self._threads.keys() & before.keys()
        running, delayed = (
            sum(self._threads[thread][kind] - before[thread][kind] for thread in both)
            for kind in (0, 1)
        )
        elapsed = self._time - start
        return delayed / elapsed, running / elapsed


def _read_threads() -> dict[str, tuple[int, int]]:
    """Nanoseconds that each thread of this process ran and waited for a core, by its id.

    Threads of a lower priority than the reading one's are left out. They wait for the others of
    this process, which is no sign that other processes want the cores.
    """
    threads, niceness = {}, os.getpriority(os.PRIO_PROCESS, 0)
    for thread in os.listdir("/proc/self/task"):
        try:
            if os.getpriority(os.PRIO_PROCESS, int(thread)) > niceness:
                continue
            running, delayed, _ = Path(f"/proc/self/task/{thread}/schedstat").read_text().split()
        except (OSError, ValueError):
            continue  # the thread has ended, or the kernel keeps no such figures
        threads[thread] = (int(running), int(delayed))
    return threads


class SpinThrottle:
    """The team of sleeping threads that makes libgomp's threads more than the cores.

    libgomp keeps a team for the thread that started it, until that thread ends.
    """

    def __init__(self) -> None:
        self._end: threading.Event | None = None
        self._thread: threading.Thread | None = None

    def set(self, is_on: bool) -> None:
        """Start or end the team. Without torch and its libgomp, nothing happens yet."""
        if is_on and self._end is None and (start_team := _team_starter()) is not None:
            self._end = threading.Event()
            self._thread = threading.Thread(
                target=_hold_team, args=(start_team, self._end), name="throttle", daemon=True
            )
            self._thread.start()
        elif not is_on and self._end is not None and self._thread is not None:
            self._end.set()
            self._thread.join()
            self._end = self._thread = None


def _hold_team(start_team: Callable[[], None], end: threading.Event) -> None:
    start_team()
    end.wait()


def _team_starter() -> Callable[[], None] | None:
    """A function that starts a team larger than the cores, in the libgomp that torch computes with.

    None where torch is not loaded, or uses another library for its threads.
    """
    maps = Path("/proc/self/maps").read_text(errors="surrogateescape")
    paths = {line.split(maxsplit=5)[5] for line in maps.splitlines() if "/" in line}
    torch_library = next((path for path in paths if path.endswith("/libtorch_cpu.so")), None)
    if torch_library is None or not any("libgomp" in Path(path).name for path in paths):
        return None
    library = ctypes.CDLL(torch_library)  # finds the symbols of what it was linked to, too
    threads = len(os.sched_getaffinity(0)) + 1
    # GOMP_parallel(function, its argument, threads, flags): any function without an effect will do.
    no_effect = ctypes.cast(library.omp_get_thread_num, ctypes.c_void_p)
    return lambda: library.GOMP_parallel(no_effect, None, threads, 0)

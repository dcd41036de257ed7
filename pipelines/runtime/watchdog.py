"""A thread that ends this process where a request to stop is not answered.

Python runs a signal's handler in the main thread, between two of its instructions: a main thread
that waits inside of a library (a socket, a collective, a compiler) hears nothing. The thread here
is told by the C level, through `signal.set_wakeup_fd`.
"""

from __future__ import annotations

import math
import multiprocessing
import os
import select
import signal
import sys
import threading
import time
from pathlib import Path

PATIENCE_SECONDS = 8.0
"""Default of `Watchdog.patience`."""
NO_PATIENCE_LIMIT = math.inf
POLL_SECONDS = 0.5
IDLE_SHARE = 0.05
"""Share of one processor below which a process counts as idle: it waits for something."""
_PACKAGE = Path(__file__).parents[2]


class IdleClock:
    """Measures for how long something has used less than IDLE_SHARE of a processor."""

    def __init__(self) -> None:
        self._last: tuple[float, float] | None = None
        self._seconds = 0.0

    def idle_seconds(self, cpu_seconds: float) -> float:
        """Return the idle time up to now.

        Args:
            cpu_seconds: processor time used so far, which never falls.
        """
        now = time.monotonic()
        if self._last is not None:
            seconds, used = now - self._last[0], cpu_seconds - self._last[1]
            self._seconds = self._seconds + seconds if used < IDLE_SHARE * seconds else 0.0
        self._last = now, cpu_seconds
        return self._seconds


class Watchdog:
    """Ends the process, with a line on stderr, at the second SIGINT, and where SIGTERM or SIGINT is
    not answered within `patience`. The exit status is 128 plus the signal's number."""

    _instance: Watchdog | None = None

    def __init__(self) -> None:
        self.patience = PATIENCE_SECONDS
        """Seconds from the signal on, or of idle time after it if `only_if_idle`."""
        self.only_if_idle = False
        """Let the process work on; end it only where it waits."""
        self.announcement = ""
        """Answer to a request, said at once behind the signal's name; empty says nothing."""
        reader, writer = os.pipe()
        os.set_blocking(writer, False)
        signal.set_wakeup_fd(writer, warn_on_full_buffer=False)
        # A forked process would tell this one of its own signals.
        os.register_at_fork(after_in_child=_stop_telling)
        thread = threading.Thread(target=self._watch, args=(reader,), daemon=True)
        # The thread takes no signal itself: those that the main thread blocks have to stay pending.
        mask = signal.pthread_sigmask(signal.SIG_BLOCK, signal.valid_signals())
        thread.start()
        signal.pthread_sigmask(signal.SIG_SETMASK, mask)

    @classmethod
    def of_process(cls) -> Watchdog:
        """Return the watchdog of this process, which the first call starts."""
        if cls._instance is None:
            cls._instance = cls()
        return cls._instance

    def _watch(self, reader: int) -> None:
        interrupts = 0
        request = 0
        since = 0.0
        clock = IdleClock()
        while True:
            readable, _, _ = select.select([reader], [], [], POLL_SECONDS if request else None)
            for number in os.read(reader, 64) if readable else b"":
                interrupts += number == signal.SIGINT
                if interrupts == 2:
                    _end(signal.SIGINT, "interrupted twice")
                if number in (signal.SIGINT, signal.SIGTERM) and not request:
                    request, since = number, time.monotonic()
                    if self.announcement:
                        _say(f"{signal.Signals(number).name}: {self.announcement}")
            if not request:
                continue
            idle = clock.idle_seconds(time.process_time())
            waited = idle if self.only_if_idle else time.monotonic() - since
            if waited >= self.patience:
                _end(request, f"ended by {signal.Signals(request).name} {_where()}")


def _stop_telling() -> None:
    signal.set_wakeup_fd(-1)


def _where() -> str:
    """Where in this package the main thread is."""
    frame = sys._current_frames().get(threading.main_thread().ident or 0)
    while frame is not None:
        path = Path(frame.f_code.co_filename)
        if path.is_relative_to(_PACKAGE):
            name = path.relative_to(_PACKAGE)
            return f"while it waited in {frame.f_code.co_name} ({name}, line {frame.f_lineno})"
        frame = frame.f_back
    return "while it started or ended"


def _end(number: int, reason: str) -> None:
    """End this process and its data workers at once."""
    _say(reason)
    for child in multiprocessing.active_children():
        child.kill()
    os._exit(128 + number)


def _say(text: str) -> None:
    """Print a line on stderr past Python's buffers, whose lock the main thread may hold."""
    command = sys.argv[1] if len(sys.argv) > 1 else ""
    os.write(2, f"bytelm {command}: {text}\n".encode(errors="backslashreplace"))

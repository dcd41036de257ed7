"""Signals that ask a command to stop or to save.

Most commands end at once: SIGINT raises KeyboardInterrupt, SIGTERM its subclass `Terminated`. A
training that has begun to take steps records the signals (`SignalListener`) and answers them
between steps. In both cases a thread (`watchdog`) ends the process at a second Ctrl-C, and where a
request is not answered.
"""

from __future__ import annotations

import os
import signal
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType

from bytelm.pipelines.runtime.watchdog import NO_PATIENCE_LIMIT, Watchdog

STOP = (signal.SIGTERM, signal.SIGINT)
SAVE = signal.SIGUSR1 if sys.platform != "win32" else signal.SIGTERM
"""On Windows no command saves at a signal; `doctor` and the like run there."""
HANDLED = (*STOP, SAVE)
ANNOUNCEMENT = "the step is completed and saved first; a second Ctrl-C ends at once"
"""Answer of a training to a request to stop, behind the signal's name."""


class Terminated(KeyboardInterrupt):
    """SIGTERM was received."""

    was_raised = False
    """Whether this process raised it, which a library that it interrupts may catch and drop."""


def end_at_sigterm() -> None:
    """Let SIGTERM end the command as Ctrl-C does, so that it removes what is unfinished.

    If that takes longer than the watchdog's patience, the process ends without.
    """

    def raise_terminated(number: int, frame: FrameType | None) -> None:
        Terminated.was_raised = True
        raise Terminated

    signal.signal(signal.SIGTERM, raise_terminated)
    Watchdog.of_process()


class SignalListener:
    """Records the signals that this process received since the listener was made."""

    def __init__(self, is_launched: bool = False) -> None:
        """Install the handlers, and unblock what the parent process may have blocked.

        Args:
            is_launched: a launcher has announced what comes, for all its ranks.
        """
        self.stop_requested = False
        self._saves_requested = 0
        self._saves_taken = 0
        self._watchdog = Watchdog.of_process()
        self._watchdog.only_if_idle = True
        self._watchdog.announcement = "" if is_launched else ANNOUNCEMENT
        for number in HANDLED:
            signal.signal(number, self._record)
        signal.pthread_sigmask(signal.SIG_UNBLOCK, {*HANDLED, signal.SIGCHLD})

    def take_save_request(self) -> bool:
        """Return whether a save was requested since the last call.

        A request that arrives during the call is left for the next one.
        """
        requested = self._saves_requested
        is_new = requested > self._saves_taken
        self._saves_taken = requested
        return is_new

    def set_patience(self, seconds: float) -> None:
        """Set how long this process may wait for others after a request to stop."""
        self._watchdog.patience = seconds

    @contextmanager
    def finishing(self) -> Iterator[None]:
        """Let the body finish, however long it waits for a disk."""
        patience, self._watchdog.patience = self._watchdog.patience, NO_PATIENCE_LIMIT
        try:
            yield
        finally:
            self._watchdog.patience = patience

    def _record(self, number: int, frame: FrameType | None) -> None:
        if number == SAVE:
            self._saves_requested += 1
        else:
            self.stop_requested = True


def hold_save_requests() -> None:
    """Keep a request to save pending until the listener is made; it would end the process."""
    signal.pthread_sigmask(signal.SIG_BLOCK, {SAVE})


def block_until_listening() -> None:
    """Keep signals pending, in this process and those it starts, until each makes its listener.

    No signal is lost, and none ends a process before it can save.
    """
    signal.pthread_sigmask(signal.SIG_BLOCK, {*HANDLED, signal.SIGCHLD})


def ignore_in_worker() -> None:
    """Ignore the signals in a data worker, except a SIGTERM that its parent sends to end it.

    A terminal and a cluster's scheduler signal every process. A data worker that died of that
    would break the step that has to be completed before the save.
    """
    for number in (signal.SIGINT, SAVE):
        signal.signal(number, signal.SIG_IGN)
    signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGTERM})

    def exit_on_parents_signal() -> None:
        while signal.sigwaitinfo({signal.SIGTERM}).si_pid != os.getppid():
            pass
        os._exit(0)

    threading.Thread(target=exit_on_parents_signal, daemon=True).start()

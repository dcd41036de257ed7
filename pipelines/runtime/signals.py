"""Signals that ask a run to stop or to save: noted when they come, answered between steps."""

from __future__ import annotations

import os
import signal
import threading
from types import FrameType

STOP = (signal.SIGTERM, signal.SIGINT)
SAVE = signal.SIGUSR1
ALL = (*STOP, SAVE)


class SignalListener:
    """What signals have asked of this process since it began to listen."""

    def __init__(self) -> None:
        """Begin to listen, also where whoever started this process has blocked the signals."""
        self.stop = False
        self._saves = 0
        self._taken = 0
        for number in ALL:
            signal.signal(number, self._note)
        signal.pthread_sigmask(signal.SIG_UNBLOCK, {*ALL, signal.SIGCHLD})

    def _note(self, number: int, frame: FrameType | None) -> None:
        if number == SAVE:
            self._saves += 1
        else:
            self.stop = True

    def take_save(self) -> bool:
        """Whether a save was asked for since this was last called. One that is asked for meanwhile
        is left for the next call."""
        asked = self._saves
        is_new = asked > self._taken
        self._taken = asked
        return is_new


def block() -> None:
    """Leave signals pending, also in processes started from now on, until each of them listens:
    none is lost, and none ends a process early."""
    signal.pthread_sigmask(signal.SIG_BLOCK, {*ALL, signal.SIGCHLD})


def leave_to_parent() -> None:
    """Let these signals go by, but for the SIGTERM by which the parent ends this process.

    A terminal and a cluster's scheduler send them to every process, and a data worker that ended
    by one would break the step that has to end well.
    """
    for number in (signal.SIGINT, SAVE):
        signal.signal(number, signal.SIG_IGN)
    signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGTERM})

    def wait() -> None:
        while signal.sigwaitinfo({signal.SIGTERM}).si_pid != os.getppid():
            pass
        os._exit(0)

    threading.Thread(target=wait, daemon=True).start()

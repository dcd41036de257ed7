"""The processes below a process or with a mark, from /proc."""

from __future__ import annotations

import contextlib
import os
import signal
import time
from pathlib import Path

MARK = "BYTELM_TEST_RUN"
"""Ranks have sessions of their own, so what belongs to a run is told by a variable."""


def marked(mark: str) -> set[int]:
    """All processes of this machine with a mark."""
    found: set[int] = set()
    for path in Path("/proc").glob("[0-9]*/environ"):
        with contextlib.suppress(OSError):  # another user's, or it has just ended
            if f"{MARK}={mark}\0".encode() in path.read_bytes():
                found.add(int(path.parent.name))
    return found


def hear_interrupts() -> None:
    """For `preexec_fn`: a shell may have started the tests where Ctrl-C is ignored."""
    signal.signal(signal.SIGINT, signal.SIG_DFL)


def kill_marked(mark: str) -> None:
    """End all processes with a mark."""
    for pid in marked(mark):
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)


def children(pid: int) -> set[int]:
    """The numbers of the processes that a process started."""
    found: set[int] = set()
    for task in Path(f"/proc/{pid}/task").glob("*"):
        with contextlib.suppress(OSError):  # it has just ended
            found |= set(map(int, (task / "children").read_text().split()))
    return found


def descendants(pid: int) -> set[int]:
    """The numbers of all processes below a process."""
    below = children(pid)
    return below.union(*map(descendants, below))


def wait_until_gone(pids: set[int], seconds: float) -> None:
    """AssertionError where one of the processes is still there after so long."""
    deadline = time.monotonic() + seconds
    while any(Path(f"/proc/{p}").exists() for p in pids):
        assert time.monotonic() < deadline, f"left over: {pids}"
        time.sleep(0.01)


def peak_bytes(pid: int) -> int:
    """The most resident memory that a process has had so far, 0 where it is gone."""
    try:
        status = Path(f"/proc/{pid}/status").read_text()
    except OSError:
        return 0
    _, found, rest = status.partition("VmHWM:")
    return int(rest.split()[0]) << 10 if found else 0

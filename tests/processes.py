"""The processes below a process, from /proc."""

from __future__ import annotations

import contextlib
import time
from pathlib import Path


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


def name(pid: int) -> str:
    """A process's name, empty where it is gone."""
    try:
        return Path(f"/proc/{pid}/comm").read_text().rstrip()
    except OSError:
        return ""


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

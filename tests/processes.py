"""The processes below a process, from /proc."""

from __future__ import annotations

import time
from pathlib import Path


def descendants(pid: int) -> set[int]:
    """The numbers of all processes below a process."""
    found: set[int] = set()
    for task in Path(f"/proc/{pid}/task").glob("*"):
        for child in (task / "children").read_text().split():
            found |= {int(child)} | descendants(int(child))
    return found


def wait_until_gone(pids: set[int], seconds: float) -> None:
    """AssertionError where one of the processes is still there after so long."""
    deadline = time.monotonic() + seconds
    while any(Path(f"/proc/{p}").exists() for p in pids):
        assert time.monotonic() < deadline, f"left over: {pids}"
        time.sleep(0.01)


def resident_bytes(pid: int) -> int:
    """Resident memory of a process now, 0 where it is gone."""
    try:
        status = Path(f"/proc/{pid}/status").read_text()
    except OSError:
        return 0
    _, found, rest = status.partition("VmRSS:")
    return int(rest.split()[0]) << 10 if found else 0

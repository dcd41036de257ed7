"""Facts of a process of this machine, from the kernel."""

from __future__ import annotations

import os
import signal
from pathlib import Path


def is_stopped(pid: int) -> bool:
    """Return whether a signal such as SIGSTOP has stopped a process."""
    return _status_fields(pid)[:1] in (["T"], ["t"])


def cpu_seconds(pid: int) -> float:
    """Return the processor time that a process has used, 0 if it has ended."""
    fields = _status_fields(pid)
    return sum(map(int, fields[11:13])) / os.sysconf("SC_CLK_TCK")


def cause_of_death(exit_code: int) -> str:
    """Say how a process ended; a signal's number is negative, as in `Popen.returncode`."""
    if exit_code < 0:
        return f"killed by {signal.Signals(-exit_code).name}"
    return f"exit status {exit_code}"


def _status_fields(pid: int) -> list[str]:
    """The fields of proc_pid_stat(5) from the process's state on; none if it has ended."""
    try:
        status = Path(f"/proc/{pid}/stat").read_text(errors="replace")
    except OSError:
        return []
    return status.rpartition(") ")[2].split()

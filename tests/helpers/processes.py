"""Find processes in /proc, by their parent or by a mark in their environment."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import time
from collections.abc import Mapping, Sequence
from pathlib import Path

MARK = "BYTELM_TEST_RUN"
"""Environment variable that marks the processes of a run: ranks have sessions of their own."""


def marked(mark: str) -> set[int]:
    """Return the ids of all processes with a mark."""
    pids: set[int] = set()
    for path in Path("/proc").glob("[0-9]*/environ"):
        with contextlib.suppress(OSError):  # another user's, or ended meanwhile
            if f"{MARK}={mark}\0".encode() in path.read_bytes():
                pids.add(int(path.parent.name))
    return pids


def hear_interrupts() -> None:
    """For `preexec_fn`: restore Ctrl-C, which the shell that runs the tests may ignore."""
    signal.signal(signal.SIGINT, signal.SIG_DFL)


def kill_marked(mark: str) -> None:
    """Kill all processes with a mark."""
    for pid in marked(mark):
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)


def kill_after_a_checkpoint(command: Sequence[str], env: Mapping[str, str], run: Path) -> str:
    """Run a training command, and kill it and its ranks at once when the run's folder has a first
    checkpoint; returns the checkpoint's name."""
    process = subprocess.Popen(
        command,
        env=env,
        start_new_session=True,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    latest = run / "checkpoints" / "latest"
    while not latest.exists() and process.poll() is None:
        time.sleep(0.005)
    subprocess.run(["pkill", "-KILL", "-s", str(process.pid)], check=False)
    process.kill()
    process.wait()
    return latest.read_text()


def children(pid: int) -> set[int]:
    """Return the ids of the processes that a process started."""
    pids: set[int] = set()
    for task in Path(f"/proc/{pid}/task").glob("*"):
        with contextlib.suppress(OSError):  # ended meanwhile
            pids |= set(map(int, (task / "children").read_text().split()))
    return pids


def descendants(pid: int) -> set[int]:
    """Return the ids of all descendants of a process."""
    below = children(pid)
    return below.union(*map(descendants, below))


def wait_until_gone(pids: set[int], seconds: float) -> None:
    """Raise AssertionError if a process still exists after `seconds`."""
    deadline = time.monotonic() + seconds
    while any(Path(f"/proc/{p}").exists() for p in pids):
        assert time.monotonic() < deadline, f"left over: {pids}"
        time.sleep(0.01)


def peak_bytes(pid: int) -> int:
    """Return the peak resident memory of a process so far, 0 if it has ended."""
    try:
        status = Path(f"/proc/{pid}/status").read_text()
    except OSError:
        return 0
    _, found, rest = status.partition("VmHWM:")
    return int(rest.split()[0]) << 10 if found else 0

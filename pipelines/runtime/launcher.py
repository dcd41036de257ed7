"""Start the ranks of one machine as processes, forward signals to them, and end them together.

torchrun would kill the ranks 30 seconds after a SIGTERM and merge their exit statuses into one.
Here a rank has as long as its checkpoint takes, and the command ends with the status of the rank
that failed.
"""

from __future__ import annotations

import fcntl
import os
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Mapping, Sequence
from contextlib import suppress

from bytelm.pipelines.runtime import signals

Processes = Sequence[subprocess.Popen[bytes]]

LAUNCHER_LOCK = "BYTELM_LAUNCHER"
"""Environment variable with the path of a file that `launch` keeps locked while it runs."""
GRACE_SECONDS = 10.0
"""Time in which the other ranks can report their errors after one has failed."""


def launch(arguments: Sequence[str], ranks: int, inherited: Mapping[str, int]) -> int:
    """Run `bytelm ARGUMENTS` in `ranks` processes on this machine.

    `signals.STOP` is forwarded to every rank. `signals.SAVE` is forwarded to the first rank only:
    all ranks do what one is asked, and two that heard of it in different steps would save twice.
    When a rank fails, the others are ended.

    Args:
        inherited: descriptors that the ranks inherit, by the environment variable that names each.
    Returns:
        The exit status of the rank that failed, 1 if a signal ended it; 0 if none failed.
    """
    signals.block_until_listening()
    watched = {*signals.HANDLED, signal.SIGCHLD}
    with tempfile.NamedTemporaryFile(prefix="bytelm-") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        port = free_port()
        processes = [
            _start(arguments, rank, ranks, lock.name, port, inherited) for rank in range(ranks)
        ]
        status = 0
        try:
            while not status and _any_alive(processes):
                received = signal.sigwaitinfo(watched).si_signo
                if received in signals.HANDLED:
                    _send(processes[:1] if received == signals.SAVE else processes, received)
                status = _failure(processes)
            deadline = time.monotonic() + GRACE_SECONDS
            while _any_alive(processes) and (seconds := deadline - time.monotonic()) > 0:
                signal.sigtimedwait(watched, seconds)
        finally:
            _send(processes, signal.SIGKILL)
            for process in processes:
                process.wait()
    return status


def exit_with_launcher() -> None:
    """End this rank when its launcher ends: a launcher killed by SIGKILL cannot end its ranks."""

    def exit_when_unlocked() -> None:
        with suppress(FileNotFoundError), open(os.environ[LAUNCHER_LOCK]) as lock:
            fcntl.flock(lock, fcntl.LOCK_SH)
        print("bytelm train: the command that launched this rank has ended", file=sys.stderr)
        os._exit(1)

    if LAUNCHER_LOCK in os.environ:
        threading.Thread(target=exit_when_unlocked, daemon=True).start()


def free_port() -> int:
    """Return a TCP port of this machine that nothing uses now."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return free.getsockname()[1]


def _start(
    arguments: Sequence[str],
    rank: int,
    ranks: int,
    lock: str,
    port: int,
    inherited: Mapping[str, int],
) -> subprocess.Popen[bytes]:
    threads = max(1, (os.cpu_count() or 1) // ranks)
    environment = {
        "OMP_NUM_THREADS": str(threads),
        **os.environ,
        "RANK": str(rank),
        "LOCAL_RANK": str(rank),
        "WORLD_SIZE": str(ranks),
        "LOCAL_WORLD_SIZE": str(ranks),
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": str(port),
        LAUNCHER_LOCK: lock,
        **{name: str(descriptor) for name, descriptor in inherited.items()},
    }
    command = [sys.executable, "-m", "bytelm", *arguments]
    # In its own session, a rank does not receive a terminal's Ctrl-C: the launcher forwards it.
    return subprocess.Popen(
        command, env=environment, start_new_session=True, pass_fds=tuple(inherited.values())
    )


def _any_alive(processes: Processes) -> bool:
    return any(process.poll() is None for process in processes)


def _send(processes: Processes, number: int) -> None:
    for process in processes:
        if process.poll() is None:
            process.send_signal(number)


def _failure(processes: Processes) -> int:
    """The exit status of a rank that failed, or 0; prints which ranks a signal ended."""
    statuses = [process.poll() for process in processes]
    for rank, status in enumerate(statuses):
        if status is not None and status < 0:
            name = signal.Signals(-status).name
            print(f"bytelm train: rank {rank} was ended by {name}", file=sys.stderr)
    failed = [status for status in statuses if status]
    if not failed:
        return 0
    return 1 if min(failed) < 0 else failed[0]

"""The ranks of one machine as processes: started, told of signals, and ended together.

torchrun answers SIGTERM with 30 seconds and status 1, and makes one status of all; here a rank has
the time that its checkpoint takes, and the command ends with the status of the rank that failed.
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
from collections.abc import Sequence
from contextlib import suppress

from bytelm.pipelines.runtime import signals

LAUNCHER = "BYTELM_LAUNCHER"
"""Names the file that `launch` has locked for as long as it runs."""
GRACE_SECONDS = 10.0
"""What the other ranks have to say what they know, once one has failed."""


def launch(arguments: Sequence[str], processes: int) -> int:
    """Run `bytelm ARGUMENTS` in so many ranks on this machine; gives the exit status.

    Signals of `signals.STOP` are passed on to every rank, `signals.SAVE` to the first: what one
    rank is asked for all do, and two that hear of it in different steps would save twice. Where one
    fails, the others are ended, and its exit status is given: 1 where a signal ended it.
    """
    signals.block()
    watched = {*signals.ALL, signal.SIGCHLD}
    with tempfile.NamedTemporaryFile(prefix="bytelm-") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        port = free_port()
        ranks = [_start(arguments, rank, processes, lock.name, port) for rank in range(processes)]
        status = 0
        try:
            while not status and _alive(ranks):
                received = signal.sigwaitinfo(watched).si_signo
                if received in signals.ALL:
                    _send(ranks[:1] if received == signals.SAVE else ranks, received)
                status = _failure(ranks)
            deadline = time.monotonic() + GRACE_SECONDS
            while _alive(ranks) and (left := deadline - time.monotonic()) > 0:
                signal.sigtimedwait(watched, left)
        finally:
            _send(ranks, signal.SIGKILL)
            for process in ranks:
                process.wait()
    return status


def _start(
    arguments: Sequence[str], rank: int, ranks: int, lock: str, port: int
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
        LAUNCHER: lock,
    }
    command = [sys.executable, "-m", "bytelm", *arguments]
    # A session of its own: Ctrl-C in a terminal reaches the command alone, which passes it on.
    return subprocess.Popen(command, env=environment, start_new_session=True)


def free_port() -> int:
    """A TCP port of this machine that nobody uses now."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return free.getsockname()[1]


def _alive(ranks: Sequence[subprocess.Popen[bytes]]) -> bool:
    return any(rank.poll() is None for rank in ranks)


def _send(ranks: Sequence[subprocess.Popen[bytes]], number: int) -> None:
    for rank in ranks:
        if rank.poll() is None:
            rank.send_signal(number)


def _failure(ranks: Sequence[subprocess.Popen[bytes]]) -> int:
    """The exit status of a rank that has failed, 0 where none has; says which were killed."""
    statuses = [rank.poll() for rank in ranks]
    for number, status in enumerate(statuses):
        if status is not None and status < 0:
            name = signal.Signals(-status).name
            print(f"bytelm train: rank {number} was ended by {name}", file=sys.stderr)
    failed = [status for status in statuses if status]
    return (1 if min(failed) < 0 else failed[0]) if failed else 0


def end_with_launcher() -> None:
    """Have this rank end once `launch` has. If that is killed, nobody else ends it."""

    def wait() -> None:
        with suppress(FileNotFoundError), open(os.environ[LAUNCHER]) as lock:
            fcntl.flock(lock, fcntl.LOCK_SH)
        print("bytelm train: the command that launched this rank has ended", file=sys.stderr)
        os._exit(1)

    if LAUNCHER in os.environ:
        threading.Thread(target=wait, daemon=True).start()

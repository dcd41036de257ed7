"""Start the ranks of one machine as processes, forward signals to them, and end them together.

torchrun would kill the ranks 30 seconds after a SIGTERM and merge their exit statuses into one.
Here a rank has as long as its checkpoint takes, and the command ends with the status of the rank
that failed.
"""

from __future__ import annotations

import fcntl
import math
import os
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path

from bytelm.pipelines.runtime import signals
from bytelm.pipelines.runtime.processes import cpu_seconds, is_stopped
from bytelm.pipelines.runtime.watchdog import NO_PATIENCE_LIMIT, PATIENCE_SECONDS, IdleClock

Processes = Sequence[subprocess.Popen[bytes]]

LAUNCHER_LOCK = "BYTELM_LAUNCHER"
"""Environment variable with the path of a file that `launch` keeps locked while it runs. It has a
byte for each rank, with what the rank does: nothing yet (STARTING), STEPPING or SAVING; or that it
ended on request with work left (STOPPED)."""
STARTING, STEPPING, SAVING, STOPPED = range(4)
STOPPED_STATUS = 75
"""Exit status of a rank that another rank's request to stop ended early: EX_TEMPFAIL of sysexits.h.
torchrun takes 0 for the end of the whole run."""
GRACE_SECONDS = 10.0
"""Time in which the other ranks can report their errors after one has failed."""
FOREIGN_PATIENCE_SECONDS = 30.0
"""Idle time that a rank of another launcher has after a request to stop."""
POLL_SECONDS = 1.0
RANK_VARIABLES = ("RANK", "WORLD_SIZE", "LOCAL_RANK", "MASTER_ADDR", "MASTER_PORT")
"""Environment variables with which a launcher describes a rank."""


def launch(
    arguments: Sequence[str], ranks: int, inherited: Mapping[str, int], stop_status: int = 0
) -> int:
    """Run `bytelm ARGUMENTS` in `ranks` processes on this machine.

    `signals.STOP` is forwarded to every rank. `signals.SAVE` is forwarded to the first rank only:
    all ranks do what one is asked, and two that heard of it in different steps would save twice.
    When a rank fails, the others are ended. All are ended at a second SIGINT, where they only
    wait after a request to stop, and at a request itself if they have not told that they take
    steps.

    Args:
        inherited: descriptors that the ranks inherit, by the environment variable that names each.
        stop_status: status in place of 0 if the ranks were asked to stop and had work left.
    Returns:
        The exit status of the rank that failed, 1 if a signal ended it; 0 if none failed; 128 plus
        the number of the signal at which they were ended.
    """
    signals.block_until_listening()
    with tempfile.NamedTemporaryFile(prefix="bytelm-") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        port = free_port()
        processes = [
            _start(arguments, rank, ranks, lock.name, port, inherited) for rank in range(ranks)
        ]
        try:
            status = _wait_for(processes, lock.name, arguments[0])
            is_stopped_early = STOPPED in Path(lock.name).read_bytes()
            return stop_status if status == 0 and is_stopped_early else status
        finally:
            _send(processes, signal.SIGKILL)
            for process in processes:
                process.wait()


def check_environment(processes: int) -> None:
    """Check the environment variables of a launcher, if any, before anything waits for a rank.

    Args:
        processes: those that this command is asked to start.
    Raises:
        ValueError: if some are missing or no numbers, or a launched rank is to start processes.
    """
    if "RANK" not in os.environ or LAUNCHER_LOCK in os.environ:
        return
    way_out = "unset RANK to start from here, or start with torchrun"
    missing = [name for name in RANK_VARIABLES if name not in os.environ]
    if missing:
        verb = "is" if len(missing) == 1 else "are"
        raise ValueError(f"RANK is set and {', '.join(missing)} {verb} not: {way_out}")
    for name in RANK_VARIABLES:
        if name != "MASTER_ADDR" and not os.environ[name].isdecimal():
            raise ValueError(f"{name} is {os.environ[name]!r} and no number: {way_out}")
    rank, ranks = int(os.environ["RANK"]), int(os.environ["WORLD_SIZE"])
    if rank >= ranks:
        raise ValueError(f"RANK is {rank} and WORLD_SIZE only {ranks}: {way_out}")
    if processes > 1:
        raise ValueError(
            f"--processes {processes} beside RANK {rank}, which says that a launcher started this "
            "process as one of its ranks: leave --processes out, or unset RANK"
        )


def patience(ranks: int) -> float:
    """Return the seconds for which one of `ranks` may wait idle after a request to stop.

    `launch` watches its ranks together, since one that waits may wait for one that works. Another
    launcher kills its ranks itself, half a minute after its signal.
    """
    if LAUNCHER_LOCK in os.environ:
        return NO_PATIENCE_LIMIT
    return PATIENCE_SECONDS if ranks == 1 else FOREIGN_PATIENCE_SECONDS


@contextmanager
def saving() -> Iterator[None]:
    """Tell the launcher, if there is one, that this rank writes a checkpoint in the body.

    After a request to stop, the launcher takes ranks that use no processor for ones that hang; a
    slow disk looks the same.
    """
    if LAUNCHER_LOCK not in os.environ:
        yield
        return
    _tell_launcher(SAVING)
    try:
        yield
    finally:
        _tell_launcher(STEPPING)


def tell_launcher_started() -> None:
    """Tell the launcher, if there is one, that this rank is about to take steps.

    A request to stop ends all ranks at once until each of them has told so: none can have taken a
    step without the others, and there is nothing to save.
    """
    if LAUNCHER_LOCK in os.environ:
        _tell_launcher(STEPPING)


def status_of_stopped_rank(was_asked: bool, stop_status: int) -> int:
    """Return the exit status of a rank that a request to stop ended before its work was done.

    With our launcher it is 0, and the launcher is told: it ends with its own `stop_status`. Under
    torchrun 0 would count as the end of the work, and the agent of a node that is not asked to
    stop would leave. A rank of such a node reports failure, so that its agent starts it again
    with the nodes that are left.

    Args:
        was_asked: this rank received the request itself, not only through another rank.
        stop_status: what the user wants this command to end with.
    """
    if LAUNCHER_LOCK in os.environ:
        _tell_launcher(STOPPED)
        return 0
    return stop_status if was_asked or not is_elastic() else STOPPED_STATUS


def is_elastic() -> bool:
    """Return whether torchrun started this rank, with leave to start it again."""
    return int(os.environ.get("TORCHELASTIC_MAX_RESTARTS", "0")) > 0


def restarts() -> int:
    """Return how often torchrun has started this node's ranks again after a failure.

    A node that joins later counts its own from 0, and so do all when a node joins without failure.
    """
    return int(os.environ.get("TORCHELASTIC_RESTART_COUNT", "0"))


def _tell_launcher(state: int) -> None:
    with open(os.environ[LAUNCHER_LOCK], "r+b", buffering=0) as board:
        os.pwrite(board.fileno(), bytes([state]), int(os.environ["RANK"]))


def exit_with_launcher() -> None:
    """End this rank when its launcher ends: a launcher killed by SIGKILL cannot end its ranks."""

    def exit_when_unlocked() -> None:
        with suppress(FileNotFoundError), open(os.environ[LAUNCHER_LOCK]) as lock:
            fcntl.flock(lock, fcntl.LOCK_SH)
        print("bytelm: the command that launched this rank has ended", file=sys.stderr)
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


def _wait_for(processes: Processes, board: str, command: str) -> int:
    """Forward signals until all ranks have ended or one has failed; returns `launch`'s status.

    Args:
        board: file in which each rank notes what it does.
        command: name of the command that the ranks run.
    """
    watched = {*signals.HANDLED, signal.SIGCHLD}
    request = _StopRequest(processes, Path(board), command)
    deadline = math.inf  # once a rank has failed
    status = 0
    while _any_alive(processes) and (seconds := deadline - time.monotonic()) > 0:
        received = signal.sigtimedwait(watched, min(seconds, POLL_SECONDS))
        number = received.si_signo if received else 0
        if number in signals.HANDLED:
            _send(processes[:1] if number == signals.SAVE else processes, number)
        if ended := request.status_after(number):
            return ended
        if not status and (status := _failure(processes, command)):
            deadline = time.monotonic() + GRACE_SECONDS
    return status or _failure(processes, command)


class _StopRequest:
    """A request to stop that the ranks have heard, and whether they answer it."""

    def __init__(self, processes: Processes, board: Path, command: str):
        self._processes = processes
        self._board = board
        self._command = command
        self._number = 0
        self._interrupts = 0
        self._clock = IdleClock()

    def status_after(self, number: int) -> int:
        """The exit status with which to end the ranks now, after a line that says why; otherwise 0.

        Args:
            number: the signal that has arrived, if any.
        """
        self._interrupts += number == signal.SIGINT
        if self._interrupts == 2:
            print(f"bytelm {self._command}: interrupted twice", file=sys.stderr)
            return 128 + signal.SIGINT
        if number in signals.STOP and not self._number:
            self._number = number
            name = signal.Signals(number).name
            if self._is_starting():
                when = " before its first step" if self._command == "train" else ""
                print(f"bytelm {self._command}: ended by {name}{when}", file=sys.stderr)
                return 128 + number
            print(f"bytelm {self._command}: {name}: {signals.ANNOUNCEMENT}", file=sys.stderr)
        if not self._number:
            return 0
        used = sum(cpu_seconds(process.pid) for process in self._processes)
        idle = self._clock.idle_seconds(used)
        stopped = [rank for rank, p in enumerate(self._processes) if is_stopped(p.pid)]
        may_wait = SAVING in self._board.read_bytes() and not stopped
        if idle < PATIENCE_SECONDS or may_wait:
            return 0
        name = signal.Signals(self._number).name
        ranks = ", ".join(f"rank {r} (process {self._processes[r].pid})" for r in stopped)
        cause = f": {ranks} is stopped" if stopped else ""
        print(
            f"bytelm {self._command}: ended by {name} while its ranks waited for {idle:.0f} s"
            f"{cause}",
            file=sys.stderr,
        )
        return 128 + self._number

    def _is_starting(self) -> bool:
        """Whether a rank has not begun to take steps."""
        states = self._board.read_bytes()  # as long as the last rank that wrote makes it
        return len(states) < len(self._processes) or STARTING in states


def _any_alive(processes: Processes) -> bool:
    return any(process.poll() is None for process in processes)


def _send(processes: Processes, number: int) -> None:
    for process in processes:
        if process.poll() is None:
            process.send_signal(number)


def _failure(processes: Processes, command: str) -> int:
    """The exit status of a rank that failed, or 0; prints which ranks a signal ended."""
    statuses = [process.poll() for process in processes]
    for rank, status in enumerate(statuses):
        if status is not None and status < 0:
            name = signal.Signals(-status).name
            print(f"bytelm {command}: rank {rank} was ended by {name}", file=sys.stderr)
    failed = [status for status in statuses if status]
    if not failed:
        return 0
    return 1 if min(failed) < 0 else failed[0]

"""The lock of a run's folder: one training at a time writes into it.

The lock is flock's on RUN/lock, so the kernel ends it with the processes that hold it, however they
end. NFS passes it on to its server, so that it holds between hosts too; a file system that keeps
flock local to a host (Lustre's `localflock`) does not. The file names the holder for people.

The launcher of several ranks takes the lock, and its ranks inherit the open file: it is free once
the launcher and all ranks have ended, so a rank that outlives its launcher for a moment is safe.
"""

from __future__ import annotations

import errno
import json
import os
import socket
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from bytelm.pipelines.storage.file_locks import FileLocks, is_open_at

LOCK_FILE = "lock"
INHERITED = "BYTELM_RUN_LOCK"
"""Environment variable of a rank: the descriptor of the lock that its launcher took."""
ENDING_SECONDS = 10.0
"""Time in which the ranks of a killed launcher end."""
LOST_NODE_SECONDS = 120.0
"""Time in which the lock of torchrun's earlier ranks becomes free. They have ended when it starts
new ones, but an NFS server keeps the locks of a lost host for its lease, by default 90 s."""
TORCHRUN_ID = "TORCHELASTIC_RUN_ID"
"""Environment variable of torchrun's ranks: the id that all its nodes were started with."""
_UNSUPPORTED = {errno.ENOLCK, errno.ENOSYS, errno.EOPNOTSUPP, errno.EINVAL}
_POLL_SECONDS = 0.05

_locks = FileLocks()
# A data worker outlives a killed rank for seconds, and must not keep the lock for so long.
os.register_at_fork(after_in_child=_locks.forget)


@contextmanager
def locked(run: Path) -> Iterator[int | None]:
    """Hold the lock of a run's folder, which is created where it is missing.

    Where nothing but the lock was written meanwhile, the folder is removed again.

    Yields:
        the descriptor that the ranks of this launcher have to inherit; None where the file system
        has no locks, which is said on stderr.
    Raises:
        ValueError: if another training holds the lock, or no folder can be made there.
    """
    try:
        is_new = not run.exists()
        run.mkdir(parents=True, exist_ok=True)
        descriptor = _take(run)
    except OSError as error:
        if error.errno not in _UNSUPPORTED:
            raise ValueError(f"{run} cannot be a run's folder: {error.strerror}") from error
        print(
            f"bytelm train: the file system of {run} has no locks ({error.strerror}): see that no "
            "other training writes into it",
            file=sys.stderr,
        )
        (run / LOCK_FILE).unlink(missing_ok=True)
        descriptor = None
    try:
        yield descriptor
    finally:
        if descriptor is not None:
            (run / LOCK_FILE).unlink(missing_ok=True)
            _locks.release(descriptor)
        if is_new:
            with suppress(OSError):  # it is not empty
                run.rmdir()


def adopt_inherited() -> bool:
    """In a rank: keep the lock that its launcher took; False if the launcher passed none on."""
    if INHERITED not in os.environ:
        return False
    _locks.adopt(int(os.environ[INHERITED]))
    return True


def _take(run: Path) -> int:
    """The descriptor of the locked file. Raises ValueError that names the holder, if any."""
    path = run / LOCK_FILE
    started = time.monotonic()
    is_announced = False
    while True:
        descriptor = _locks.try_exclusive(path, os.O_RDWR | os.O_CREAT)
        if descriptor is not None and is_open_at(descriptor, path):
            os.truncate(descriptor, 0)
            os.write(descriptor, json.dumps(_this_process()).encode())
            return descriptor
        if descriptor is not None:  # the holder removed the file as it ended
            _locks.release(descriptor)
            continue
        holder = _holder(path)
        waited = time.monotonic() - started
        if waited >= _ending_seconds(holder):
            raise ValueError(
                f"{run} is being trained by {_words(holder)}: wait, or choose another --out"
            )
        if waited > ENDING_SECONDS and not is_announced:
            is_announced = True
            print(
                f"bytelm train: waiting up to {LOST_NODE_SECONDS:.0f} s for the lock of {run}, "
                f"which {_words(holder)} held before torchrun started the ranks again",
                file=sys.stderr,
            )
        time.sleep(_POLL_SECONDS)


def _this_process() -> dict[str, str | int]:
    """Description of the holder for the lock's file, with the id of its torchrun, if it has one."""
    started = time.strftime("%Y-%m-%d %H:%M:%S %z")
    holder: dict[str, str | int] = {"process": os.getpid(), "host": socket.gethostname()}
    holder["since"] = started
    if TORCHRUN_ID in os.environ:
        holder["torchrun"] = os.environ[TORCHRUN_ID]
    return holder


def _holder(path: Path) -> dict[str, str | int]:
    """Content of the lock's file; empty while its holder writes it or has just removed it."""
    try:
        holder = json.loads(path.read_text())
    except (OSError, ValueError):
        return {}
    return holder if isinstance(holder, dict) else {}


def _words(holder: dict[str, str | int]) -> str:
    if not holder:
        return "another process"
    return f"process {holder.get('process')} on {holder.get('host')} since {holder.get('since')}"


def _ending_seconds(holder: dict[str, str | int]) -> float:
    """Time in which the holder's lock becomes free by itself; 0 if nothing says that it does."""
    if TORCHRUN_ID in os.environ and holder.get("torchrun") == os.environ[TORCHRUN_ID]:
        return LOST_NODE_SECONDS
    # Without content the file is about to be written, or was removed by a holder that ended.
    return ENDING_SECONDS if not holder or _is_ending(holder) else 0.0


def _is_ending(holder: dict[str, str | int]) -> bool:
    """Whether the lock is about to be free: its holder was killed here and its ranks are ending."""
    pid = holder.get("process")
    if holder.get("host") != socket.gethostname() or not isinstance(pid, int):
        return False
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return True
    except PermissionError:  # another user's
        return False
    return False

"""Locks on files, shared by processes: the cache's protocol in `cache.py` is made of them.

The locks are those of flock, so they end with the process that holds them, however it ends.
"""

from __future__ import annotations

import fcntl
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path


class FileLocks:
    """The files that one process has open and locked. A lock is named by its descriptor."""

    def __init__(self) -> None:
        self._descriptors: set[int] = set()

    def shared(self, path: Path) -> int | None:
        """Wait for the shared lock on a file; None where there is no such file."""
        while True:
            try:
                descriptor = self._open(path, os.O_RDONLY)
            except FileNotFoundError:
                return None
            fcntl.flock(descriptor, fcntl.LOCK_SH)
            if is_open_at(descriptor, path):
                return descriptor
            self.release(descriptor)  # the file was removed between open and lock

    def try_exclusive(self, path: Path, flags: int) -> int | None:
        """The exclusive lock on a file that is opened with `flags`; None where another process
        holds a lock on it or there is no such file."""
        try:
            descriptor = self._open(path, flags)
        except FileNotFoundError:
            return None
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            self.release(descriptor)
            return None
        return descriptor

    @contextmanager
    def exclusive(self, path: Path) -> Iterator[None]:
        """Wait for the exclusive lock on a file, created where it is missing, and hold it."""
        descriptor = self._open(path, os.O_RDWR | os.O_CREAT)
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX)
            yield
        finally:
            self.release(descriptor)

    def adopt(self, descriptor: int) -> None:
        """Keep a lock whose descriptor this process inherited from the one that took it."""
        os.set_inheritable(descriptor, False)
        self._descriptors.add(descriptor)

    def make_shared(self, descriptor: int) -> None:
        """Turn an exclusive lock into a shared one. It is free for a moment in between."""
        fcntl.flock(descriptor, fcntl.LOCK_SH)

    def release(self, descriptor: int) -> None:
        """Unlock a file and close it."""
        # Closing alone would not do: a forked child may hold a copy, which keeps the lock.
        fcntl.flock(descriptor, fcntl.LOCK_UN)
        self._descriptors.discard(descriptor)
        os.close(descriptor)

    def forget(self) -> None:
        """In a forked child: close the parent's descriptors and leave the parent its locks."""
        for descriptor in self._descriptors:
            os.close(descriptor)
        self._descriptors.clear()

    def _open(self, path: Path, flags: int) -> int:
        descriptor = os.open(path, flags, 0o666)
        self._descriptors.add(descriptor)
        return descriptor


def is_open_at(descriptor: int, path: Path) -> bool:
    """Whether an open file is the one at `path` now."""
    try:
        return os.path.samestat(os.fstat(descriptor), path.stat())
    except FileNotFoundError:
        return False

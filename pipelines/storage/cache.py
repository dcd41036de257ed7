"""The cache of remote blobs on disk: one folder of files named by their SHA-256.

    FOLDER/<sha256>         a whole, verified blob; its modification time is its last use
    FOLDER/<sha256>.part    a blob that is being fetched, already at its full length
    FOLDER/.lock            held while files are counted, removed or renamed

Processes share the folder by locks on these files (`file_locks.py`), which end with their process:
- an exclusive lock on a part: its fetcher is alive. A part that can be locked was left by a dead
  process, and is removed.
- a shared lock on a blob: a process is using it, and it is not removed to make room.

The folder is meant for a local disk: every machine has its own. `remote.py` is the only user.
"""

from __future__ import annotations

import errno
import hashlib
import logging
import math
import os
import sys
import threading
import time
from collections.abc import Callable, Collection
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from pathlib import Path
from typing import BinaryIO, NamedTuple

from bytelm.pipelines.storage.blob import Blob, is_sha256
from bytelm.pipelines.storage.file_locks import FileLocks, is_open_at

CACHE_FOLDER = "~/.cache/bytelm/shards"
"""Default folder of the cache."""
CACHE_GB = 100.0
"""Default limit of the cache, in 10^9 bytes."""
POLL_SECONDS = 0.05
ROOM_SECONDS = 60.0
"""How long to wait for other processes to release blobs that they use."""
PART_SUFFIX = ".part"
FOLDER_LOCK = ".lock"

_log = logging.getLogger(__name__)


def cache_limit(gigabytes: float) -> int:
    """Return a limit of 10^9 bytes each as bytes; the largest index of memory if it is infinite."""
    return sys.maxsize if gigabytes == math.inf else round(gigabytes * 1e9)


class CacheFullError(Exception):
    """A prefetch has no room: everything in the cache is in use or needed sooner."""


class StoreClosedError(Exception):
    """The store was closed during a fetch."""


@dataclass(frozen=True)
class CacheConfig:
    """Folder and limit of the cache. Raises ValueError where the limit is not positive."""

    folder: Path
    limit_bytes: int
    """Bytes of all blobs in the folder, those being fetched included."""

    def __post_init__(self) -> None:
        if self.limit_bytes < 1:
            raise ValueError(f"the cache's limit is {self.limit_bytes} bytes: it must be positive")


@dataclass
class StoreStats:
    """Counts of what a store has done in this process."""

    fetched: int = 0
    fetched_bytes: int = 0
    retries: int = 0
    damaged: int = 0
    """Cached files whose content did not match their name; they are fetched again."""
    evicted: int = 0


class Cache:
    """One process's view of the cache.

    Its methods may be called by any thread. After a fork the child calls `forget` and makes a
    cache of its own.
    """

    def __init__(self, config: CacheConfig, stats: StoreStats, stop: threading.Event):
        """`stop` makes waiting calls raise StoreClosedError."""
        self.folder = config.folder
        self.limit_bytes = config.limit_bytes
        self._stats = stats
        self._stop = stop
        self._mutex = threading.Lock()
        self._pins: dict[str, _Pin] = {}  # by SHA-256
        self._verified_inodes: dict[str, int] = {}  # by SHA-256: files that this process hashed
        self._locks = FileLocks()
        self.folder.mkdir(parents=True, exist_ok=True)

    def pin(self, blob: Blob) -> Path | None:
        """The verified file of a blob, which stays until `release`; None where there is none.

        A cached file whose content does not match its name is removed.
        """
        path = self._path(blob)
        with self._mutex:
            if blob.sha256 in self._pins:
                if is_open_at(self._pins[blob.sha256].descriptor, path):
                    return path
                self._unpin(blob.sha256)  # the folder was emptied by hand
        descriptor = self._locks.shared(path)
        if descriptor is None:
            return None
        if not self._is_whole(descriptor, blob):
            self._stats.damaged += 1
            _log.warning("cached file of %s is damaged: removed %s", blob.name, path)
            self._remove(descriptor, path)
            return None
        self._pin(blob, descriptor)
        return path

    def release(self, blob: Blob) -> None:
        """Allow a pinned blob to be removed; does nothing where it is not pinned."""
        with self._mutex:
            self._unpin(blob.sha256)

    def release_all(self) -> None:
        """Release every pinned blob."""
        with self._mutex:
            for sha256 in list(self._pins):
                self._unpin(sha256)

    def forget(self) -> None:
        """In a forked child: drop the parent's descriptors and leave the parent its locks."""
        self._locks.forget()
        self._pins.clear()

    def fill(
        self,
        blob: Blob,
        download: Callable[[BinaryIO], None],
        upcoming: Collection[str],
        is_prefetch: bool,
    ) -> None:
        """Fetch a blob, unless another thread or process does so meanwhile.

        The least recently used blobs make room. Those of `upcoming` go last, and only when this
        blob is needed at once.

        Args:
            blob: pinned once it is fetched, unless `is_prefetch`.
            download: writes the blob's bytes to an open file, and checks them.
            upcoming: SHA-256 of the blobs that this process is about to use.
            is_prefetch: whether the blob is fetched ahead of its use.
        Raises:
            ValueError: where the limit cannot hold the blob, or the blob and those in use.
            CacheFullError: where a prefetch would have to wait for room.
            StoreClosedError: after `stop` was set.
            OSError: where the disk is full, and what `download` raises.
        """
        if self._touch(blob):
            return
        self._check_limit(blob, is_prefetch)
        part = self._path(blob).with_name(blob.sha256 + PART_SUFFIX)
        descriptor = self._claim(blob, part)
        if descriptor is None:
            return
        try:
            self._reserve(blob, descriptor, upcoming, is_prefetch)
            with open(descriptor, "wb", closefd=False) as file:
                download(file)
            os.fsync(descriptor)
        except BaseException as error:
            self._remove(descriptor, part)
            if isinstance(error, OSError) and error.errno == errno.ENOSPC:
                raise self._disk_full() from error
            raise
        self._publish(blob, descriptor, part, is_prefetch)

    # A fetch, step by step

    def _touch(self, blob: Blob) -> bool:
        """Mark a blob as used just now; False where it is not in the folder."""
        try:
            os.utime(self._path(blob))
        except FileNotFoundError:
            return False
        return True

    def _check_limit(self, blob: Blob, is_prefetch: bool) -> None:
        excess = blob.size - self.limit_bytes
        if excess > 0:
            raise ValueError(
                f"{blob.name} has {blob.size:,} bytes, {excess:,} more than the limit of the cache "
                f"{self.folder}: raise the limit"
            )
        with self._mutex:
            excess += sum(pin.size for pin in self._pins.values())
        if excess > 0 and is_prefetch:
            raise CacheFullError
        if excess > 0:
            raise ValueError(
                f"the shards in use together with {blob.name} need {excess:,} bytes more than the "
                f"limit of the cache {self.folder} ({self.limit_bytes:,}): raise the limit"
            )

    def _claim(self, blob: Blob, part: Path) -> int | None:
        """The exclusive lock on the blob's empty part; None once the blob is in the folder."""
        path = self._path(blob)
        while not path.exists():
            descriptor = self._locks.try_exclusive(part, os.O_RDWR | os.O_CREAT)
            if descriptor is None:
                self._pause()
            elif not is_open_at(descriptor, part):  # its last owner has renamed or removed it
                self._locks.release(descriptor)
            elif path.exists():
                self._remove(descriptor, part)
            else:
                os.ftruncate(descriptor, 0)  # a dead process may have left bytes
                return descriptor
        return None

    def _reserve(
        self, blob: Blob, descriptor: int, upcoming: Collection[str], is_prefetch: bool
    ) -> None:
        """Extend the part to its full length, once the folder has room for it."""
        waited = 0.0
        while True:
            with self._locked_folder():
                missing, is_fetching = self._make_room(blob.size, upcoming, is_prefetch)
                if missing <= 0:
                    os.ftruncate(descriptor, blob.size)
                    return
            if is_prefetch:
                raise CacheFullError
            if waited > ROOM_SECONDS:
                raise ValueError(
                    f"no room for {blob.name}: the shards that all processes use at once need "
                    f"{missing:,} bytes more than the limit of the cache {self.folder} "
                    f"({self.limit_bytes:,}): raise the limit"
                )
            start = time.monotonic()
            self._pause()
            if not is_fetching:  # a blob that is being fetched may be removed afterwards
                waited += time.monotonic() - start

    def _publish(self, blob: Blob, descriptor: int, part: Path, is_prefetch: bool) -> None:
        """Give a downloaded part the blob's name."""
        with self._locked_folder():
            part.rename(self._path(blob))
            self._verified_inodes[blob.sha256] = os.fstat(descriptor).st_ino
            if is_prefetch:
                self._locks.release(descriptor)
            else:
                self._locks.make_shared(descriptor)  # the folder's lock covers the free moment
                self._pin(blob, descriptor)
        self._stats.fetched += 1
        self._stats.fetched_bytes += blob.size

    def _disk_full(self) -> OSError:
        return OSError(
            f"the disk of the cache {self.folder} is full below the cache's limit of "
            f"{self.limit_bytes:,} bytes: lower the limit, or make room"
        )

    # Room, with the folder locked

    def _make_room(
        self, size: int, upcoming: Collection[str], is_prefetch: bool
    ) -> tuple[int, bool]:
        """Remove the least recently used blobs until `size` bytes fit, or none where that is not
        enough.

        Returns:
            the bytes that are still missing, and whether others are fetching.
        """
        contents = self._scan()
        missing = contents.size + size - self.limit_bytes
        victims: list[tuple[int, Path]] = []
        for blob in sorted(contents.blobs, key=lambda b: (b.path.name in upcoming, b)):
            if missing <= 0 or (is_prefetch and blob.path.name in upcoming):
                break
            descriptor = self._locks.try_exclusive(blob.path, os.O_RDONLY)
            if descriptor is not None:
                victims.append((descriptor, blob.path))
                missing -= blob.size
        for descriptor, path in victims:
            if missing <= 0:
                path.unlink()
                self._stats.evicted += 1
            self._locks.release(descriptor)
        return missing, contents.is_fetching

    def _scan(self) -> _Contents:
        """List the folder, and remove the parts of dead processes."""
        contents = _Contents()
        for entry in os.scandir(self.folder):
            sha256, path = entry.name.removesuffix(PART_SUFFIX), Path(entry.path)
            is_part = sha256 != entry.name
            if not is_sha256(sha256):
                continue
            try:
                status = entry.stat(follow_symlinks=False)
            except FileNotFoundError:  # the folder is being emptied by hand
                continue
            if is_part and self._remove_dead(path):
                continue
            contents.size += status.st_size
            if is_part:
                contents.is_fetching |= status.st_size > 0
            else:
                contents.blobs.append(_CachedBlob(status.st_mtime_ns, status.st_size, path))
        return contents

    def _remove_dead(self, part: Path) -> bool:
        """Remove a part that no living process is fetching."""
        descriptor = self._locks.try_exclusive(part, os.O_RDWR)
        if descriptor is None:
            return False
        part.unlink()
        self._locks.release(descriptor)
        return True

    # Files

    def _path(self, blob: Blob) -> Path:
        return self.folder / blob.sha256

    def _is_whole(self, descriptor: int, blob: Blob) -> bool:
        """Whether a cached file has the blob's size and SHA-256. A process hashes a file once."""
        status = os.fstat(descriptor)
        if status.st_size != blob.size:
            return False
        if self._verified_inodes.get(blob.sha256) == status.st_ino:
            return True
        with open(descriptor, "rb", closefd=False) as file:
            if hashlib.file_digest(file, "sha256").hexdigest() != blob.sha256:
                return False
        self._verified_inodes[blob.sha256] = status.st_ino
        return True

    def _remove(self, descriptor: int, path: Path) -> None:
        """Remove a locked file, unless another file has taken its name."""
        with self._locked_folder():
            if is_open_at(descriptor, path):
                path.unlink()
        self._locks.release(descriptor)

    def _locked_folder(self) -> AbstractContextManager[None]:
        return self._locks.exclusive(self.folder / FOLDER_LOCK)

    def _pin(self, blob: Blob, descriptor: int) -> None:
        os.utime(descriptor)
        with self._mutex:
            self._unpin(blob.sha256)  # another thread may have pinned it meanwhile
            self._pins[blob.sha256] = _Pin(descriptor, blob.size)

    def _unpin(self, sha256: str) -> None:
        if sha256 in self._pins:
            descriptor = self._pins.pop(sha256).descriptor
            os.utime(descriptor)
            self._locks.release(descriptor)

    def _pause(self) -> None:
        if self._stop.wait(POLL_SECONDS):
            raise StoreClosedError


class _Pin(NamedTuple):
    """A blob in use, under a shared lock."""

    descriptor: int
    size: int


class _CachedBlob(NamedTuple):
    """A whole blob in the folder; the least recently used one sorts first."""

    last_used_ns: int
    size: int
    path: Path


@dataclass
class _Contents:
    """The folder at one moment."""

    blobs: list[_CachedBlob] = field(default_factory=list)
    size: int = 0
    """Bytes of all blobs and parts."""
    is_fetching: bool = False
    """Whether a living process is fetching a blob into reserved room."""

"""The cache of remote shards: one folder of files named by their SHA-256, shared by processes.

    FOLDER/<sha256>         a whole, verified object; its time is when it was last used
    FOLDER/<sha256>.part    one that is being fetched, already as long as it will be
    FOLDER/.lock            held while files are counted, removed or renamed

Locks are flock's, so they end with the process that holds them, however it ends:
- on a part, exclusive: its fetcher is alive; a part that can be locked is a dead one's and goes;
- on an object, shared: somebody is using it, and it is not removed to make room.

The folder is meant for a local disk: every machine has its own.
"""

from __future__ import annotations

import errno
import fcntl
import hashlib
import logging
import os
import re
import threading
import time
from collections.abc import Callable, Collection, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

CACHE_FOLDER = "~/.cache/bytelm/shards"
"""Where shards of remote sets are kept by default."""
CACHE_GB = 100.0
"""Default limit of the cache, in 10^9 bytes."""
POLL_SECONDS = 0.05
ROOM_SECONDS = 60.0
"""How long to wait for other processes to release what they use."""
PART = ".part"
FOLDER_LOCK = ".lock"

_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,254}")
_SHA256 = re.compile(r"[0-9a-f]{64}")
_log = logging.getLogger(__name__)


class NoRoom(Exception):
    """Nothing can be removed now to make room for a fetch ahead of use."""


class Stopped(Exception):
    """The store was closed in the middle of a fetch."""


@dataclass(frozen=True)
class CacheConfig:
    """Where remote shards are kept. ValueError where the limit is not positive."""

    folder: Path
    limit_bytes: int
    """Of all objects in the folder, those being fetched included."""

    def __post_init__(self) -> None:
        if self.limit_bytes < 1:
            raise ValueError(f"the cache's limit is {self.limit_bytes} bytes: it must be positive")


@dataclass(frozen=True)
class Blob:
    """One object of a set, by name and content. ValueError for what is no plain file name, no
    SHA-256 in hex, or a negative size."""

    name: str
    size: int
    """In bytes."""
    sha256: str

    def __post_init__(self) -> None:
        check_name(self.name)
        if not _SHA256.fullmatch(self.sha256) or self.size < 0:
            raise ValueError(f"{self.name}: no size and SHA-256: {self.size}, {self.sha256!r}")


@dataclass
class Counts:
    """What a store did in this process."""

    fetched: int = 0
    fetched_bytes: int = 0
    retries: int = 0
    damaged: int = 0
    """Cached files that were not what their name says, and were fetched again."""
    evicted: int = 0


def check_name(name: str) -> None:
    """ValueError unless a name is a plain file name, which stays in its folder on any store."""
    if not _NAME.fullmatch(name):
        raise ValueError(f"{name!r} is no name of a shard: letters, digits, '.', '_' and '-' only")


class Cache:
    """One process's view of the folder. Its methods may be called by any thread of that process;
    after a fork the child calls `forget` and makes its own."""

    def __init__(self, config: CacheConfig, counts: Counts):
        self.folder = config.folder
        self.limit_bytes = config.limit_bytes
        self._counts = counts
        self._mutex = threading.Lock()
        self._pins: dict[str, tuple[int, int]] = {}  # of an object in use: descriptor, bytes
        self._verified: dict[str, int] = {}  # inode of an object that this process has hashed
        self._descriptors: set[int] = set()
        self.folder.mkdir(parents=True, exist_ok=True)

    def pin(self, blob: Blob) -> Path | None:
        """The verified file of a blob, kept until `release`; None where there is none. A file
        that is not what its name says is removed."""
        path = self.folder / blob.sha256
        with self._mutex:
            if blob.sha256 in self._pins:
                if _is_at(self._pins[blob.sha256][0], path):
                    return path
                self._unpin(blob.sha256)  # somebody emptied the folder
        descriptor = self._lock_object(path)
        if descriptor is None:
            return None
        if not self._is_whole(descriptor, blob):
            self._counts.damaged += 1
            _log.warning("cached file of %s is damaged: removed %s", blob.name, path)
            self._remove(descriptor, path)
            return None
        self._pin(blob, descriptor)
        return path

    def release(self, blob: Blob) -> None:
        """Allow a pinned blob to be removed; nothing happens where it is not pinned."""
        with self._mutex:
            self._unpin(blob.sha256)

    def release_all(self) -> None:
        """Release every pinned blob."""
        with self._mutex:
            for sha256 in list(self._pins):
                self._unpin(sha256)

    def forget(self) -> None:
        """In a forked child: drop the parent's descriptors, and leave the parent its locks."""
        for descriptor in self._descriptors:
            os.close(descriptor)
        self._descriptors.clear()
        self._pins.clear()

    def fill(
        self,
        blob: Blob,
        download: Callable[[BinaryIO], None],
        wished: Collection[str],
        ahead: bool,
        stop: threading.Event,
    ) -> None:
        """Have a blob fetched by `download`, which writes and checks it, unless another thread or
        process does so meanwhile. Fetched for use it is pinned, fetched `ahead` of use it is not.

        The least recently used objects make room; of this process's `wished` ones (by SHA-256)
        the last, and only for a fetch for use.

        Raises ValueError where the limit cannot hold the blob, or the blob and those in use;
        NoRoom where a fetch ahead of use would have to wait for room; Stopped after `stop`;
        OSError where the disk is full, and what `download` raises.
        """
        if self._touch(blob):
            return
        self._check_limit(blob, ahead)
        part = self.folder / (blob.sha256 + PART)
        descriptor = self._claim(blob, part, stop)
        if descriptor is None:
            return
        try:
            self._reserve(blob, descriptor, wished, ahead, stop)
            with open(descriptor, "wb", closefd=False) as file:
                download(file)
            os.fsync(descriptor)
        except BaseException as error:
            self._remove(descriptor, part)
            if isinstance(error, OSError) and error.errno == errno.ENOSPC:
                raise OSError(
                    f"the disk of the cache {self.folder} is full below the cache's limit of "
                    f"{self.limit_bytes:,} bytes: lower the limit, or make room"
                ) from error
            raise
        with self._locked_folder():
            part.rename(self.folder / blob.sha256)
            self._verified[blob.sha256] = os.fstat(descriptor).st_ino
            if ahead:
                self._close(descriptor)
            else:
                # Under the folder's lock, since this lets go of the lock for a moment.
                fcntl.flock(descriptor, fcntl.LOCK_SH)
                self._pin(blob, descriptor)
        self._counts.fetched += 1
        self._counts.fetched_bytes += blob.size

    def _touch(self, blob: Blob) -> bool:
        """Mark a blob as used just now; False where it is not in the folder."""
        try:
            os.utime(self.folder / blob.sha256)
        except FileNotFoundError:
            return False
        return True

    def _check_limit(self, blob: Blob, ahead: bool) -> None:
        over = blob.size - self.limit_bytes
        if over > 0:
            raise ValueError(
                f"{blob.name} has {blob.size:,} bytes, {over:,} more than the limit of the cache "
                f"{self.folder}: raise the limit"
            )
        with self._mutex:
            over += sum(size for _, size in self._pins.values())
        if over > 0 and ahead:
            raise NoRoom
        if over > 0:
            raise ValueError(
                f"the shards in use together with {blob.name} need {over:,} bytes more than the "
                f"limit of the cache {self.folder} ({self.limit_bytes:,}): raise the limit"
            )

    def _claim(self, blob: Blob, part: Path, stop: threading.Event) -> int | None:
        """A descriptor with the exclusive lock on the blob's empty part; None once the blob is in
        the folder."""
        path = self.folder / blob.sha256
        while not path.exists():
            descriptor = self._try_lock(part, os.O_RDWR | os.O_CREAT)
            if descriptor is None:
                _pause(POLL_SECONDS, stop)
            elif not _is_at(descriptor, part):  # its last owner has renamed or removed it
                self._close(descriptor)
            elif path.exists():
                self._remove(descriptor, part)
            else:
                os.ftruncate(descriptor, 0)  # a dead process may have left something
                return descriptor
        return None

    def _reserve(
        self,
        blob: Blob,
        descriptor: int,
        wished: Collection[str],
        ahead: bool,
        stop: threading.Event,
    ) -> None:
        """Give the part its full length, once the folder has room for it."""
        waited = 0.0
        while True:
            with self._locked_folder():
                missing, in_flight = self._make_room(blob.size, wished, ahead)
                if missing <= 0:
                    os.ftruncate(descriptor, blob.size)
                    return
            if ahead:
                raise NoRoom
            if waited > ROOM_SECONDS:
                raise ValueError(
                    f"no room for {blob.name}: the shards that all processes use at once need "
                    f"{missing:,} bytes more than the limit of the cache {self.folder} "
                    f"({self.limit_bytes:,}): raise the limit"
                )
            start = time.monotonic()
            _pause(POLL_SECONDS, stop)
            if not in_flight:  # what is being fetched can be removed once it is there
                waited += time.monotonic() - start

    def _make_room(self, size: int, wished: Collection[str], ahead: bool) -> tuple[int, bool]:
        """With the folder locked: remove what was used least recently until `size` bytes fit, or
        nothing where that is not enough. Returns the bytes that are missing, and whether others
        are fetching."""
        used, in_flight = 0, False
        objects: list[tuple[bool, int, int, Path]] = []  # wished, last used, bytes, path
        for entry in os.scandir(self.folder):
            name, path = entry.name.removesuffix(PART), Path(entry.path)
            if not _SHA256.fullmatch(name):
                continue
            try:
                status = entry.stat(follow_symlinks=False)
            except FileNotFoundError:  # somebody empties the folder by hand
                continue
            if name != entry.name and self._remove_dead(path):
                continue
            used += status.st_size
            if name == entry.name:
                objects.append((name in wished, status.st_mtime_ns, status.st_size, path))
            else:
                in_flight |= status.st_size > 0
        missing = used + size - self.limit_bytes
        chosen: list[tuple[int, Path]] = []
        for is_wished, _, freed, path in sorted(objects):
            if missing <= 0 or (is_wished and ahead):
                break
            descriptor = self._try_lock(path, os.O_RDONLY)
            if descriptor is not None:
                chosen.append((descriptor, path))
                missing -= freed
        for descriptor, path in chosen:
            if missing <= 0:
                path.unlink()
                self._counts.evicted += 1
            self._close(descriptor)
        return missing, in_flight

    def _remove_dead(self, part: Path) -> bool:
        """Remove a part that no living process is fetching."""
        descriptor = self._try_lock(part, os.O_RDWR)
        if descriptor is None:
            return False
        part.unlink()
        self._close(descriptor)
        return True

    def _remove(self, descriptor: int, path: Path) -> None:
        """Remove a file that is open and locked, unless another has its name by now."""
        with self._locked_folder():
            if _is_at(descriptor, path):
                path.unlink()
        self._close(descriptor)

    def _is_whole(self, descriptor: int, blob: Blob) -> bool:
        """Whether a cached file has the blob's size, and, asked once a process, its SHA-256."""
        status = os.fstat(descriptor)
        if status.st_size != blob.size:
            return False
        if self._verified.get(blob.sha256) == status.st_ino:
            return True
        with open(descriptor, "rb", closefd=False) as file:
            if hashlib.file_digest(file, "sha256").hexdigest() != blob.sha256:
                return False
        self._verified[blob.sha256] = status.st_ino
        return True

    def _pin(self, blob: Blob, descriptor: int) -> None:
        os.utime(descriptor)
        with self._mutex:
            self._unpin(blob.sha256)  # another thread may have been as quick
            self._pins[blob.sha256] = descriptor, blob.size

    def _unpin(self, sha256: str) -> None:
        if sha256 in self._pins:
            descriptor, _ = self._pins.pop(sha256)
            os.utime(descriptor)
            self._close(descriptor)

    def _lock_object(self, path: Path) -> int | None:
        """A descriptor with the shared lock on a cached file; None where there is no such file."""
        while True:
            try:
                descriptor = self._open(path, os.O_RDONLY)
            except FileNotFoundError:
                return None
            fcntl.flock(descriptor, fcntl.LOCK_SH)
            if _is_at(descriptor, path):
                return descriptor
            self._close(descriptor)  # removed between open and lock

    def _try_lock(self, path: Path, flags: int) -> int | None:
        """A descriptor with the exclusive lock; None where another holds a lock or no file is."""
        try:
            descriptor = self._open(path, flags)
        except FileNotFoundError:
            return None
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            self._close(descriptor)
            return None
        return descriptor

    @contextmanager
    def _locked_folder(self) -> Iterator[None]:
        descriptor = self._open(self.folder / FOLDER_LOCK, os.O_RDWR | os.O_CREAT)
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX)
            yield
        finally:
            self._close(descriptor)

    def _open(self, path: Path, flags: int) -> int:
        descriptor = os.open(path, flags, 0o666)
        self._descriptors.add(descriptor)
        return descriptor

    def _close(self, descriptor: int) -> None:
        # Unlocked by name: a forked child may hold a copy, which would keep the lock.
        fcntl.flock(descriptor, fcntl.LOCK_UN)
        self._descriptors.discard(descriptor)
        os.close(descriptor)


def _is_at(descriptor: int, path: Path) -> bool:
    """Whether an open file is the one that has this path now."""
    try:
        return os.path.samestat(os.fstat(descriptor), path.stat())
    except FileNotFoundError:
        return False


def _pause(seconds: float, stop: threading.Event) -> None:
    if stop.wait(seconds):
        raise Stopped

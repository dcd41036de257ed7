"""Where a shard set lies: a folder, or a remote store that is fetched whole, checked and cached.

Objects are addressed by plain names below one location. What a remote store delivers has the size
and the SHA-256 that the manifest says, or is an error that names it. Credentials, proxies and
endpoints come from each client's usual places, never from here.
"""

from __future__ import annotations

import hashlib
import itertools
import logging
import os
import random
import re
import threading
from abc import ABC, abstractmethod
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, BinaryIO, TypeVar
from urllib.parse import unquote, urlsplit

import aiohttp
import fsspec  # type: ignore[import-untyped]  # it has no types

from bytelm.pipelines.errors import DamageError
from bytelm.pipelines.storage.cache import (
    Blob,
    Cache,
    CacheConfig,
    Counts,
    NoRoom,
    Stopped,
    check_name,
)
from bytelm.pipelines.storage.files import replace_atomic

REMOTE = ("s3", "gs", "http", "https", "hf", "memory")
PACKAGES = {"s3": "s3fs", "gs": "gcsfs"}
"""Clients that are not among the dependencies."""

ATTEMPTS = 8
BACKOFF_SECONDS = 0.5
"""Before the second attempt; doubles with each further one, less up to half at random."""
MAX_BACKOFF_SECONDS = 30.0
TIMEOUT_SECONDS = 30.0
"""For a connection, and for each read in which nothing arrives."""
CHUNK_BYTES = 1 << 23
PREFETCH_THREADS = 2
ROOM_POLL_SECONDS = 1.0
CLOSE_SECONDS = 2.0

_SCHEME = re.compile(r"([A-Za-z][A-Za-z0-9+.-]+):")
_log = logging.getLogger(__name__)
T = TypeVar("T")


class Unavailable(Exception):
    """A failure that may pass: another attempt is worth while."""

    def __init__(self, reason: str, final: type[Exception] = OSError):
        super().__init__(reason)
        self.final = final
        """What it is when it did not pass."""


class Store(ABC):
    """Objects below one location."""

    location: str
    counts: Counts
    """What was fetched in this process."""

    @abstractmethod
    def read(self, name: str, max_bytes: int) -> bytes:
        """A small object, uncached and unchecked. ValueError above `max_bytes` or for what is no
        plain name; FileNotFoundError, PermissionError or OSError where it cannot be had."""

    @abstractmethod
    def path(self, blob: Blob) -> Path:
        """The local file of a whole object; waits until it is there. It stays until `release`.

        Raises DamageError where the object is not the one that the blob says, ValueError where
        the cache cannot hold it, FileNotFoundError, PermissionError or OSError where it cannot
        be had.
        """

    @abstractmethod
    def release(self, blob: Blob) -> None:
        """Say that the file of a blob is no longer needed. Once is enough, however often `path`
        was asked; files that are open stay readable."""

    @abstractmethod
    def prefetch(self, blobs: Sequence[Blob]) -> None:
        """Have these fetched in the background, in this order, instead of what was wished before.
        Returns at once. A failure shows when `path` is asked, which tries again."""

    @abstractmethod
    def close(self) -> None:
        """Stop the background work and release everything. The store is not used after it."""


def open_store(location: str | Path, cache: CacheConfig | None) -> Store:
    """The store at a path or URL. ValueError for a URL of another kind than the allowed ones, or
    a remote one without a cache or without its client package."""
    text = str(location)
    scheme = "" if isinstance(location, Path) else _scheme(text)
    if not scheme:
        return LocalStore(Path(location))
    if scheme == "file":
        return LocalStore(_path_of(text))
    if cache is None:
        raise ValueError(f"{text} is remote: give a cache folder and its limit in bytes")
    return RemoteStore(text, cache)


def _scheme(location: str) -> str:
    """The scheme of a location in lower case, empty for a path; ValueError unless it is allowed."""
    match = _SCHEME.match(location)
    if not match:
        return ""
    scheme = match[1].lower()
    allowed = ", ".join(f"{s}://" for s in ("file", *REMOTE))
    if scheme not in ("file", *REMOTE):
        raise ValueError(
            f"{location}: {scheme}: is not among the allowed {allowed}; a path that has a colon "
            f"can be written as ./{location}"
        )
    if "::" in location:
        raise ValueError(f"{location}: chained URLs are not allowed, only {allowed}")
    return scheme


def _path_of(url: str) -> Path:
    parts = urlsplit(url)
    if parts.netloc or not parts.path.startswith("/") or parts.query or parts.fragment:
        raise ValueError(f"{url} names no file of this machine: write file:///FOLDER or a path")
    return Path(unquote(parts.path))


class LocalStore(Store):
    """A folder: its own files, uncopied. Whoever reads them checks them."""

    def __init__(self, folder: Path):
        self.folder = folder
        self.location = str(folder)
        self.counts = Counts()

    def read(self, name: str, max_bytes: int) -> bytes:
        """See Store."""
        check_name(name)
        with open(self.folder / name, "rb") as file:
            data = file.read(max_bytes + 1)
        return _capped(data, max_bytes, str(self.folder / name))

    def path(self, blob: Blob) -> Path:
        """The file itself, which may be missing."""
        return self.folder / blob.name

    def release(self, blob: Blob) -> None:
        """Nothing to do."""

    def prefetch(self, blobs: Sequence[Blob]) -> None:
        """Nothing to do."""

    def close(self) -> None:
        """Nothing to do."""


class RemoteStore(Store):
    """A remote location behind a cache on disk.

    A store can be pickled and used after a fork: each process starts with nothing in use, no
    wishes and no threads, and shares only the folder of the cache.
    """

    def __init__(self, location: str, cache: CacheConfig):
        self._protocol = _scheme(location)
        parts = urlsplit(location)
        if not parts.netloc or not location.lower().startswith(f"{self._protocol}://"):
            raise ValueError(f"{location}: write {self._protocol}://PLACE/FOLDER")
        if "@" in parts.netloc or parts.query or parts.fragment:
            raise ValueError(
                f"{self._protocol}://{parts.netloc.rpartition('@')[2]}{parts.path}: a location "
                "has no credentials, '?' or '#'; the client finds credentials in its usual places"
            )
        try:
            fsspec.get_filesystem_class(self._protocol)
        except ImportError as error:
            package = PACKAGES.get(self._protocol, "fsspec")
            raise ValueError(
                f"{location} needs the package {package}: pip install {package} ({error})"
            ) from error
        self.location = location.rstrip("/")
        self._config = cache
        self._start()

    def _start(self) -> None:
        """State of this process."""
        self._process = os.getpid()
        self.counts = Counts()
        self._cache = Cache(self._config, self.counts)
        self._stop = threading.Event()
        self._threads: list[threading.Thread] = []
        self._changed = threading.Condition()
        self._wishes: deque[Blob] = deque()  # not fetched yet
        self._wished: set[str] = set()  # by SHA-256, and not used yet

    def _follow_fork(self) -> None:
        if self._process != os.getpid():
            self._cache.forget()
            self._start()

    def __getstate__(self) -> dict[str, Any]:
        return {"location": self.location, "_protocol": self._protocol, "_config": self._config}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state)
        self._start()

    def read(self, name: str, max_bytes: int) -> bytes:
        """See Store."""
        check_name(name)
        where = f"{self.location}/{name}"

        def attempt() -> bytes:
            data = bytearray()
            for chunk in self._chunks(name):
                data += chunk
                if len(data) > max_bytes:
                    break
            return _capped(bytes(data), max_bytes, where)

        return self._retry(where, attempt)

    def path(self, blob: Blob) -> Path:
        """See Store; another process may be fetching the object, which is then waited for."""
        self._follow_fork()
        while (path := self._cache.pin(blob)) is None:
            self._fill(blob, ahead=False)
        with self._changed:
            self._wished.discard(blob.sha256)
        return path

    def download(self, name: str, path: Path) -> None:
        """Fetch an object whose content nobody has stated, past the cache, to a file that is
        there whole or not at all. Raises FileNotFoundError, PermissionError or OSError."""
        check_name(name)

        def attempt(part: Path) -> None:
            with open(part, "wb") as file:
                for chunk in self._chunks(name):
                    file.write(chunk)

        where = f"{self.location}/{name}"
        replace_atomic(path, lambda part: self._retry(where, lambda: attempt(part)))

    def release(self, blob: Blob) -> None:
        """See Store."""
        self._follow_fork()
        self._cache.release(blob)
        with self._changed:
            self._changed.notify_all()

    def prefetch(self, blobs: Sequence[Blob]) -> None:
        """See Store. What is fetched ahead waits for room and never removes what is wished before
        it was used; what the cache cannot hold at all is left to `path`."""
        self._follow_fork()
        with self._changed:
            self._wishes = deque(blobs)
            self._wished = {blob.sha256 for blob in blobs}
            self._changed.notify_all()
        while blobs and len(self._threads) < PREFETCH_THREADS:
            thread = threading.Thread(target=self._fetch_wishes, name="prefetch", daemon=True)
            self._threads.append(thread)
            thread.start()

    def close(self) -> None:
        """See Store. A thread that waits for the network ends by itself after its time-out."""
        self._follow_fork()
        self._stop.set()
        with self._changed:
            self._changed.notify_all()
        for thread in self._threads:
            thread.join(CLOSE_SECONDS)
        self._cache.release_all()

    def _fetch_wishes(self) -> None:
        """The life of a background thread."""
        while not self._stop.is_set():
            with self._changed:
                if not self._wishes:
                    self._changed.wait()
                    continue
                wishes = self._wishes
                blob = wishes.popleft()
            try:
                self._fill(blob, ahead=True)
            except NoRoom:
                with self._changed:
                    wishes.appendleft(blob)
                    self._changed.wait(ROOM_POLL_SECONDS)
            except Stopped:
                return
            except (ValueError, OSError) as error:
                _log.info("not fetched ahead of use: %s", error)

    def _fill(self, blob: Blob, ahead: bool) -> None:
        with self._changed:
            wished = frozenset(self._wished)

        def download(file: BinaryIO) -> None:
            self._retry(f"{self.location}/{blob.name}", lambda: self._download(blob, file))

        self._cache.fill(blob, download, wished, ahead, self._stop)

    def _download(self, blob: Blob, file: BinaryIO) -> None:
        """Write a blob's bytes to a file, checked."""
        file.seek(0)
        digest, size = hashlib.sha256(), 0
        for chunk in self._chunks(blob.name):
            if self._stop.is_set():
                raise Stopped
            size += len(chunk)
            if size > blob.size:
                break  # never more than there is room for
            digest.update(chunk)
            file.write(chunk)
        if size < blob.size:
            raise Unavailable(f"only {size:,} of {blob.size:,} bytes came", DamageError)
        if size > blob.size or digest.hexdigest() != blob.sha256:
            raise DamageError(
                f"{self.location}/{blob.name} does not have the {blob.size:,} bytes and the "
                "SHA-256 that the manifest says: another set's shard, or a damaged one"
            )
        file.flush()

    def _chunks(self, name: str) -> Iterator[bytes]:
        """The bytes of an object. Raises Unavailable where another attempt may help."""
        where = f"{self.location}/{name}"
        try:
            with _open_remote(self._protocol, where) as file:
                while chunk := file.read(CHUNK_BYTES):
                    yield chunk
        except Exception as error:
            raise _failure(where, error) from error

    def _retry(self, where: str, action: Callable[[], T]) -> T:
        """What an action returns, which may raise Unavailable and has ATTEMPTS then, or
        DamageError and has two."""
        delay, damaged = BACKOFF_SECONDS, False
        for attempt in itertools.count(1):
            try:
                return action()
            except Unavailable as error:
                if attempt >= ATTEMPTS:
                    raise error.final(f"{where}: {error} ({attempt} attempts)") from error
                _log.warning("%s: %s; trying again", where, error)
            except DamageError as error:
                if damaged:
                    raise
                damaged = True
                _log.warning("%s; trying again", error)
            self.counts.retries += 1
            if self._stop.wait(delay * random.uniform(0.5, 1.0)):
                raise Stopped
            delay = min(2 * delay, MAX_BACKOFF_SECONDS)
        raise AssertionError("unreachable")


def _open_remote(protocol: str, where: str) -> Any:
    """A remote object as a file to be read from start to end. fsspec keeps one client for each
    process, thread and set of options. The clients' own retries are off where they can be: ours
    are the same for all of them."""
    wait = TIMEOUT_SECONDS
    timeout = aiohttp.ClientTimeout(total=None, sock_connect=wait, sock_read=wait)
    ranged = {"block_size": CHUNK_BYTES, "cache_type": "none"}
    if protocol == "s3":
        config = {"connect_timeout": wait, "read_timeout": wait, "retries": {"max_attempts": 0}}
        s3 = fsspec.filesystem("s3", config_kwargs=config, use_listings_cache=False)
        s3.retries = 1
        return s3.open(where, "rb", **ranged)
    if protocol == "gs":
        gs = fsspec.filesystem("gs", requests_timeout=timeout, use_listings_cache=False)
        return gs.open(where, "rb", **ranged)
    if protocol in ("http", "https"):
        # One plain GET: a block size of 0 means no ranges, and with a size, which a stream does
        # not look at, nothing is asked first.
        web = fsspec.filesystem(
            protocol,
            client_kwargs={"timeout": timeout, "trust_env": True},
            headers={"Accept-Encoding": "identity"},
        )
        return web.open(where, "rb", block_size=0, size=1)
    if protocol == "hf":
        return fsspec.filesystem("hf", use_listings_cache=False).open(where, "rb", block_size=0)
    return fsspec.filesystem(protocol).open(where, "rb")


def _failure(where: str, error: Exception) -> Exception:
    """What a client's error means: FileNotFoundError, PermissionError or OSError for good, or
    Unavailable."""
    status = _http_status(error)
    reason = " ".join(str(error).split())[:300] or type(error).__name__
    if isinstance(error, FileNotFoundError) or status == 404:
        return FileNotFoundError(f"{where} does not exist")
    # gcsfs gives a refusal no type of its own; without credentials boto and google each have one.
    refused = str(error).startswith("Forbidden") or "Credentials" in type(error).__name__
    if isinstance(error, PermissionError) or status in (401, 403) or refused:
        return PermissionError(f"{where}: access is refused ({reason}): check the credentials")
    if isinstance(error, ValueError | TypeError | ImportError):
        return OSError(f"{where} cannot be read: {reason}")
    if status is not None and 400 <= status < 500 and status not in (408, 425, 429):
        return OSError(f"{where} cannot be read: status {status}, {reason}")
    return Unavailable(reason)


def _http_status(error: Exception) -> int | None:
    """The status of the response that an error stands for."""
    for name in ("status", "code"):  # aiohttp, gcsfs
        if isinstance(getattr(error, name, None), int):
            return getattr(error, name)
    response = getattr(error, "response", getattr(error.__cause__, "response", None))
    if isinstance(response, dict):  # boto, under an OSError of s3fs
        return response.get("ResponseMetadata", {}).get("HTTPStatusCode")
    return getattr(response, "status_code", None)  # huggingface_hub


def _capped(data: bytes, max_bytes: int, where: str) -> bytes:
    if len(data) > max_bytes:
        raise ValueError(f"{where} has more than {max_bytes:,} bytes")
    return data

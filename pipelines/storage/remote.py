"""Remote stores, whose blobs are fetched whole, verified and cached; and `open_store`.

`open_store` turns the path or URL of a shard set into a store. A remote store delivers a blob with
the size and SHA-256 that the manifest names, or raises an error that names the object.
"""

from __future__ import annotations

import hashlib
import os
import re
import threading
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, BinaryIO, TypeVar
from urllib.parse import unquote, urlsplit

from bytelm.pipelines.errors import DamageError
from bytelm.pipelines.storage import clients
from bytelm.pipelines.storage.blob import Blob, check_name
from bytelm.pipelines.storage.cache import Cache, CacheConfig, StoreClosedError, StoreStats
from bytelm.pipelines.storage.clients import TransientError, check_client, read_chunks
from bytelm.pipelines.storage.files import replace_atomic
from bytelm.pipelines.storage.prefetch import Prefetcher
from bytelm.pipelines.storage.retries import retry
from bytelm.pipelines.storage.store import LocalStore, Store, check_capped

REMOTE_SCHEMES = ("s3", "gs", "az", "http", "https", "hf", "memory")

_SCHEME = re.compile(r"([A-Za-z][A-Za-z0-9+.-]+):")
T = TypeVar("T")


def find_objects(pattern: str) -> list[str]:
    """The URLs of the remote objects that match a pattern with `*`, sorted.

    Raises ValueError for a URL that is not allowed, and OSError where its store lists nothing.
    """
    protocol = remote_scheme(pattern)
    check_client(protocol, pattern)
    return clients.find_objects(protocol, pattern)


def is_remote(location: str) -> bool:
    """Return whether a location is a URL whose objects are fetched.

    Raises ValueError for a URL whose scheme is not allowed.
    """
    return scheme_of(location) in REMOTE_SCHEMES


def open_store(location: str | Path, cache: CacheConfig | None) -> Store:
    """The store at a path or URL.

    Raises ValueError for a URL whose scheme is not allowed, and for a remote one without a cache
    or without its client's package.
    """
    text = str(location)
    scheme = "" if isinstance(location, Path) else scheme_of(text)
    if not scheme:
        return LocalStore(Path(location))
    if scheme == "file":
        return LocalStore(local_path(text))
    if cache is None:
        raise ValueError(f"{text} is remote: give a cache folder and its limit in bytes")
    return RemoteStore(text, cache)


def read_capped(protocol: str, url: str, max_bytes: int) -> bytes:
    """The bytes of a remote object; ValueError above `max_bytes`, and else as `read_chunks`."""
    data = bytearray()
    for chunk in read_chunks(protocol, url):
        data += chunk
        if len(data) > max_bytes:
            break
    return check_capped(bytes(data), max_bytes, url)


class RemoteStore(Store):
    """A remote location behind a cache on disk.

    A store can be pickled, and used after a fork: each process starts without blobs in use, without
    a queue and without threads, and shares only the folder of the cache.
    """

    def __init__(self, location: str, cache: CacheConfig):
        self._protocol = remote_scheme(location)
        check_client(self._protocol, location)
        self.location = location.rstrip("/")
        self._config = cache
        self._start()

    def read(self, name: str, max_bytes: int) -> bytes:
        """See Store."""
        check_name(name)
        url = self._url(name)

        return self._retry(url, lambda: read_capped(self._protocol, url, max_bytes))

    def path(self, blob: Blob) -> Path:
        """See Store. A fetch by another process is waited for."""
        self._follow_fork()
        while (path := self._cache.pin(blob)) is None:
            self._fetch(blob, is_prefetch=False)
        self._prefetcher.mark_used(blob)
        return path

    def release(self, blob: Blob) -> None:
        """See Store."""
        self._follow_fork()
        self._cache.release(blob)
        self._prefetcher.room_changed()

    def prefetch(self, blobs: Sequence[Blob]) -> None:
        """See Store. A prefetch waits for room, and never evicts a blob of an earlier request that
        was not used yet. A blob that the cache cannot hold at all is left to `path`."""
        self._follow_fork()
        self._prefetcher.request(blobs)

    def download(self, name: str, path: Path) -> None:
        """Fetch an object of unknown content to a file, past the cache and atomically.

        Raises FileNotFoundError, PermissionError or OSError where it cannot be had.
        """
        check_name(name)
        url = self._url(name)

        def attempt(part: Path) -> None:
            with open(part, "wb") as file:
                for chunk in read_chunks(self._protocol, url):
                    file.write(chunk)

        replace_atomic(path, lambda part: self._retry(url, lambda: attempt(part)))

    def close(self) -> None:
        """See Store."""
        self._follow_fork()
        self._stop.set()
        self._prefetcher.join()
        self._cache.release_all()

    def __getstate__(self) -> dict[str, Any]:
        return {"location": self.location, "_protocol": self._protocol, "_config": self._config}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state)
        self._start()

    def _start(self) -> None:
        """Set up what belongs to this process."""
        self._process = os.getpid()
        self._stop = threading.Event()
        self.stats = StoreStats()
        self._cache = Cache(self._config, self.stats, self._stop)
        self._prefetcher = Prefetcher(lambda blob: self._fetch(blob, is_prefetch=True), self._stop)

    def _follow_fork(self) -> None:
        if self._process != os.getpid():
            self._cache.forget()
            self._start()

    def _url(self, name: str) -> str:
        return f"{self.location}/{name}"

    def _fetch(self, blob: Blob, is_prefetch: bool) -> None:
        """Have a blob in the cache."""

        def download(file: BinaryIO) -> None:
            self._retry(self._url(blob.name), lambda: self._download_blob(blob, file))

        self._cache.fill(blob, download, self._prefetcher.upcoming(), is_prefetch)

    def _download_blob(self, blob: Blob, file: BinaryIO) -> None:
        """Write a blob's bytes to a file, and check them."""
        file.seek(0)
        url = self._url(blob.name)
        digest, size = hashlib.sha256(), 0
        for chunk in read_chunks(self._protocol, url):
            if self._stop.is_set():
                raise StoreClosedError
            size += len(chunk)
            if size > blob.size:
                break  # the cache has reserved no more room
            digest.update(chunk)
            file.write(chunk)
        if size < blob.size:
            raise TransientError(f"only {size:,} of {blob.size:,} bytes came", DamageError)
        if size > blob.size or digest.hexdigest() != blob.sha256:
            raise DamageError(
                f"{url} does not have the {blob.size:,} bytes and the SHA-256 that the manifest "
                "names: another set's shard, or a damaged one"
            )
        file.flush()

    def _retry(self, url: str, action: Callable[[], T]) -> T:
        """Return what `action` returns, after as many attempts as `retry` allows."""
        return retry(url, action, self._stop, self._count_retry)

    def _count_retry(self) -> None:
        self.stats.retries += 1


def folder_of(location: str) -> Path:
    """The folder at a path or file:// URL."""
    return local_path(location) if scheme_of(location) == "file" else Path(location)


def scheme_of(location: str) -> str:
    """The scheme of a location in lower case, empty for a path; ValueError unless it is allowed."""
    match = _SCHEME.match(location)
    if not match:
        return ""
    scheme = match[1].lower()
    allowed = ", ".join(f"{s}://" for s in ("file", *REMOTE_SCHEMES))
    if scheme not in ("file", *REMOTE_SCHEMES):
        raise ValueError(
            f"{location}: {scheme}: is not among the allowed {allowed}; a path with a colon can be "
            f"written as ./{location}"
        )
    if "::" in location:
        raise ValueError(f"{location}: chained URLs are not allowed, only {allowed}")
    return scheme


def remote_scheme(location: str) -> str:
    """The scheme of a remote location; ValueError where the location is not SCHEME://PLACE/FOLDER
    or holds more than that."""
    scheme = scheme_of(location)
    parts = urlsplit(location)
    if not parts.netloc or not location.lower().startswith(f"{scheme}://"):
        raise ValueError(f"{location}: write {scheme}://PLACE/FOLDER")
    if "@" in parts.netloc or parts.query or parts.fragment:
        raise ValueError(
            f"{scheme}://{parts.netloc.rpartition('@')[2]}{parts.path}: a location has no "
            "credentials, '?' or '#'; the client finds credentials in its usual places"
        )
    return scheme


def local_path(url: str) -> Path:
    """The path of a file:// URL."""
    parts = urlsplit(url)
    if parts.netloc or not parts.path.startswith("/") or parts.query or parts.fragment:
        raise ValueError(f"{url} names no file of this machine: write file:///FOLDER or a path")
    return Path(unquote(parts.path))

"""Places where sets and checkpoints are written: a local folder, or a folder of an object store.

    with open_destination("s3://bucket/runs/first") as destination:
        destination.upload(Path("scratch/train-000000.tar"), "train-000000.tar")
        destination.create_last("manifest.json", data)

An object becomes visible whole or not at all, and `upload` returns once the store has confirmed
its size, and its hash where it tells one. So a reader that finds the object of `create_last` finds
all that was uploaded before it.
"""

from __future__ import annotations

import base64
import hashlib
import os
import re
import shutil
import threading
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable
from functools import partial
from pathlib import Path
from typing import Any, TypeVar

from bytelm.pipelines.storage.clients import TransientError, Writer, check_client, read_chunks
from bytelm.pipelines.storage.files import replace_atomic, write_atomic
from bytelm.pipelines.storage.remote import local_path, read_capped, remote_scheme, scheme_of
from bytelm.pipelines.storage.retries import retry
from bytelm.pipelines.storage.store import check_capped

WRITABLE_SCHEMES = ("s3", "gs", "az", "hf", "memory")

_PART = re.compile(r"[A-Za-z0-9._-]{1,255}")
T = TypeVar("T")


class Destination(ABC):
    """Objects of one location, by names such as `train-000000.tar` or `step-10/model.bin`.

    Its methods may be called by any thread. All raise ValueError for other names, and
    FileNotFoundError, PermissionError or OSError, after bounded retries, where the store fails;
    StoreClosedError after `close`.
    """

    location: str
    """Path or URL, without a slash at the end."""

    @abstractmethod
    def upload(self, path: Path, name: str) -> None:
        """Write a local file of any size to an object, in place of one of that name."""

    @abstractmethod
    def write(self, name: str, data: bytes) -> None:
        """Write a small object, in place of one of that name."""

    @abstractmethod
    def create_last(self, name: str, data: bytes) -> None:
        """Create the small object that makes all others count.

        Raises FileExistsError where it exists: of two writers at once, one alone succeeds. The
        Hugging Face hub has no such condition: there it is a check before the creation.
        """

    @abstractmethod
    def read(self, name: str, max_bytes: int) -> bytes:
        """Read a small object. Raises FileNotFoundError where it is missing, and ValueError above
        `max_bytes`."""

    @abstractmethod
    def download(self, name: str, path: Path) -> None:
        """Fetch an object to a local file, atomically."""

    @abstractmethod
    def list(self, folder: str = "") -> dict[str, int]:
        """Sizes in bytes of all objects in a folder and below, by name; empty where there are
        none."""

    @abstractmethod
    def delete(self, names: Iterable[str]) -> None:
        """Delete objects in this order; those that are missing are as good as deleted."""

    @abstractmethod
    def abort_uploads(self) -> None:
        """Abort what unfinished uploads of dead writers keep in the store. Only the one writer of
        a location calls it: it aborts those of live ones too."""

    @abstractmethod
    def close(self) -> None:
        """End what other threads wait for in this destination, within a second. It is not used
        afterwards."""

    def __enter__(self) -> Destination:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def open_destination(location: str | Path) -> Destination:
    """The destination at a path or URL (file, s3, gs, az, hf; memory in tests). Nothing is created
    or asked yet.

    Raises ValueError for a URL to which nothing can be written, and where its client's package is
    missing.
    """
    text = str(location)
    scheme = "" if isinstance(location, Path) else scheme_of(text)
    if not scheme:
        return LocalDestination(Path(location))
    if scheme == "file":
        return LocalDestination(local_path(text))
    return RemoteDestination(text)


class LocalDestination(Destination):
    """A folder, created with the first object."""

    def __init__(self, folder: Path):
        self.folder = folder
        self.location = str(folder)

    def upload(self, path: Path, name: str) -> None:
        """See Destination."""
        replace_atomic(self._target(name), lambda temporary: shutil.copyfile(path, temporary))

    def write(self, name: str, data: bytes) -> None:
        """See Destination."""
        write_atomic(self._target(name), data)

    def create_last(self, name: str, data: bytes) -> None:
        """See Destination. A link fails where the name is taken, on network file systems too."""
        target = self._target(name)
        temporary = target.with_name(f"{target.name}.{os.getpid()}.new")
        write_atomic(temporary, data)
        try:
            os.link(temporary, target)
        except FileExistsError as error:
            raise FileExistsError(f"{target} exists already") from error
        finally:
            temporary.unlink()

    def read(self, name: str, max_bytes: int) -> bytes:
        """See Destination."""
        path = self._path(name)
        with open(path, "rb") as file:
            return check_capped(file.read(max_bytes + 1), max_bytes, str(path))

    def download(self, name: str, path: Path) -> None:
        """See Destination."""
        source = self._path(name)
        replace_atomic(path, lambda temporary: shutil.copyfile(source, temporary))

    def list(self, folder: str = "") -> dict[str, int]:
        """See Destination."""
        top = self._path(folder) if folder else self.folder
        files = [path for path in top.rglob("*") if path.is_file()]
        return {p.relative_to(self.folder).as_posix(): p.stat().st_size for p in sorted(files)}

    def delete(self, names: Iterable[str]) -> None:
        """See Destination."""
        for name in names:
            self._path(name).unlink(missing_ok=True)

    def abort_uploads(self) -> None:
        """Do nothing: a dead writer leaves a temporary file, which the next one replaces."""

    def close(self) -> None:
        """Do nothing."""

    def _path(self, name: str) -> Path:
        check_object_name(name)
        return self.folder / name

    def _target(self, name: str) -> Path:
        path = self._path(name)
        path.parent.mkdir(parents=True, exist_ok=True)
        return path


class RemoteDestination(Destination):
    """A folder of an object store."""

    def __init__(self, location: str):
        self._protocol = remote_scheme(location)
        if self._protocol not in WRITABLE_SCHEMES:
            places = ", ".join(f"{scheme}://" for scheme in ("file", *WRITABLE_SCHEMES[:-1]))
            raise ValueError(f"nothing can be written to {location}: use a path or {places}")
        check_client(self._protocol, location)
        self.location = location.rstrip("/")
        self._stop = threading.Event()
        self._writer = Writer(self._protocol, self._stop)

    def upload(self, path: Path, name: str) -> None:
        """See Destination."""
        url = self._url(name)

        def attempt() -> None:
            self._writer.put_file(path, url)
            check_stored(self._writer.info(url), path, url)

        self._retry(url, attempt)

    def write(self, name: str, data: bytes) -> None:
        """See Destination."""
        url = self._url(name)
        self._retry(url, lambda: self._writer.put_bytes(data, url))

    def create_last(self, name: str, data: bytes) -> None:
        """See Destination. An attempt whose answer was lost may have created the object: if so,
        the next attempt finds its bytes there."""
        url, failures = self._url(name), 0

        def attempt() -> None:
            self._writer.put_bytes(data, url, only_new=True)

        def count_failure() -> None:
            nonlocal failures
            failures += 1

        try:
            retry(url, attempt, self._stop, count_failure)
        except FileExistsError:
            if not failures or self.read(name, len(data) + 1) != data:
                raise

    def read(self, name: str, max_bytes: int) -> bytes:
        """See Destination."""
        url = self._url(name)

        return self._retry(url, lambda: read_capped(self._protocol, url, max_bytes))

    def download(self, name: str, path: Path) -> None:
        """See Destination."""
        url = self._url(name)

        def attempt(part: Path) -> None:
            with open(part, "wb") as file:
                for chunk in read_chunks(self._protocol, url):
                    file.write(chunk)

        replace_atomic(path, lambda part: self._retry(url, lambda: attempt(part)))

    def list(self, folder: str = "") -> dict[str, int]:
        """See Destination."""
        url = self._url(folder) if folder else self.location
        found = self._retry(url, lambda: self._writer.find(url))
        prefix = f"{folder}/" if folder else ""
        return {prefix + name: size for name, size in sorted(found.items())}

    def delete(self, names: Iterable[str]) -> None:
        """See Destination."""
        for url in map(self._url, names):
            self._retry(url, partial(self._writer.delete, url))

    def abort_uploads(self) -> None:
        """See Destination."""
        self._retry(self.location, lambda: self._writer.abort_uploads(self.location))

    def close(self) -> None:
        """See Destination."""
        self._stop.set()

    def _url(self, name: str) -> str:
        check_object_name(name)
        return f"{self.location}/{name}"

    def _retry(self, url: str, action: Callable[[], T]) -> T:
        return retry(url, action, self._stop)


def check_object_name(name: str) -> None:
    """Raise ValueError unless a name is made of plain file names with slashes between them."""
    parts = name.split("/")
    if not all(_PART.fullmatch(part) and part.strip(".") for part in parts):
        raise ValueError(f"{name!r} is no name of an object: letters, digits, '.', '_', '-' and /")


def check_stored(info: dict[str, Any], path: Path, url: str) -> None:
    """Raise TransientError where an object is not the file that was uploaded.

    Args:
        info: the store's description of the object. S3 checks a CRC of each part as it arrives;
            gs tells the MD5 in base64, and the Hugging Face hub the SHA-256 of large files.
        path: the file.
        url: names the object.
    """
    if info["size"] != path.stat().st_size:
        raise TransientError(f"{info['size']:,} bytes arrived of {path.stat().st_size:,}")
    stored = {
        "md5": base64.b64decode(info.get("md5Hash") or "").hex(),
        "sha256": (info.get("lfs") or {}).get("sha256", ""),
    }
    for algorithm, expected in stored.items():
        if not expected:
            continue
        with open(path, "rb") as file:
            if hashlib.file_digest(file, algorithm).hexdigest() != expected:
                raise TransientError(f"{url} arrived with another {algorithm.upper()}")

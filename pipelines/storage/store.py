"""The interface of a store of blobs, and its local case, a folder.

`remote.py` has the remote case and `open_store`. Shard sets read through this interface.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from pathlib import Path

from bytelm.pipelines.storage.blob import Blob, check_name
from bytelm.pipelines.storage.cache import StoreStats


class Store(ABC):
    """Objects at one location, by plain names."""

    location: str
    stats: StoreStats
    """Counts of what this process fetched."""

    @abstractmethod
    def read(self, name: str, max_bytes: int) -> bytes:
        """Read a small object, which is neither cached nor checked.

        Raises:
            ValueError: above `max_bytes`, or where `name` is no plain name.
            FileNotFoundError, PermissionError, OSError: where the object cannot be had.
        """

    @abstractmethod
    def path(self, blob: Blob) -> Path:
        """Wait until a whole blob is on the local disk, and return its file, which stays there
        until `release`.

        Raises:
            DamageError: where the stored bytes are not those of the blob.
            ValueError: where the cache cannot hold it.
            FileNotFoundError, PermissionError, OSError: where it cannot be had.
        """

    @abstractmethod
    def release(self, blob: Blob) -> None:
        """Give up the file of a blob. One call undoes any number of calls of `path`; files that
        are open stay readable."""

    @abstractmethod
    def prefetch(self, blobs: Sequence[Blob]) -> None:
        """Fetch blobs in the background, in this order, in place of those queued before.

        Returns at once. A failure shows when `path` is called, which tries again.
        """

    @abstractmethod
    def close(self) -> None:
        """Stop the background work and release every blob. The store is not used afterwards."""


class LocalStore(Store):
    """A folder, whose files are used in place. The reader checks them."""

    def __init__(self, folder: Path):
        self.folder = folder
        self.location = str(folder)
        self.stats = StoreStats()

    def read(self, name: str, max_bytes: int) -> bytes:
        """See Store."""
        check_name(name)
        with open(self.folder / name, "rb") as file:
            data = file.read(max_bytes + 1)
        return check_capped(data, max_bytes, str(self.folder / name))

    def path(self, blob: Blob) -> Path:
        """The file itself, which may be missing."""
        return self.folder / blob.name

    def release(self, blob: Blob) -> None:
        """Do nothing."""

    def prefetch(self, blobs: Sequence[Blob]) -> None:
        """Do nothing."""

    def close(self) -> None:
        """Do nothing."""


def check_capped(data: bytes, max_bytes: int, where: str) -> bytes:
    """Return `data`; ValueError where it is longer than `max_bytes`."""
    if len(data) > max_bytes:
        raise ValueError(f"{where} has more than {max_bytes:,} bytes")
    return data

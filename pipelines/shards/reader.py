"""Reading a shard set: its manifest, its indexes, and members checked as they are read.

`open_set` is the entry. The plan of a run reads indexes, loader workers read members.
"""

from __future__ import annotations

import hashlib
import os
from collections import OrderedDict
from collections.abc import Iterator, Sequence
from pathlib import Path
from tarfile import BLOCKSIZE
from typing import Any

import numpy as np

from bytelm.modalities import BY_CODE
from bytelm.modalities.base import Header, Sample
from bytelm.pipelines.errors import DamageError
from bytelm.pipelines.shards.format import (
    CRC_CHUNK,
    DEEP,
    MAX_MANIFEST_BYTES,
    OWN_FILE,
    SET_MANIFEST,
    SPLITS,
    Checksums,
    Index,
    Shard,
    chunk_checksums,
    parse_index,
)
from bytelm.pipelines.shards.manifest import (
    Manifest,
    PartReader,
    ShardList,
    SplitCounts,
    parse_manifest,
)
from bytelm.pipelines.storage.blob import Blob
from bytelm.pipelines.storage.cache import CACHE_FOLDER, CACHE_GB, CacheConfig, cache_limit
from bytelm.pipelines.storage.lru import LruCache
from bytelm.pipelines.storage.remote import is_remote, open_store
from bytelm.pipelines.storage.store import LocalStore

INDEX_CACHE_BYTES = 1 << 27
MAX_OPEN_FILES = 64


def open_set(
    location: str,
    cache_folder: str = CACHE_FOLDER,
    cache_gb: float = CACHE_GB,
) -> ShardSet:
    """The shard set at a path or URL.

    Args:
        location: a folder, or the URL of one.
        cache_folder: keeps the shards of a remote set.
        cache_gb: limit of that folder, in 10^9 bytes; infinite for none.
    Raises:
        ValueError: where there is no complete set of this format version, and for a remote set
            whose cache folder is in a home folder that does not exist.
        DamageError: where the manifest is damaged.
    """
    if not is_remote(location):
        return ShardSet(location)
    try:
        folder = Path(cache_folder).expanduser()
    except RuntimeError as error:
        raise ValueError(
            f"{location} is remote, and there is no home folder for its cache: set "
            "data.cache_folder, or HOME"
        ) from error
    return ShardSet(location, CacheConfig(folder, cache_limit(cache_gb)))


class ShardSet:
    """A set at a path or URL: its manifest, its indexes, and checked reads of its members.

    Raises ValueError where there is no complete set of this format version, and DamageError where
    bytes do not match the index or the manifest.
    """

    def __init__(self, location: str | Path, cache: CacheConfig | None = None):
        """`cache` keeps the shards of a remote set; a local one needs none."""
        self.store = open_store(location, cache)
        self.location = str(location)
        manifest = self._load_manifest()
        self.shards: Sequence[Shard]
        """All shards, in the manifest's order; their entries are loaded when they are used."""
        if manifest.shards is None:
            parts = PartReader(self.store, self.location, manifest.parts)
            self.shards = ShardList(parts, range(sum(part.shards for part in manifest.parts)))
        else:
            self.shards = manifest.shards
        self._counts = manifest.splits
        self.root = manifest.root
        self.report = manifest.report
        self._start()

    def _start(self) -> None:
        """Set up what belongs to this process: open files and cached indexes."""
        self._files: OrderedDict[str, tuple[int, Blob]] = OrderedDict()  # by shard, oldest first
        self._indexes = LruCache[str, tuple[Index, Checksums]](INDEX_CACHE_BYTES)
        # In a list, so that a reader can replace it by a larger one: views of it may live on.
        self._scratch = [bytearray()]

    def _load_manifest(self) -> Manifest:
        where = f"{self.location}/{SET_MANIFEST}"
        try:
            data = self.store.read(SET_MANIFEST, MAX_MANIFEST_BYTES)
        except FileNotFoundError as error:
            if not self.is_remote and Path(self.location).is_dir():
                raise ValueError(
                    f"{self.location} holds no {SET_MANIFEST}: it is no shard set, or `bytelm "
                    "prepare` was interrupted; run it again"
                ) from error
            raise ValueError(
                f"no shard set at {self._absolute_location()}, which lacks {SET_MANIFEST}: make "
                "one with `bytelm prepare`"
            ) from error
        except OSError as error:
            raise ValueError(f"{where} cannot be read: {error}") from error
        return parse_manifest(data, where)

    def _absolute_location(self) -> str:
        """The location; a relative path with what it is relative to."""
        if self.is_remote or Path(self.location).is_absolute():
            return self.location
        return f"{self.location} ({Path(self.location).absolute()})"

    @property
    def is_remote(self) -> bool:
        """Whether shards are fetched before they are read."""
        return not isinstance(self.store, LocalStore)

    def split(self, name: str) -> Sequence[Shard]:
        """The shards of one split, in the manifest's order."""
        if not isinstance(self.shards, ShardList):
            return [s for s in self.shards if s.split == name]
        first = sum(self._counts[other].shards for other in SPLITS[: SPLITS.index(name)])
        return self.shards[first : first + self._counts[name].shards]

    def counts(self, split: str) -> SplitCounts:
        """Shards, documents and bytes of one split."""
        if isinstance(self.shards, ShardList):
            return self._counts[split]
        return SplitCounts.of(self.split(split))

    def filled_shards(self, split: str) -> Sequence[Shard]:
        """The shards of one split that have documents, which in format 3 are all."""
        shards = self.split(split)
        return shards if isinstance(shards, ShardList) else [s for s in shards if s.documents]

    def index(self, shard: Shard) -> Index:
        """[segments] the shard's index (dtype INDEX_DTYPE), checked against the manifest."""
        return self._index(shard)[0]

    def checksums(self, shard: Shard) -> Checksums:
        """[chunks] CRC-32 of every chunk of every member, at `first_crc` of the index's rows."""
        return self._index(shard)[1]

    def reader(self, shard: Shard) -> MemberReader:
        """Checked reads from one shard. The reader is valid until the set opens another shard."""
        where = f"{self.location}/{shard.name}"
        return MemberReader(self._open(shard), self._index(shard)[1], where, self._scratch)

    def read(self, shard: Shard, row: np.void, start: int = 0, stop: int | None = None) -> bytes:
        """Bytes [start, stop) of the member of an index row, to its end by default.

        Raises DamageError where they do not match their checksums.
        """
        offset, size, first_crc = int(row["offset"]), int(row["size"]), int(row["first_crc"])
        stop = size if stop is None else stop
        return bytes(self.reader(shard).view(offset, size, first_crc, start, stop))

    def sample(self, shard: Shard, row: np.void, start: int = 0, stop: int | None = None) -> Sample:
        """The sample of an index row's segment, or its bytes [start, stop)."""
        return Sample(
            modality=BY_CODE[row["modality"]].name,
            header=header_of(row),
            data=self.read(shard, row, start, stop),
            is_file=bool(row["is_file"] == OWN_FILE),
            is_deep=bool(row["is_file"] == DEEP),
        )

    def key(self, shard: Shard, row: np.void) -> str:
        """The key of an index row's document, from the tar header before the member."""
        return self.reader(shard).key(int(row["offset"]))

    def prefetch(self, shards: Sequence[Shard]) -> None:
        """Fetch these shards of a remote set ahead of use, in this order, and close all others."""
        wanted = {shard.name for shard in shards}
        for name in [n for n in self._files if n not in wanted]:
            self._close(name)
        self.store.prefetch([shard.tar_blob for shard in shards])

    def prefetch_indexes(self, shards: Sequence[Shard]) -> None:
        """Fetch the indexes of these shards of a remote set ahead of use."""
        self.store.prefetch([shard.index_blob for shard in shards])

    def one_by_one(self, shards: Sequence[Shard]) -> Iterator[Shard]:
        """Shards for a single pass: the next one of a remote set is fetched while one is in use,
        and each is closed after its turn."""
        for number, shard in enumerate(shards):
            self.prefetch(shards[number : number + 2])
            yield shard
        self.prefetch([])

    def check_sizes(self, shards: Sequence[Shard]) -> None:
        """Raise DamageError that names every one of these shards of a local set whose size is not
        the manifest's."""
        if self.is_remote:
            return
        wrong = []
        for shard in shards:
            path = self.store.path(shard.tar_blob)
            size = path.stat().st_size if path.is_file() else None
            if size != shard.size:
                state = "is missing" if size is None else f"has {size} bytes"
                wrong.append(f"shard {path} {state} where the manifest says {shard.size}")
        if wrong:
            raise DamageError("; ".join(wrong))

    def verify(self, shard: Shard) -> None:
        """Read a whole shard and its index; DamageError where a size, hash or checksum differs."""
        index = self.index(shard)
        where = f"{self.location}/{shard.name}"
        with open(self._open(shard), "rb", closefd=False) as file:
            file.seek(0)
            size = os.fstat(file.fileno()).st_size
            if size != shard.size:
                raise DamageError(
                    f"shard {where} has {size} bytes where the manifest says {shard.size}"
                )
            if hashlib.file_digest(file, "sha256").hexdigest() != shard.sha256:
                for row in index:
                    self.read(shard, row)
                raise DamageError(
                    f"{where} does not match its SHA-256, though every document's payload does: "
                    "a tar header or a description is damaged"
                )

    def __getstate__(self) -> dict[str, Any]:
        """Open files and cached indexes stay with the process that has them."""
        own = ("_files", "_indexes", "_scratch")
        return {name: value for name, value in self.__dict__.items() if name not in own}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state)
        self._start()

    def _index(self, shard: Shard) -> tuple[Index, Checksums]:
        index = self._indexes.get(shard.name)
        if index is None:
            data = self._read_index(shard)
            index = parse_index(data)
            self._indexes.put(shard.name, index, len(data))
        return index

    def _read_index(self, shard: Shard) -> bytes:
        where = f"index {self.location}/{shard.index_name}"
        try:
            data = self.store.path(shard.index_blob).read_bytes()
        except OSError as error:
            raise DamageError(f"{where} cannot be read: {error}") from error
        self.store.release(shard.index_blob)
        if hashlib.sha256(data).hexdigest() != shard.index_sha256:
            raise DamageError(f"{where} is not the one that the manifest names")
        return data

    def _open(self, shard: Shard) -> int:
        """The descriptor of a shard's tar. The least recently used one of too many is closed."""
        if shard.name in self._files:
            self._files.move_to_end(shard.name)
            return self._files[shard.name][0]
        try:
            descriptor = os.open(self.store.path(shard.tar_blob), os.O_RDONLY)
        except OSError as error:
            where = f"{self.location}/{shard.name}"
            raise DamageError(f"shard {where} cannot be opened: {error}") from error
        self._files[shard.name] = descriptor, shard.tar_blob
        if len(self._files) > MAX_OPEN_FILES:
            self._close(next(iter(self._files)))
        return descriptor

    def _close(self, name: str) -> None:
        descriptor, blob = self._files.pop(name)
        os.close(descriptor)
        self.store.release(blob)


class MemberReader:
    """Checked reads from one open shard, into a buffer that every read uses again."""

    def __init__(self, descriptor: int, checksums: Checksums, where: str, scratch: list[bytearray]):
        self._descriptor = descriptor
        self._checksums = checksums
        self._where = where
        self._scratch = scratch

    def view(self, offset: int, size: int, first_crc: int, start: int, stop: int) -> memoryview:
        """Bytes [start, stop) of a member, valid until the next read.

        Whole chunks are read and checked.

        Args:
            offset: position of the member's first byte in the tar.
            size: bytes of the member.
            first_crc: position of its first checksum.
            start, stop: the bytes wanted, within the member.
        Raises:
            DamageError: where a chunk does not match its checksum.
        """
        first, last = start // CRC_CHUNK, -(-stop // CRC_CHUNK)
        begin, end = first * CRC_CHUNK, min(last * CRC_CHUNK, size)
        if len(self._scratch[0]) < end - begin:
            self._scratch[0] = bytearray(end - begin)
        data = memoryview(self._scratch[0])[: end - begin]
        count = os.preadv(self._descriptor, [data], offset + begin)
        expected = self._checksums[first_crc + first : first_crc + last].tolist()
        if count != end - begin or chunk_checksums(data) != expected:
            raise DamageError(
                f"{self._where}: document {self.key(offset)} at byte {offset + begin} does not "
                "match its checksum"
            )
        return data[start - begin : stop - begin]

    def key(self, offset: int) -> str:
        """The key of the document whose member begins at `offset`, from the tar header there."""
        block = os.pread(self._descriptor, BLOCKSIZE, offset - BLOCKSIZE)
        return block[:100].split(b"\0")[0].split(b".")[0].decode("ascii", "replace")


def header_of(row: np.void) -> Header:
    """The header of an index row's segment."""
    return Header(
        width=int(row["width"]),
        height=int(row["height"]),
        channels=int(row["channels"]),
        rate=int(row["rate"]),
    )

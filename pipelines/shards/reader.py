"""Shard sets: uncompressed tars that any WebDataset reader opens, an index beside each, a manifest.

    SET/train-000000.tar    for each document KEY.json and one member a segment
    SET/train-000000.npy    the index: one row of INDEX a segment, in the tar's order; then,
                            as a second array, the CRC-32 of every chunk of every member
    SET/manifest.json       every shard's size, hashes, documents and bytes; the set's root hash

The manifest is written last, so a set without one is unfinished. Checksums are kept by chunks of
a member, so that a piece of a long document is read and checked without the rest of it.
"""

from __future__ import annotations

import hashlib
import io
import json
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
    MAX_MANIFEST_BYTES,
    SET_FORMAT,
    SET_MANIFEST,
    Checksums,
    Index,
    Shard,
    chunk_checksums,
    sealed,
)
from bytelm.pipelines.storage.blob import Blob
from bytelm.pipelines.storage.cache import CACHE_FOLDER, CACHE_GB, CacheConfig
from bytelm.pipelines.storage.lru import LruCache
from bytelm.pipelines.storage.remote import open_store
from bytelm.pipelines.storage.store import LocalStore

INDEX_CACHE_BYTES = 1 << 27
MAX_OPEN_FILES = 64


class ShardSet:
    """A set at a path or URL: its manifest, its indexes, and checked reads of its members.

    Raises ValueError where there is no complete set of this format version, and DamageError where
    bytes are not what the index or the manifest says.
    """

    def __init__(self, location: str | Path, cache: CacheConfig | None = None):
        """`cache` keeps the shards of a remote set; a local one needs none."""
        self.store = open_store(location, cache)
        self.location = str(location)
        manifest = self._load_manifest()
        self.shards = [Shard(**entry) for entry in manifest["shards"]]
        self.root: str = manifest["root"]
        self.report: dict[str, Any] = manifest["report"]
        self._files: OrderedDict[str, tuple[int, Blob]] = OrderedDict()
        self._indexes = LruCache[str, tuple[Index, Checksums]](INDEX_CACHE_BYTES)
        self._scratch = [bytearray()]  # grows by being replaced, since views of it may live on

    def _load_manifest(self) -> dict[str, Any]:
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
                f"no shard set at {self.location}, which lacks {SET_MANIFEST}: make one with "
                "`bytelm prepare`"
            ) from error
        except OSError as error:
            raise ValueError(f"{where} cannot be read: {error}") from error
        try:
            manifest = json.loads(data.decode("utf-8", "surrogateescape"))
            version = manifest["format"]
        except (ValueError, KeyError, TypeError) as error:
            raise ValueError(f"{where} is no manifest of a shard set ({error})") from error
        if version != SET_FORMAT:
            raise ValueError(
                f"{where} has format version {version}, this bytelm reads {SET_FORMAT}: "
                "prepare the set again, or use the bytelm that wrote it"
            )
        if sealed(data[: -len(sealed(b""))]) != data:
            raise DamageError(
                f"{where} does not match its checksum: it was edited or damaged; make it again "
                "with `bytelm index`, or prepare the set again"
            )
        return manifest

    @property
    def is_remote(self) -> bool:
        """Whether shards are fetched before they are read."""
        return not isinstance(self.store, LocalStore)

    def split(self, name: str) -> list[Shard]:
        """The shards of one split, in the manifest's order."""
        return [s for s in self.shards if s.split == name]

    def index(self, shard: Shard) -> Index:
        """[segments] the shard's index (dtype INDEX), checked against the manifest."""
        return self._index(shard)[0]

    def _index(self, shard: Shard) -> tuple[Index, Checksums]:
        cached = self._indexes.get(shard.name)
        if cached is None:
            where = f"index {self.location}/{shard.index_name}"
            try:
                path = self.store.path(shard.index_blob)
                data = path.read_bytes()
            except OSError as error:
                raise DamageError(f"{where} cannot be read: {error}") from error
            self.store.release(shard.index_blob)
            if hashlib.sha256(data).hexdigest() != shard.index_sha256:
                raise DamageError(f"{where} is not the one that the manifest names")
            file = io.BytesIO(data)
            cached = np.load(file, allow_pickle=False), np.load(file, allow_pickle=False)
            self._indexes.put(shard.name, cached, len(data))
        return cached

    def reader(self, shard: Shard) -> MemberReader:
        """Checked reads from one shard; to be used before the set opens others."""
        where = f"{self.location}/{shard.name}"
        return MemberReader(self._open(shard), self._index(shard)[1], where, self._scratch)

    def read(self, shard: Shard, row: np.void, start: int = 0, stop: int | None = None) -> bytes:
        """Bytes [start, stop) of one member, to its end by default; DamageError where they are
        not what the index says."""
        offset, size, first_crc = int(row["offset"]), int(row["size"]), int(row["first_crc"])
        stop = size if stop is None else stop
        return bytes(self.reader(shard).view(offset, size, first_crc, start, stop))

    def sample(self, shard: Shard, row: np.void, start: int = 0, stop: int | None = None) -> Sample:
        """The canonical sample of one segment, or bytes [start, stop) of it."""
        return Sample(
            modality=BY_CODE[row["modality"]].name,
            header=header_of(row),
            data=self.read(shard, row, start, stop),
            is_file=bool(row["is_file"]),
        )

    def key(self, shard: Shard, row: np.void) -> str:
        """The document's key, from the tar header before the member."""
        return self.reader(shard).key(int(row["offset"]))

    def _open(self, shard: Shard) -> int:
        if shard.name in self._files:
            self._files.move_to_end(shard.name)
            return self._files[shard.name][0]
        try:
            descriptor = os.open(self.store.path(shard.blob), os.O_RDONLY)
        except OSError as error:
            where = f"{self.location}/{shard.name}"
            raise DamageError(f"shard {where} cannot be opened: {error}") from error
        self._files[shard.name] = descriptor, shard.blob
        if len(self._files) > MAX_OPEN_FILES:
            self._close(next(iter(self._files)))
        return descriptor

    def _close(self, name: str) -> None:
        descriptor, blob = self._files.pop(name)
        os.close(descriptor)
        self.store.release(blob)

    def prefetch(self, shards: Sequence[Shard]) -> None:
        """Have these shards of a remote set fetched ahead, in this order, and let go of others."""
        wanted = {shard.name for shard in shards}
        for name in [n for n in self._files if n not in wanted]:
            self._close(name)
        self.store.prefetch([shard.blob for shard in shards])

    def one_by_one(self, shards: Sequence[Shard]) -> Iterator[Shard]:
        """Shards for a single pass: of a remote set the next one is fetched while one is in use,
        and those before it are let go of."""
        for number, shard in enumerate(shards):
            self.prefetch(shards[number : number + 2])
            yield shard
        self.prefetch([])

    def prefetch_indexes(self, shards: Sequence[Shard]) -> None:
        """Have the indexes of these shards fetched ahead where the set is remote."""
        self.store.prefetch([shard.index_blob for shard in shards])

    def check_sizes(self, split: str) -> None:
        """DamageError that names every shard of a local split whose size is not the manifest's."""
        if self.is_remote:
            return
        wrong = []
        for shard in self.split(split):
            path = self.store.path(shard.blob)
            size = path.stat().st_size if path.is_file() else None
            if size != shard.size:
                found = "is missing" if size is None else f"has {size} bytes"
                wrong.append(f"shard {path} {found} where the manifest says {shard.size}")
        if wrong:
            raise DamageError("; ".join(wrong))

    def verify(self, shard: Shard) -> None:
        """Read the whole shard and its index; DamageError where a hash or checksum differs."""
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
        """Open files stay with the process that opened them, and so do cached indexes."""
        indexes = LruCache[str, tuple[Index, Checksums]](INDEX_CACHE_BYTES)
        fresh = {"_files": OrderedDict(), "_indexes": indexes, "_scratch": [bytearray()]}
        return {**self.__dict__, **fresh}


class MemberReader:
    """Checked reads from one open shard, into a buffer that is used again."""

    def __init__(self, descriptor: int, checksums: Checksums, where: str, scratch: list[bytearray]):
        self._descriptor = descriptor
        self._checksums = checksums
        self._where = where
        self._scratch = scratch

    def view(self, offset: int, size: int, first_crc: int, start: int, stop: int) -> memoryview:
        """Bytes [start, stop) of a member of `size` bytes at `offset` whose checksums begin at
        `first_crc`; good until the next read.

        Whole chunks are read and checked against their checksums; a difference is a DamageError.
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
    """The header that an index row holds."""
    return Header(
        width=int(row["width"]),
        height=int(row["height"]),
        channels=int(row["channels"]),
        rate=int(row["rate"]),
    )


def open_set(
    location: str,
    cache_folder: str = CACHE_FOLDER,
    cache_gb: float = CACHE_GB,
) -> ShardSet:
    """A shard set at a path or URL; the shards of a remote one are kept in the cache."""
    folder = Path(cache_folder).expanduser()
    return ShardSet(location, CacheConfig(folder, round(cache_gb * 1e9)))

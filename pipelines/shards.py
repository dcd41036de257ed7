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
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Generic, TypeVar

import numpy as np
import numpy.typing as npt
from isal import isal_zlib

from bytelm.modalities import MODALITIES
from bytelm.modalities.base import Header, Sample
from bytelm.pipelines.cache import Blob, CacheConfig
from bytelm.pipelines.store import DamageError, LocalStore, open_store

FORMAT = 2
MANIFEST = "manifest.json"
SPLITS = ("train", "val", "test")
TAR_BLOCK = 512

INDEX = np.dtype(
    [
        ("document", "<u4"),  # ordinal of the document in its shard
        ("modality", "u1"),  # code
        ("is_file", "u1"),  # 1 where the member is the file's own bytes
        ("channels", "u1"),
        ("width", "<u2"),
        ("height", "<u2"),
        ("rate", "<u4"),
        ("first_crc", "<u4"),  # place of the member's first chunk among the checksums
        ("offset", "<u8"),  # of the member's first byte in the tar
        ("size", "<u8"),  # of the member in bytes
    ]
)
Index = npt.NDArray[np.void]
Checksums = npt.NDArray[np.uint32]
CRC_CHUNK = 1 << 14
"""Bytes of a member that have a checksum of their own; the last chunk is shorter."""

INDEX_CACHE_BYTES = 1 << 27
MAX_OPEN_FILES = 64
MAX_MANIFEST_BYTES = 1 << 30

K = TypeVar("K")
V = TypeVar("V")

_MODALITY_BY_CODE = list(MODALITIES.values())


@dataclass(frozen=True)
class Shard:
    """One shard's line of the manifest."""

    name: str
    """File name of the tar; the index has the same name with `.npy`."""
    split: str
    size: int
    """Bytes of the tar."""
    sha256: str
    index_size: int
    index_sha256: str
    documents: int
    bytes: dict[str, int]
    """Stored bytes of each modality."""

    @property
    def index_name(self) -> str:
        """File name of the index."""
        return Path(self.name).with_suffix(".npy").name

    @property
    def blob(self) -> Blob:
        """The tar as an object of the store."""
        return Blob(self.name, self.size, self.sha256)

    @property
    def index_blob(self) -> Blob:
        """The index as an object of the store."""
        return Blob(self.index_name, self.index_size, self.index_sha256)


def root_hash(shards: Sequence[Shard]) -> str:
    """SHA-256 over the names and hashes of all shards: the identity of a set's content."""
    lines = (f"{s.name} {s.split} {s.sha256} {s.index_sha256}\n" for s in shards)
    return hashlib.sha256("".join(lines).encode()).hexdigest()


def manifest_bytes(shards: Sequence[Shard], report: dict[str, Any]) -> bytes:
    """The manifest as its file holds it; it ends with the SHA-256 of all that comes before."""
    says = {
        "format": FORMAT,
        "root": root_hash(shards),
        "shards": [asdict(s) for s in shards],
        "report": report,
    }
    text = json.dumps(says, indent=1, ensure_ascii=False).removesuffix("\n}")
    return _sealed(text.encode("utf-8", "surrogateescape"))


def _sealed(text: bytes) -> bytes:
    return b'%b,\n "sha256": "%b"\n}\n' % (text, hashlib.sha256(text).hexdigest().encode())


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
        self._indexes = ByteCache[str, tuple[Index, Checksums]](INDEX_CACHE_BYTES)
        self._scratch = [bytearray()]  # grows by being replaced, since views of it may live on

    def _load_manifest(self) -> dict[str, Any]:
        where = f"{self.location}/{MANIFEST}"
        try:
            data = self.store.read(MANIFEST, MAX_MANIFEST_BYTES)
        except FileNotFoundError as error:
            if not self.is_remote and Path(self.location).is_dir():
                raise ValueError(
                    f"{self.location} holds no {MANIFEST}: it is no shard set, or `bytelm "
                    "prepare` was interrupted; run it again"
                ) from error
            raise ValueError(
                f"no shard set at {self.location}, which lacks {MANIFEST}: make one with "
                "`bytelm prepare`"
            ) from error
        except OSError as error:
            raise ValueError(f"{where} cannot be read: {error}") from error
        try:
            manifest = json.loads(data.decode("utf-8", "surrogateescape"))
            version = manifest["format"]
        except (ValueError, KeyError, TypeError) as error:
            raise ValueError(f"{where} is no manifest of a shard set ({error})") from error
        if version != FORMAT:
            raise ValueError(
                f"{where} has format version {version}, this bytelm reads {FORMAT}: "
                "prepare the set again, or use the bytelm that wrote it"
            )
        if _sealed(data[: -len(_sealed(b""))]) != data:
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
            modality=_MODALITY_BY_CODE[row["modality"]].name,
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
        indexes = ByteCache[str, tuple[Index, Checksums]](INDEX_CACHE_BYTES)
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
        block = os.pread(self._descriptor, TAR_BLOCK, offset - TAR_BLOCK)
        return block[:100].split(b"\0")[0].split(b".")[0].decode("ascii", "replace")


class ByteCache(Generic[K, V]):
    """Keeps what was used last, up to a number of bytes; at least the newest."""

    def __init__(self, limit: int):
        self._limit = limit
        self._held = 0
        self._entries: OrderedDict[K, tuple[V, int]] = OrderedDict()

    def get(self, key: K) -> V | None:
        """The value, now the newest; None where it is not kept."""
        if key not in self._entries:
            return None
        self._entries.move_to_end(key)
        return self._entries[key][0]

    def put(self, key: K, value: V, size: int) -> None:
        """Keep a value of so many bytes, in place of the oldest."""
        self._entries[key] = value, size
        self._held += size
        while self._held > self._limit and len(self._entries) > 1:
            _, (_, freed) = self._entries.popitem(last=False)
            self._held -= freed


def chunk_checksums(data: bytes | memoryview) -> list[int]:
    """The CRC-32 of each chunk of CRC_CHUNK bytes."""
    if len(data) <= CRC_CHUNK:
        return [isal_zlib.crc32(data)] if data else []
    view = memoryview(data)
    return [isal_zlib.crc32(view[i : i + CRC_CHUNK]) for i in range(0, len(view), CRC_CHUNK)]


def header_of(row: np.void) -> Header:
    """The header that an index row holds."""
    return Header(
        width=int(row["width"]),
        height=int(row["height"]),
        channels=int(row["channels"]),
        rate=int(row["rate"]),
    )

"""The manifest of a set: a small JSON file, and parts that hold the entries of its shards.

    SET/manifest.json           counts of each split, the parts' hashes, root hash and report
    SET/manifest-HASH.npy       the entries of PART_SHARDS shards, an array of PART_DTYPE

Opening a set reads the JSON file alone. `ShardList` loads a part when one of its shards is asked
for. `docs/shard-format.md` specifies both files. Sets of format 1 and 2, whose JSON file holds all
entries, are read too.
"""

from __future__ import annotations

import hashlib
import io
import json
from bisect import bisect_right
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from itertools import accumulate
from typing import Any, overload

import numpy as np
import numpy.typing as npt

from bytelm.modalities import BY_CODE
from bytelm.pipelines.errors import DamageError
from bytelm.pipelines.shards.format import SET_FORMAT, SET_MANIFEST, SPLITS, Shard, shard_name
from bytelm.pipelines.storage.blob import Blob
from bytelm.pipelines.storage.lru import LruCache
from bytelm.pipelines.storage.store import Store

PART_SHARDS = 4096
"""Shards whose entries stand in one part; the last part has fewer."""
PART_CACHE_BYTES = 1 << 25
PART_DTYPE = np.dtype(
    [
        ("split", "u1"),  # place of the split in SPLITS
        ("number", "<u4"),  # number of the shard in its split
        ("size", "<u8"),  # bytes of the tar
        ("sha256", "u1", 32),
        ("index_size", "<u8"),
        ("index_sha256", "u1", 32),
        ("documents", "<u8"),
        ("bytes", "<u8", 3),  # stored bytes of texts, images and sounds
    ]
)
PartArray = npt.NDArray[np.void]
"""[shards] rows of PART_DTYPE."""


@dataclass(frozen=True)
class SplitCounts:
    """The sums over the shards of a split."""

    shards: int
    documents: int
    bytes: dict[str, int]
    """Stored bytes of each modality, by its name."""

    @classmethod
    def of(cls, shards: Sequence[Shard]) -> SplitCounts:
        """Count some shards."""
        sizes = {m.name: sum(s.bytes.get(m.name, 0) for s in shards) for m in BY_CODE}
        return cls(len(shards), sum(s.documents for s in shards), sizes)


@dataclass(frozen=True)
class ManifestPart:
    """A file with the entries of some shards."""

    name: str
    shards: int
    size: int
    sha256: str

    @property
    def blob(self) -> Blob:
        """The file as a store delivers it."""
        return Blob(self.name, self.size, self.sha256)


@dataclass(frozen=True)
class Manifest:
    """The content of a manifest's JSON file."""

    root: str
    """The set's root hash."""
    report: dict[str, Any]
    """Counts of documents, bytes and skipped files, from when the set was made."""
    splits: dict[str, SplitCounts]
    parts: list[ManifestPart]
    shards: list[Shard] | None = None
    """All shards, of a set of format 1 or 2, which has no parts."""


class ShardList(Sequence[Shard]):
    """Consecutive shards of a set of format 3, whose entries are loaded when they are used."""

    def __init__(self, reader: PartReader, shards: range):
        """`shards` are the places in the manifest's order."""
        self._reader = reader
        self._places = shards

    def __len__(self) -> int:
        return len(self._places)

    @overload
    def __getitem__(self, number: int) -> Shard: ...

    @overload
    def __getitem__(self, number: slice) -> ShardList: ...

    def __getitem__(self, number: int | slice) -> Shard | ShardList:
        if isinstance(number, slice):
            return ShardList(self._reader, self._places[number])
        return self._reader.shard(self._places[number])

    def __iter__(self) -> Iterator[Shard]:
        return (self._reader.shard(place) for place in self._places)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Sequence) and list(self) == list(other)

    __hash__ = None  # type: ignore[assignment]  # sequences that compare by content have none


class PartReader:
    """The entries of all shards, by their place in the manifest's order.

    Raises DamageError where a part does not have the hash that the manifest names.
    """

    def __init__(self, store: Store, location: str, parts: Sequence[ManifestPart]):
        self._store = store
        self._location = location
        self._parts = list(parts)
        self._ends = list(accumulate(part.shards for part in parts))
        self._start()

    def _start(self) -> None:
        self._loaded = LruCache[int, PartArray](PART_CACHE_BYTES)

    def __getstate__(self) -> dict[str, Any]:
        """The parts in memory stay with the process that has them."""
        return {name: value for name, value in self.__dict__.items() if name != "_loaded"}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state)
        self._start()

    def shard(self, place: int) -> Shard:
        """The shard at a place."""
        number = bisect_right(self._ends, place)
        part = self._loaded.get(number)
        if part is None:
            part = self._load(self._parts[number])
            self._loaded.put(number, part, part.nbytes)
        return _shard_of(part[place - self._ends[number] + len(part)])

    def _load(self, part: ManifestPart) -> PartArray:
        where = f"{self._location}/{part.name}"
        try:
            data = self._store.path(part.blob).read_bytes()
        except OSError as error:
            raise DamageError(
                f"{where}, a part of the manifest, cannot be read: {error}"
            ) from error
        self._store.release(part.blob)
        if hashlib.sha256(data).hexdigest() != part.sha256:
            raise DamageError(
                f"{where} is not the part that the manifest names: make it again with `bytelm "
                "index`, or prepare the set again"
            )
        entries: PartArray = np.load(io.BytesIO(data), allow_pickle=False)
        return entries


def root_hash(shards: Sequence[Shard]) -> str:
    """SHA-256 over the names and hashes of all shards: the identity of a set's content.

    It is the same in every format, so that a run goes on on a set that was raised to a newer one.
    """
    digest = hashlib.sha256()
    for s in shards:
        digest.update(f"{s.name} {s.split} {s.sha256} {s.index_sha256}\n".encode())
    return digest.hexdigest()


def manifest_files(shards: Sequence[Shard], report: dict[str, Any]) -> tuple[dict[str, bytes], str]:
    """The content of each file of a manifest by its name, and the root hash.

    Args:
        shards: all shards, of train, then val, then test; each with documents.
        report: stands in the manifest as it is.
    Returns:
        the parts under their names, which hold hashes of them, and the JSON file under SET_MANIFEST
        as the last one.
    """
    files: dict[str, bytes] = {}
    parts = []
    for first in range(0, len(shards), PART_SHARDS):
        entries = shards[first : first + PART_SHARDS]
        file = io.BytesIO()
        np.save(file, np.array([_entry_of(shard) for shard in entries], PART_DTYPE))
        data = file.getvalue()
        sha256 = hashlib.sha256(data).hexdigest()
        parts.append(ManifestPart(f"manifest-{sha256[:16]}.npy", len(entries), len(data), sha256))
        files[parts[-1].name] = data
    counts = {name: SplitCounts.of([s for s in shards if s.split == name]) for name in SPLITS}
    root = root_hash(shards)
    values = {
        "format": SET_FORMAT,
        "root": root,
        "splits": {name: asdict(split) for name, split in counts.items()},
        "parts": [asdict(part) for part in parts],
        "report": report,
    }
    text = json.dumps(values, indent=1, ensure_ascii=False).removesuffix("\n}")
    files[SET_MANIFEST] = _with_checksum(text.encode("utf-8", "surrogateescape"))
    return files, root


def parse_manifest(data: bytes, where: str) -> Manifest:
    """The manifest in the content of a JSON file; `where` names the file in errors.

    Raises ValueError where it is no manifest of a format that is read, DamageError where it does
    not match its own checksum.
    """
    try:
        values = json.loads(data.decode("utf-8", "surrogateescape"))
        version = values["format"]
    except (ValueError, KeyError, TypeError) as error:
        raise ValueError(f"{where} is no manifest of a shard set ({error})") from error
    if version not in (1, 2, SET_FORMAT):
        raise ValueError(
            f"{where} has format version {version}, this bytelm reads 1 to {SET_FORMAT}: "
            "prepare the set again, or use the bytelm that wrote it"
        )
    if version > 1 and _with_checksum(data[: -len(_with_checksum(b""))]) != data:
        raise DamageError(_damage(where))
    if version == SET_FORMAT:
        splits = {name: SplitCounts(**counts) for name, counts in values["splits"].items()}
        parts = [ManifestPart(**part) for part in values["parts"]]
        return Manifest(values["root"], values["report"], splits, parts)
    try:
        shards = [Shard(**entry) for entry in values["shards"]]
    except TypeError as error:
        raise ValueError(
            f"{where} is of an early format 1, whose indexes have no checksums of chunks: make "
            "them again with `bytelm index`"
        ) from error
    if version == 1 and root_hash(shards) != values["root"]:
        raise DamageError(_damage(where))
    counts = {name: SplitCounts.of([s for s in shards if s.split == name]) for name in SPLITS}
    return Manifest(values["root"], values["report"], counts, [], shards)


def _damage(where: str) -> str:
    return (
        f"{where} does not match its checksum: it was edited or damaged; make it again "
        "with `bytelm index`, or prepare the set again"
    )


def _with_checksum(text: bytes) -> bytes:
    """A manifest's file, of its text up to the checksum."""
    return b'%b,\n "sha256": "%b"\n}\n' % (text, hashlib.sha256(text).hexdigest().encode())


def _entry_of(shard: Shard) -> tuple[Any, ...]:
    """A shard as a row of PART_DTYPE."""
    assert shard.name == shard_name(shard.split, shard.number), shard.name
    return (
        SPLITS.index(shard.split),
        shard.number,
        shard.size,
        tuple(bytes.fromhex(shard.sha256)),
        shard.index_size,
        tuple(bytes.fromhex(shard.index_sha256)),
        shard.documents,
        tuple(shard.bytes.get(m.name, 0) for m in BY_CODE),
    )


def _shard_of(entry: np.void) -> Shard:
    """The inverse of `_entry_of`."""
    split = SPLITS[entry["split"]]
    sizes = zip(BY_CODE, entry["bytes"].tolist(), strict=True)
    return Shard(
        name=shard_name(split, int(entry["number"])),
        split=split,
        size=int(entry["size"]),
        sha256=entry["sha256"].tobytes().hex(),
        index_size=int(entry["index_size"]),
        index_sha256=entry["index_sha256"].tobytes().hex(),
        documents=int(entry["documents"]),
        bytes={modality.name: size for modality, size in sizes},
    )

"""Shard sets: uncompressed tars that any WebDataset reader opens, an index beside each, a manifest.

    SET/train-000000.tar    for each document KEY.json and one member a segment
    SET/train-000000.npy    the index: one row of INDEX a segment, in the tar's order
    SET/manifest.json       every shard's size, hashes, documents and bytes; the set's root hash

The manifest is written last, so a set without one is unfinished.
"""

from __future__ import annotations

import hashlib
import io
import json
import os
import tarfile
import zlib
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from bytelm.modalities import MODALITIES
from bytelm.modalities.base import Header, Sample

FORMAT = 1
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
        ("crc32", "<u4"),  # of the member's bytes
        ("offset", "<u8"),  # of the member's first byte in the tar
        ("size", "<u8"),  # of the member in bytes
    ]
)
Index = npt.NDArray[np.void]

_MODALITY_BY_CODE = list(MODALITIES.values())


class DamageError(ValueError):
    """Stored bytes that are not what the index or the manifest says."""


@dataclass(frozen=True)
class Shard:
    """One shard's line of the manifest."""

    name: str
    """File name of the tar; the index has the same name with `.npy`."""
    split: str
    size: int
    """Bytes of the tar."""
    sha256: str
    index_sha256: str
    documents: int
    bytes: dict[str, int]
    """Stored bytes of each modality."""

    @property
    def index_name(self) -> str:
        """File name of the index."""
        return Path(self.name).with_suffix(".npy").name


def root_hash(shards: Sequence[Shard]) -> str:
    """SHA-256 over the names and hashes of all shards: the identity of a set's content."""
    lines = (f"{s.name} {s.split} {s.sha256} {s.index_sha256}\n" for s in shards)
    return hashlib.sha256("".join(lines).encode()).hexdigest()


def write_atomic(path: Path, data: bytes) -> None:
    """Write a file so that a crash leaves the old one or the new one, never a part."""
    temporary = path.with_name(path.name + ".tmp")
    with open(temporary, "wb") as file:
        file.write(data)
        file.flush()
        os.fsync(file.fileno())
    temporary.rename(path)
    fsync_folder(path.parent)


def fsync_folder(folder: Path) -> None:
    """Make renames in a folder durable."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


class ShardWriter:
    """Writes one shard: temporary name, fsync, hash, rename. The same documents in the same
    order give the same bytes: members carry no time, owner or machine."""

    def __init__(self, folder: Path, split: str, number: int):
        self.name = f"{split}-{number:06d}.tar"
        self.split = split
        self._path = folder / self.name
        self._temporary = self._path.with_name(self.name + ".tmp")
        self._tar = tarfile.open(self._temporary, "w", format=tarfile.USTAR_FORMAT)  # noqa: SIM115
        self._rows: list[tuple[int, ...]] = []
        self._documents = 0
        self._bytes = dict.fromkeys(MODALITIES, 0)

    @property
    def size(self) -> int:
        """Bytes written so far."""
        return self._tar.offset

    def add(self, key: str, sources: Sequence[str], samples: Sequence[Sample]) -> None:
        """Append a document: its key, the source file's name of each segment, the samples."""
        suffixes = [MODALITIES[s.modality].member_suffix(s) for s in samples]
        if len(set(suffixes)) < len(suffixes):
            suffixes = [f"{i}.{suffix}" for i, suffix in enumerate(suffixes)]
        segments = [
            {
                "modality": sample.modality,
                "member": f"{key}.{suffix}",
                "source": source,
                **{name: value for name, value in asdict(sample.header).items() if value},
                **({"is_file": True} if sample.is_file else {}),
            }
            for source, suffix, sample in zip(sources, suffixes, samples, strict=True)
        ]
        self._add_member(f"{key}.json", json.dumps({"key": key, "segments": segments}).encode())
        for suffix, sample in zip(suffixes, samples, strict=True):
            offset = self._add_member(f"{key}.{suffix}", sample.data)
            h = sample.header
            self._rows.append(
                (
                    self._documents,
                    MODALITIES[sample.modality].code,
                    sample.is_file,
                    h.channels,
                    h.width,
                    h.height,
                    h.rate,
                    zlib.crc32(sample.data),
                    offset,
                    len(sample.data),
                )
            )
            self._bytes[sample.modality] += len(sample.data)
        self._documents += 1

    def _add_member(self, name: str, data: bytes) -> int:
        info = tarfile.TarInfo(name)
        info.size = len(data)
        self._tar.addfile(info, io.BytesIO(data))
        padded = -(-len(data) // TAR_BLOCK) * TAR_BLOCK
        return self._tar.offset - padded

    def close(self) -> Shard:
        """Finish tar and index, make both durable, and give the shard's manifest line."""
        self._tar.close()
        with open(self._temporary, "rb") as file:
            os.fsync(file.fileno())
            sha256 = hashlib.file_digest(file, "sha256").hexdigest()
            size = os.fstat(file.fileno()).st_size
        index = io.BytesIO()
        np.save(index, np.array(self._rows, dtype=INDEX))
        shard = Shard(
            name=self.name,
            split=self.split,
            size=size,
            sha256=sha256,
            index_sha256=hashlib.sha256(index.getvalue()).hexdigest(),
            documents=self._documents,
            bytes=self._bytes,
        )
        write_atomic(self._path.with_name(shard.index_name), index.getvalue())
        self._temporary.rename(self._path)
        fsync_folder(self._path.parent)
        return shard


def write_manifest(folder: Path, shards: Sequence[Shard], report: dict[str, Any]) -> None:
    """Write the manifest, which declares the set complete."""
    manifest = {
        "format": FORMAT,
        "root": root_hash(shards),
        "shards": [asdict(s) for s in shards],
        "report": report,
    }
    text = json.dumps(manifest, indent=1, ensure_ascii=False) + "\n"
    write_atomic(folder / MANIFEST, text.encode("utf-8", "surrogateescape"))


class ShardSet:
    """A set on disk: its manifest, its indexes, and checked reads of its members.

    Raises ValueError where the folder is no complete set of this format version, and
    DamageError where bytes are not what the index or the manifest says.
    """

    def __init__(self, folder: str | Path):
        self.folder = Path(folder)
        manifest = self._load_manifest()
        self.shards = [Shard(**entry) for entry in manifest["shards"]]
        self.root: str = manifest["root"]
        self.report: dict[str, Any] = manifest["report"]
        if root_hash(self.shards) != self.root:
            raise DamageError(
                f"{self.folder / MANIFEST}: the root hash does not match its shards; "
                "the manifest was edited or damaged, prepare the set again"
            )
        self._files: dict[str, int] = {}
        self._indexes: dict[str, Index] = {}

    def _load_manifest(self) -> dict[str, Any]:
        path = self.folder / MANIFEST
        if not self.folder.is_dir():
            raise ValueError(f"no shard set at {self.folder}: make one with `bytelm prepare`")
        if not path.is_file():
            raise ValueError(
                f"{self.folder} holds no {MANIFEST}: it is no shard set, or `bytelm prepare` "
                "was interrupted; run it again"
            )
        try:
            manifest = json.loads(path.read_text("utf-8", "surrogateescape"))
            version = manifest["format"]
        except (ValueError, KeyError, TypeError) as error:
            raise ValueError(f"{path} is no manifest of a shard set ({error})") from error
        if version != FORMAT:
            raise ValueError(
                f"{path} has format version {version}, this bytelm reads {FORMAT}: "
                "prepare the set again, or use the bytelm that wrote it"
            )
        return manifest

    def split(self, name: str) -> list[Shard]:
        """The shards of one split, in the manifest's order."""
        return [s for s in self.shards if s.split == name]

    def index(self, shard: Shard) -> Index:
        """[segments] the shard's index (dtype INDEX), checked against the manifest."""
        if shard.name not in self._indexes:
            path = self.folder / shard.index_name
            try:
                data = path.read_bytes()
            except OSError as error:
                raise DamageError(f"index {path} cannot be read: {error.strerror}") from error
            if hashlib.sha256(data).hexdigest() != shard.index_sha256:
                raise DamageError(f"index {path} is not the one that the manifest names")
            self._indexes[shard.name] = np.load(io.BytesIO(data), allow_pickle=False)
        return self._indexes[shard.name]

    def read(self, shard: Shard, row: np.void) -> bytes:
        """The bytes of one member, checked against the CRC-32 of its index row."""
        data = os.pread(self._open(shard), int(row["size"]), int(row["offset"]))
        if len(data) != row["size"] or zlib.crc32(data) != row["crc32"]:
            raise DamageError(
                f"{self.folder / shard.name}: document {self.key(shard, row)} at byte "
                f"{row['offset']} does not match its checksum"
            )
        return data

    def sample(self, shard: Shard, row: np.void) -> Sample:
        """The canonical sample of one segment."""
        return Sample(
            modality=_MODALITY_BY_CODE[row["modality"]].name,
            header=header_of(row),
            data=self.read(shard, row),
            is_file=bool(row["is_file"]),
        )

    def key(self, shard: Shard, row: np.void) -> str:
        """The document's key, from the tar header before the member."""
        block = os.pread(self._open(shard), TAR_BLOCK, int(row["offset"]) - TAR_BLOCK)
        return block[:100].split(b"\0")[0].split(b".")[0].decode("ascii", "replace")

    def _open(self, shard: Shard) -> int:
        if shard.name not in self._files:
            path = self.folder / shard.name
            try:
                descriptor = os.open(path, os.O_RDONLY)
            except OSError as error:
                raise DamageError(f"shard {path} cannot be opened: {error.strerror}") from error
            size = os.fstat(descriptor).st_size
            if size != shard.size:
                os.close(descriptor)
                raise DamageError(
                    f"shard {path} has {size} bytes where the manifest says {shard.size}"
                )
            self._files[shard.name] = descriptor
        return self._files[shard.name]

    def verify(self, shard: Shard) -> None:
        """Read the whole shard and its index; DamageError where a hash or checksum differs."""
        index = self.index(shard)
        self._open(shard)
        with open(self.folder / shard.name, "rb") as file:
            if hashlib.file_digest(file, "sha256").hexdigest() != shard.sha256:
                for row in index:
                    self.read(shard, row)
                raise DamageError(
                    f"{self.folder / shard.name} does not match its SHA-256, though every "
                    "document's payload does: a tar header or a description is damaged"
                )

    def __getstate__(self) -> dict[str, Any]:
        """Open files stay with the process that opened them."""
        return {**self.__dict__, "_files": {}}


def header_of(row: np.void) -> Header:
    """The header that an index row holds."""
    return Header(
        width=int(row["width"]),
        height=int(row["height"]),
        channels=int(row["channels"]),
        rate=int(row["rate"]),
    )

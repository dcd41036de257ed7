"""The format of a shard set: index, manifest, root hash, checksums."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from isal import isal_zlib

from bytelm.pipelines.storage.blob import Blob

SET_FORMAT = 2
SET_MANIFEST = "manifest.json"
SPLITS = ("train", "val", "test")
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
MAX_MANIFEST_BYTES = 1 << 30


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
        "format": SET_FORMAT,
        "root": root_hash(shards),
        "shards": [asdict(s) for s in shards],
        "report": report,
    }
    text = json.dumps(says, indent=1, ensure_ascii=False).removesuffix("\n}")
    return sealed(text.encode("utf-8", "surrogateescape"))


def sealed(text: bytes) -> bytes:
    return b'%b,\n "sha256": "%b"\n}\n' % (text, hashlib.sha256(text).hexdigest().encode())


def chunk_checksums(data: bytes | memoryview) -> list[int]:
    """The CRC-32 of each chunk of CRC_CHUNK bytes."""
    if len(data) <= CRC_CHUNK:
        return [isal_zlib.crc32(data)] if data else []
    view = memoryview(data)
    return [isal_zlib.crc32(view[i : i + CRC_CHUNK]) for i in range(0, len(view), CRC_CHUNK)]

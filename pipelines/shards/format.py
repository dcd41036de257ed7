"""The format of a shard set, as reader and writer share it; `docs/shard-format.md` specifies it.

    SET/train-000000.tar    for each document KEY.json and one member for each segment
    SET/train-000000.npy    the index: a row of INDEX_DTYPE for each segment, in the tar's order;
                            then, as a second array, the CRC-32 of every chunk of every member
    SET/manifest.json       counts, parts, report and root hash; `manifest.py` reads and writes it
    SET/manifest-HASH.npy   a part: size, hashes, documents and bytes of some shards

The manifest is written last, so a set without one is unfinished. Members have checksums by chunk,
so that a piece of a long document is read and checked without the rest of it.
"""

from __future__ import annotations

import io
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt
from isal import isal_zlib

from bytelm.pipelines.storage.blob import Blob

SET_FORMAT = 3
"""Version of the whole set, which its manifest names."""
SHARD_FORMAT = 2
"""Version of tars and indexes."""
SET_MANIFEST = "manifest.json"
MAX_MANIFEST_BYTES = 1 << 30
SPLITS = ("train", "val", "test")
MAX_SHARDS = 10**6
"""Shards of a split, whose numbers have six digits."""

CRC_CHUNK = 1 << 14
"""Bytes of a member that share a checksum; a member's last chunk is shorter."""
INDEX_DTYPE = np.dtype(
    [
        ("document", "<u4"),  # ordinal of the document in its shard
        ("modality", "u1"),  # code of the modality
        ("is_file", "u1"),  # DECODED, OWN_FILE or DEEP
        ("channels", "u1"),
        ("width", "<u2"),
        ("height", "<u2"),
        ("rate", "<u4"),
        ("first_crc", "<u4"),  # position of the member's first checksum in the second array
        ("offset", "<u8"),  # position of the member's first byte in the tar
        ("size", "<u8"),  # bytes of the member
    ]
)
DECODED, OWN_FILE, DEEP = 0, 1, 2
"""Values of `is_file`: a decoded sample, the file's own bytes, or a deep sample."""
Index = npt.NDArray[np.void]
"""[segments] rows of INDEX_DTYPE."""
Checksums = npt.NDArray[np.uint32]
"""[chunks] CRC-32 of every chunk of every member of a shard."""


@dataclass(frozen=True)
class Shard:
    """A shard's entry in the manifest."""

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
    """Stored bytes of each modality, by its name."""

    @property
    def number(self) -> int:
        """Number of the shard in its split."""
        return int(self.name.removesuffix(".tar").rpartition("-")[2])

    @property
    def index_name(self) -> str:
        """File name of the index."""
        return Path(self.name).with_suffix(".npy").name

    @property
    def tar_blob(self) -> Blob:
        """The tar as a store delivers it."""
        return Blob(self.name, self.size, self.sha256)

    @property
    def index_blob(self) -> Blob:
        """The index as a store delivers it."""
        return Blob(self.index_name, self.index_size, self.index_sha256)


def shard_name(split: str, number: int) -> str:
    """The file name of a shard's tar. ValueError where the split has too many shards for names."""
    if number >= MAX_SHARDS:
        raise ValueError(
            f"the split {split} needs more than {MAX_SHARDS:,} shards: prepare the set again with "
            "a larger --shard-mb, or make several sets"
        )
    return f"{split}-{number:06d}.tar"


def index_bytes(index: Index, checksums: Checksums) -> bytes:
    """The content of an index's file: two arrays in NumPy's format, one after the other."""
    file = io.BytesIO()
    np.save(file, index)
    np.save(file, checksums)
    return file.getvalue()


def parse_index(data: bytes) -> tuple[Index, Checksums]:
    """The two arrays of an index's file, whose hash has been checked."""
    file = io.BytesIO(data)
    return np.load(file, allow_pickle=False), np.load(file, allow_pickle=False)


def chunk_checksums(data: bytes | memoryview) -> list[int]:
    """The CRC-32 of each chunk of CRC_CHUNK bytes."""
    if len(data) <= CRC_CHUNK:
        return [isal_zlib.crc32(data)] if data else []
    view = memoryview(data)
    return [isal_zlib.crc32(view[i : i + CRC_CHUNK]) for i in range(0, len(view), CRC_CHUNK)]

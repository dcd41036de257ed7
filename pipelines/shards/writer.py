"""Writing a shard set: tars, their indexes, and last the manifest, each atomically.

`prepare` writes sets, and `reindex` indexes and manifests.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from bytelm.modalities import BY_CODE, MODALITIES
from bytelm.modalities.base import Sample
from bytelm.pipelines.shards.format import (
    INDEX_DTYPE,
    Checksums,
    Index,
    Shard,
    chunk_checksums,
    index_bytes,
    shard_name,
)
from bytelm.pipelines.shards.manifest import manifest_files
from bytelm.pipelines.shards.pieces import ShardPiece, add_document, index_row
from bytelm.pipelines.storage.files import rename_durably, write_atomic
from bytelm.pipelines.storage.tar_writer import TarWriter


class ShardWriter:
    """Writes one shard under a temporary name, and makes it final in `close`.

    Equal documents in equal order give equal bytes: members carry no time, owner or machine.
    """

    def __init__(self, folder: Path, split: str, number: int):
        self.name = shard_name(split, number)
        self.split = split
        self._path = folder / self.name
        self._temporary = self._path.with_name(self.name + ".tmp")
        self._tar = TarWriter(self._temporary)
        self._index = IndexBuilder()

    @property
    def size(self) -> int:
        """Bytes written so far."""
        return self._tar.size

    def add(self, key: str, sources: Sequence[str], samples: Sequence[Sample]) -> None:
        """Append a document.

        Args:
            key: name of the document, unique in the set.
            sources: for each segment, the name of its source file.
            samples: the segments.
        """
        offsets = add_document(self._tar.add, key, sources, samples)
        for sample, offset in zip(samples, offsets, strict=True):
            self._index.add_segment(sample, offset)
        self._index.end_document()

    def append(self, piece: ShardPiece) -> None:
        """Append the documents of a piece."""
        self._index.append(piece, self._tar.size)
        self._tar.append(piece.members)

    def close(self) -> Shard:
        """Make tar and index durable, and return the shard's entry in the manifest."""
        sha256 = self._tar.close()
        shard = self._index.finish(self._path, sha256, self._tar.size)
        rename_durably(self._temporary, self._path)
        return shard


class IndexBuilder:
    """Collects the index of one shard, by segments or by pieces."""

    def __init__(self) -> None:
        self._indexes: list[Index] = []
        self._rows: list[tuple[int, ...]] = []  # that follow the indexes
        self._checksum_arrays: list[Checksums] = []
        self._checksums: list[int] = []  # that follow the arrays
        self._first_crc = 0  # number of all checksums
        self._documents = 0
        self._bytes = dict.fromkeys(MODALITIES, 0)

    def add_segment(self, sample: Sample, offset: int) -> None:
        """Add a segment of the current document, whose member begins at `offset` in the tar."""
        self._rows.append(index_row(self._documents, sample, offset, self._first_crc))
        checksums = chunk_checksums(sample.data)
        self._checksums += checksums
        self._first_crc += len(checksums)
        self._bytes[sample.modality] += len(sample.data)

    def end_document(self) -> None:
        """End the current document."""
        self._documents += 1

    def append(self, piece: ShardPiece, start: int) -> None:
        """Add the documents of a piece whose members begin at `start` in the tar."""
        self._gather()
        index = piece.index.copy()
        index["document"] += self._documents
        index["offset"] += start
        index["first_crc"] += self._first_crc
        self._indexes.append(index)
        self._checksum_arrays.append(piece.checksums)
        self._first_crc += len(piece.checksums)
        self._documents += len(piece.ends)
        for modality in BY_CODE:
            sizes = index["size"][index["modality"] == modality.code]
            self._bytes[modality.name] += int(sizes.sum())

    def _gather(self) -> None:
        """Turn the segments that were added one by one into arrays."""
        self._indexes.append(np.array(self._rows, INDEX_DTYPE))
        self._checksum_arrays.append(np.array(self._checksums, "<u4"))
        self._rows, self._checksums = [], []

    def finish(self, tar: Path, sha256: str, size: int) -> Shard:
        """Write the index beside its tar, and return the shard's entry in the manifest.

        Args:
            tar: final path of the tar, which need not exist yet.
            sha256: hash of the tar.
            size: bytes of the tar.
        """
        self._gather()
        data = index_bytes(np.concatenate(self._indexes), np.concatenate(self._checksum_arrays))
        shard = Shard(
            name=tar.name,
            split=tar.name.split("-")[0],
            size=size,
            sha256=sha256,
            index_size=len(data),
            index_sha256=hashlib.sha256(data).hexdigest(),
            documents=self._documents,
            bytes=self._bytes,
        )
        write_atomic(tar.with_name(shard.index_name), data)
        return shard


def write_set_manifest(folder: Path, shards: Sequence[Shard], report: dict[str, Any]) -> str:
    """Write the manifest, which makes the set complete, and return the root hash.

    Its parts come first, and have their hash in their name: until the JSON file is replaced, an
    older manifest still has its own parts. Those are removed at the end, with the counts of rows
    (`data/kept_counts.py`) of another root hash.
    """
    files, root = manifest_files(shards, report)
    for name, data in files.items():
        write_atomic(folder / name, data)
    for path in (*folder.glob("manifest-*.npy"), *folder.glob("counts-*.npy")):
        if path.name not in files and not path.name.startswith(f"counts-{root[:16]}-"):
            path.unlink()
    return root

"""Writing a shard set: tars, their indexes, and last the manifest, each atomically.

`prepare` writes sets, and `reindex` indexes and manifests.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from bytelm.modalities import MODALITIES
from bytelm.modalities.base import Sample
from bytelm.pipelines.shards.format import (
    SET_MANIFEST,
    Shard,
    chunk_checksums,
    index_bytes,
    manifest_bytes,
    root_hash,
)
from bytelm.pipelines.storage.files import rename_durably, write_atomic
from bytelm.pipelines.storage.tar_writer import TarWriter


class ShardWriter:
    """Writes one shard under a temporary name, and makes it final in `close`.

    Equal documents in equal order give equal bytes: members carry no time, owner or machine.
    """

    def __init__(self, folder: Path, split: str, number: int):
        self.name = f"{split}-{number:06d}.tar"
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
        suffixes = [MODALITIES[s.modality].member_suffix(s) for s in samples]
        if len(set(suffixes)) < len(suffixes):
            suffixes = [f"{i}.{suffix}" for i, suffix in enumerate(suffixes)]
        segments = [
            _description(sample, f"{key}.{suffix}", source)
            for source, suffix, sample in zip(sources, suffixes, samples, strict=True)
        ]
        self._tar.add(f"{key}.json", json.dumps({"key": key, "segments": segments}).encode())
        for suffix, sample in zip(suffixes, samples, strict=True):
            offset = self._tar.add(f"{key}.{suffix}", sample.data)
            self._index.add_segment(sample, offset)
        self._index.end_document()

    def close(self) -> Shard:
        """Make tar and index durable, and return the shard's entry in the manifest."""
        sha256 = self._tar.close()
        shard = self._index.finish(self._path, sha256, self._tar.size)
        rename_durably(self._temporary, self._path)
        return shard


class IndexBuilder:
    """Collects the index of one shard, segment by segment."""

    def __init__(self) -> None:
        self._rows: list[tuple[int, ...]] = []
        self._checksums: list[int] = []
        self._documents = 0
        self._bytes = dict.fromkeys(MODALITIES, 0)

    def add_segment(self, sample: Sample, offset: int) -> None:
        """Add a segment of the current document, whose member begins at `offset` in the tar."""
        header = sample.header
        self._rows.append(
            (
                self._documents,
                MODALITIES[sample.modality].code,
                sample.is_file,
                header.channels,
                header.width,
                header.height,
                header.rate,
                len(self._checksums),
                offset,
                len(sample.data),
            )
        )
        self._checksums += chunk_checksums(sample.data)
        self._bytes[sample.modality] += len(sample.data)

    def end_document(self) -> None:
        """End the current document."""
        self._documents += 1

    def finish(self, tar: Path, sha256: str, size: int) -> Shard:
        """Write the index beside its tar, and return the shard's entry in the manifest.

        Args:
            tar: final path of the tar, which need not exist yet.
            sha256: hash of the tar.
            size: bytes of the tar.
        """
        data = index_bytes(self._rows, self._checksums)
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
    """Write the manifest, which makes the set complete, and return the root hash."""
    write_atomic(folder / SET_MANIFEST, manifest_bytes(shards, report))
    return root_hash(shards)


def _description(sample: Sample, member: str, source: str) -> dict[str, Any]:
    """A segment's entry in its document's JSON; values of zero are left out."""
    return {
        "modality": sample.modality,
        "member": member,
        "source": source,
        **{name: value for name, value in sample.header._asdict().items() if value},
        **({"is_file": True} if sample.is_file else {}),
    }

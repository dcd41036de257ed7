"""Documents as the bytes and the index rows that a shard has of them.

A piece is made in one process and appended to a shard in another, without work for each document
there.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
import numpy.typing as npt

from bytelm.modalities import MODALITIES
from bytelm.modalities.base import Header, Sample
from bytelm.pipelines.shards.format import (
    DECODED,
    DEEP,
    INDEX_DTYPE,
    OWN_FILE,
    Checksums,
    Index,
    chunk_checksums,
)
from bytelm.pipelines.storage.tar_writer import member_parts

SegmentShape = tuple[str, Header, bool, bool, str, str]
"""Modality, header, is_file, is_deep, suffix of the member, and name of the source file."""


@dataclass(frozen=True)
class ShardPiece:
    """Consecutive documents of a shard."""

    members: bytes | memoryview
    """Their members in the tar, with headers and padding."""
    ends: npt.NDArray[np.int64]
    """[documents] where the members of each document end in `members`."""
    index: Index
    """[segments] rows of the index; documents, offsets and checksums count from the piece's
    start."""
    checksums: Checksums
    """[chunks] CRC-32 of every chunk of every member."""

    def part(self, first: int, stop: int) -> ShardPiece:
        """Documents `first` to `stop` (exclusive) as a piece; at least one."""
        start = int(self.ends[first - 1]) if first else 0
        documents = self.index["document"]
        left, right = np.searchsorted(documents, [first, stop])
        index = self.index[left:right].copy()
        first_crc = int(index["first_crc"][0])
        is_end = right == len(self.index)
        last_crc = len(self.checksums) if is_end else int(self.index["first_crc"][right])
        index["document"] -= first
        index["offset"] -= start
        index["first_crc"] -= first_crc
        return ShardPiece(
            members=self.members[start : int(self.ends[stop - 1])],
            ends=self.ends[first:stop] - start,
            index=index,
            checksums=self.checksums[first_crc:last_crc],
        )


class PieceBuilder:
    """Collects documents to a piece."""

    def __init__(self) -> None:
        self._parts: list[bytes] = []
        self._ends: list[int] = []
        self._rows: list[tuple[int, ...]] = []
        self._checksums: list[int] = []
        self.size = 0
        """Bytes of all members so far."""

    def add(self, key: str, sources: Sequence[str], samples: Sequence[Sample]) -> None:
        """Append a document; see ShardWriter.add."""
        document = len(self._ends)
        offsets = add_document(self._add_member, key, sources, samples)
        for sample, offset in zip(samples, offsets, strict=True):
            self._rows.append(index_row(document, sample, offset, len(self._checksums)))
            self._checksums += chunk_checksums(sample.data)
        self._ends.append(self.size)

    def finish(self) -> tuple[list[bytes], ShardPiece]:
        """The bytes of all members, in parts, and a piece whose `members` are yet to be set."""
        piece = ShardPiece(
            members=b"",
            ends=np.array(self._ends, np.int64),
            index=np.array(self._rows, INDEX_DTYPE),
            checksums=np.array(self._checksums, "<u4"),
        )
        return self._parts, piece

    def _add_member(self, name: str, data: bytes) -> int:
        """Append a member, and return the offset of its data."""
        header, *rest = member_parts(name, data)
        offset = self.size + len(header)
        self._parts += (header, *rest)
        self.size = offset + sum(map(len, rest))
        return offset


def add_document(
    add_member: Callable[[str, bytes], int],
    key: str,
    sources: Sequence[str],
    samples: Sequence[Sample],
) -> list[int]:
    """Append a document's members, and return the offset of each sample's data.

    Args:
        add_member: appends a member of a name, and returns the offset of its data.
        key: name of the document, unique in the set.
        sources: for each segment, the name of its source file.
        samples: the segments.
    """
    suffixes = [MODALITIES[s.modality].member_suffix(s) for s in samples]
    if len(set(suffixes)) < len(suffixes):
        suffixes = [f"{i}.{suffix}" for i, suffix in enumerate(suffixes)]
    shapes = tuple(
        (s.modality, s.header, s.is_file, s.is_deep, suffix, source)
        for s, suffix, source in zip(samples, suffixes, sources, strict=True)
    )
    add_member(f"{key}.json", key.join(_json_parts(shapes)).encode())
    return [
        add_member(f"{key}.{suffix}", sample.data)
        for suffix, sample in zip(suffixes, samples, strict=True)
    ]


def index_row(document: int, sample: Sample, offset: int, first_crc: int) -> tuple[int, ...]:
    """A segment's row of the index, in the order of INDEX_DTYPE."""
    header = sample.header
    form = OWN_FILE if sample.is_file else DEEP if sample.is_deep else DECODED
    code = MODALITIES[sample.modality].code
    sizes = (header.channels, header.width, header.height, header.rate)
    return (document, code, form, *sizes, first_crc, offset, len(sample.data))


@lru_cache(maxsize=256)
def _json_parts(shapes: tuple[SegmentShape, ...]) -> list[str]:
    """A document's JSON, cut at the places of its key, whose characters need no escapes."""
    parts = ['{"key": "', '", "segments": [']
    for modality, header, is_file, is_deep, suffix, source in shapes:
        description = {
            "source": source,
            **{name: value for name, value in header._asdict().items() if value},
            **({"is_file": True} if is_file else {}),
            **({"is_deep": True} if is_deep else {}),
        }
        comma = "" if len(parts) == 2 else ", "
        parts[-1] += f'{comma}{{"modality": "{modality}", "member": "'
        parts.append(f'.{suffix}", {json.dumps(description)[1:]}')
    parts[-1] += "]}"
    return parts

"""Documents as the bytes and the index rows that a shard has of them.

A piece is made in one process and appended to a shard in another, without work for each document
there.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import lru_cache
from itertools import chain
from typing import NamedTuple

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
from bytelm.pipelines.storage.tar_writer import BLOCK_BYTES, fill_headers, padding_parts

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
    """Collects documents to a piece, whose bytes are laid out for all of them at once."""

    def __init__(self) -> None:
        self._names: list[str] = []  # of members
        self._data: list[bytes | memoryview] = []  # of members
        self._documents: list[int] = []  # of segments
        self._members: list[int] = []  # of segments
        self._forms: list[SegmentForm] = []  # of segments
        self._last_members: list[int] = []  # of documents

    def add(self, key: str, sources: Sequence[str], samples: Sequence[Sample]) -> None:
        """Append a document; see ShardWriter.add."""
        document = len(self._last_members)
        members = add_document(self._add_member, key, sources, samples)
        self._documents += [document] * len(samples)
        self._members += members
        self._forms += map(segment_form, samples)
        self._last_members.append(members[-1])

    def finish(self) -> tuple[list[bytes | memoryview], ShardPiece]:
        """The bytes of all members in parts, and a piece whose `members` are yet to be set."""
        sizes = np.fromiter(map(len, self._data), np.int64, len(self._data))
        padding = -sizes % BLOCK_BYTES
        ends = np.cumsum(BLOCK_BYTES + sizes + padding)
        checksums = [chunk_checksums(self._data[member]) for member in self._members]
        first_crcs = np.cumsum([0, *map(len, checksums)])[:-1]
        index = np.empty(len(self._members), INDEX_DTYPE)
        index["document"] = self._documents
        forms = list(dict.fromkeys(self._forms))
        numbers = {form: number for number, form in enumerate(forms)}
        values = np.array(forms)[[numbers[form] for form in self._forms]]
        for column, name in enumerate(SegmentForm._fields):
            index[name] = values[:, column]
        index["first_crc"] = first_crcs
        index["offset"] = (ends - sizes - padding)[self._members]
        index["size"] = sizes[self._members]
        piece = ShardPiece(
            members=b"",
            ends=ends[self._last_members],
            index=index,
            checksums=np.fromiter(chain.from_iterable(checksums), "<u4"),
        )
        return self._layout(sizes, padding), piece

    def _layout(
        self, sizes: npt.NDArray[np.int64], padding: npt.NDArray[np.int64]
    ) -> list[bytes | memoryview]:
        """The bytes of all members: header, data and padding of each."""
        count = len(sizes)
        headers = np.empty((count, BLOCK_BYTES), np.uint8)
        names = np.array(self._names, "S").view(np.uint8).reshape(count, -1)
        fill_headers(headers, names, sizes)
        parts: list[bytes | memoryview] = [b""] * (3 * count)
        parts[::3] = [row.data for row in headers]
        parts[1::3] = self._data
        parts[2::3] = padding_parts(padding)
        return parts

    def _add_member(self, name: str, data: bytes) -> int:
        """Append a member, and return its number."""
        self._names.append(name)
        self._data.append(data)
        return len(self._names) - 1


class SegmentForm(NamedTuple):
    """The values of a segment's row in the index that do not depend on its place."""

    modality: int
    is_file: int
    channels: int
    width: int
    height: int
    rate: int


def segment_form(sample: Sample) -> SegmentForm:
    """The form of a sample."""
    header = sample.header
    form = OWN_FILE if sample.is_file else DEEP if sample.is_deep else DECODED
    code = MODALITIES[sample.modality].code
    return SegmentForm(code, form, header.channels, header.width, header.height, header.rate)


def add_document(
    add_member: Callable[[str, bytes], int],
    key: str,
    sources: Sequence[str],
    samples: Sequence[Sample],
) -> list[int]:
    """Append a document's members, and return what `add_member` says of each sample's.

    Args:
        add_member: appends a member of a name, and returns its place.
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
    add_member(f"{key}.json", key.join(json_parts(shapes)).encode())
    return [
        add_member(f"{key}.{suffix}", sample.data)
        for suffix, sample in zip(suffixes, samples, strict=True)
    ]


def index_row(document: int, sample: Sample, offset: int, first_crc: int) -> tuple[int, ...]:
    """A segment's row of the index, in the order of INDEX_DTYPE."""
    return (document, *segment_form(sample), first_crc, offset, len(sample.data))


@lru_cache(maxsize=256)
def json_parts(shapes: tuple[SegmentShape, ...]) -> list[str]:
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

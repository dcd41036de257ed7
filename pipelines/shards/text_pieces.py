"""Many documents of one text each as the bytes and the index rows that a shard has of them.

What stands before the texts, two headers and a description, differs in the key and the size alone.
It is laid out for all documents at once, so that little is left to do for each.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
import numpy.typing as npt
from isal import isal_zlib

from bytelm.modalities import MODALITIES
from bytelm.modalities.base import Header, Sample
from bytelm.pipelines.shards.format import (
    CRC_CHUNK,
    INDEX_DTYPE,
    Checksums,
    Index,
    chunk_checksums,
)
from bytelm.pipelines.shards.pieces import ShardPiece, json_parts, segment_form
from bytelm.pipelines.storage.tar_writer import BLOCK_BYTES, fill_headers

_TEXT = Sample("text", Header(), b"")


def text_piece(
    keys: Sequence[str],
    source: str,
    texts: Sequence[bytes | memoryview],
    reserve: Callable[[int], memoryview],
) -> ShardPiece:
    """Write the members of all documents to memory, and return a piece without its `members`.

    Args:
        keys: [documents] their names, in ASCII and unique in the set; at least one.
        source: name of the file of all texts.
        texts: [documents] bytes of each, none of them empty.
        reserve: gives memory for a number of bytes, whatever stood there before.
    """
    sizes = np.fromiter(map(len, texts), np.int64, len(texts))
    lengths = np.fromiter(map(len, keys), np.int64, len(keys))
    groups = [np.flatnonzero(lengths == length) for length in sorted(set(lengths.tolist()))]
    beginnings = [
        _beginnings([keys[row] for row in rows.tolist()], source, sizes[rows]) for rows in groups
    ]
    blocks = -(-sizes // BLOCK_BYTES)  # of each text, and then of all members of its document
    for rows, part in zip(groups, beginnings, strict=True):
        blocks[rows] += part.shape[1]
    ends = np.cumsum(blocks)
    memory = reserve(int(ends[-1]) * BLOCK_BYTES)
    grid = np.frombuffer(memory, np.uint8).reshape(-1, BLOCK_BYTES)
    for rows, part in zip(groups, beginnings, strict=True):
        first = (ends - blocks)[rows]
        grid[first[:, None] + np.arange(part.shape[1])] = part
    grid[ends - 1] = 0  # the padding, before which the end of the text is written
    index = _index(sizes, ends * BLOCK_BYTES)
    for offset, text in zip(index["offset"].tolist(), texts, strict=True):
        memory[offset : offset + len(text)] = text
    return ShardPiece(b"", ends * BLOCK_BYTES, index, _checksums(texts, index))


def _index(sizes: npt.NDArray[np.int64], ends: npt.NDArray[np.int64]) -> Index:
    """[documents] rows of the index.

    Args:
        sizes: [documents] bytes of each text.
        ends: [documents] where the members of each end.
    """
    chunks = -(-sizes // CRC_CHUNK)
    index = np.zeros(len(sizes), INDEX_DTYPE)
    for name, value in segment_form(_TEXT)._asdict().items():
        index[name] = value
    index["document"] = np.arange(len(sizes))
    index["first_crc"] = np.cumsum(chunks) - chunks
    index["offset"] = ends - -(-sizes // BLOCK_BYTES) * BLOCK_BYTES
    index["size"] = sizes
    return index


def _checksums(texts: Sequence[bytes | memoryview], index: Index) -> Checksums:
    """The checksums of all texts; most have one chunk, which costs no Python for each."""
    chunks = -(-index["size"].astype(np.int64) // CRC_CHUNK)
    whole = np.fromiter(map(isal_zlib.crc32, texts), "<u4", len(texts))
    checksums = whole.repeat(chunks)
    for row in np.flatnonzero(chunks > 1).tolist():
        first = int(index["first_crc"][row])
        checksums[first : first + int(chunks[row])] = chunk_checksums(texts[row])
    return checksums


def _beginnings(
    keys: Sequence[str], source: str, sizes: npt.NDArray[np.int64]
) -> npt.NDArray[np.uint8]:
    """[documents, blocks, BLOCK_BYTES] all that stands before each text.

    Args:
        keys: names of the same length.
        source: name of the file of all texts.
        sizes: [documents] bytes of each text.
    """
    count, length = len(keys), len(keys[0])
    key_bytes = np.frombuffer("".join(keys).encode("ascii"), np.uint8).reshape(count, length)
    suffix = MODALITIES["text"].member_suffix(_TEXT)
    texts = json_parts((("text", _TEXT.header, False, False, suffix, source),))
    description = (b"\0" * length).join(text.encode() for text in texts)
    padded = len(description) + -len(description) % BLOCK_BYTES
    beginnings = np.zeros((count, BLOCK_BYTES + padded + BLOCK_BYTES), np.uint8)
    headers = beginnings[:, :BLOCK_BYTES], beginnings[:, BLOCK_BYTES + padded :]
    fill_headers(headers[0], _names(key_bytes, "json"), np.full(count, len(description)))
    fill_headers(headers[1], _names(key_bytes, suffix), sizes)
    place = BLOCK_BYTES
    beginnings[:, place : place + len(description)] = np.frombuffer(description, np.uint8)
    for text in texts[:-1]:
        place += len(text.encode())
        beginnings[:, place : place + length] = key_bytes
        place += length
    return beginnings.reshape(count, -1, BLOCK_BYTES)


def _names(key_bytes: npt.NDArray[np.uint8], suffix: str) -> npt.NDArray[np.uint8]:
    """[documents, characters] names of members."""
    ending = np.frombuffer(f".{suffix}".encode("ascii"), np.uint8)
    return np.hstack([key_bytes, np.broadcast_to(ending, (len(key_bytes), len(ending)))])

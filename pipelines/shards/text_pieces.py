"""Many documents of one text each as the bytes and the index rows that a shard has of them.

What stands before the texts, two headers and a description, differs in the key and the size alone.
It is laid out for all documents at once, so that little is left to do for each.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt
from isal import isal_zlib

from bytelm.modalities import MODALITIES
from bytelm.modalities.base import Header, Sample
from bytelm.pipelines.shards.format import CRC_CHUNK, INDEX_DTYPE, chunk_checksums
from bytelm.pipelines.shards.pieces import ShardPiece, json_parts, segment_form
from bytelm.pipelines.storage.tar_writer import BLOCK_BYTES, fill_headers, padding_parts

_TEXT = Sample("text", Header(), b"")


def text_piece(
    keys: Sequence[str], source: str, texts: Sequence[bytes | memoryview]
) -> tuple[list[bytes | memoryview], ShardPiece]:
    """The bytes of all members in parts, and a piece whose `members` are yet to be set.

    Args:
        keys: [documents] their names, in ASCII and unique in the set; at least one.
        source: name of the file of all texts.
        texts: [documents] bytes of each, none of them empty.
    """
    count = len(texts)
    sizes = np.fromiter(map(len, texts), np.int64, count)
    padding = -sizes % BLOCK_BYTES
    beginnings: list[bytes | memoryview] = [b""] * count
    lengths = np.fromiter(map(len, keys), np.int64, count)
    for length in np.unique(lengths).tolist():
        rows = np.flatnonzero(lengths == length).tolist()
        part = _beginnings([keys[row] for row in rows], source, sizes[rows])
        data, width = part.reshape(-1).data, part.shape[1]
        for number, row in enumerate(rows):
            beginnings[row] = data[number * width : (number + 1) * width]
    starts = np.fromiter(map(len, beginnings), np.int64, count)
    ends = np.cumsum(starts + sizes + padding)
    chunks = -(-sizes // CRC_CHUNK)
    index = np.zeros(count, INDEX_DTYPE)
    for name, value in segment_form(_TEXT)._asdict().items():
        index[name] = value
    index["document"] = np.arange(count)
    index["first_crc"] = np.cumsum(chunks) - chunks
    index["offset"] = ends - padding - sizes
    index["size"] = sizes
    checksums = np.fromiter(map(isal_zlib.crc32, texts), "<u4", count).repeat(chunks)
    for row in np.flatnonzero(chunks > 1).tolist():
        first = int(index["first_crc"][row])
        checksums[first : first + int(chunks[row])] = chunk_checksums(texts[row])
    parts: list[bytes | memoryview] = [b""] * (3 * count)
    parts[::3], parts[1::3], parts[2::3] = beginnings, texts, padding_parts(padding)
    return parts, ShardPiece(b"", ends, index, checksums)


def _beginnings(
    keys: Sequence[str], source: str, sizes: npt.NDArray[np.int64]
) -> npt.NDArray[np.uint8]:
    """[documents, bytes] all that stands before each text.

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
    return beginnings


def _names(key_bytes: npt.NDArray[np.uint8], suffix: str) -> npt.NDArray[np.uint8]:
    """[documents, characters] names of members."""
    ending = np.frombuffer(f".{suffix}".encode("ascii"), np.uint8)
    return np.hstack([key_bytes, np.broadcast_to(ending, (len(key_bytes), len(ending)))])

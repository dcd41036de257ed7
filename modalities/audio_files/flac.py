"""FLAC: the header's facts, and the MD5 checksum of the samples.

RFC 9639: STREAMINFO (section 8.2) holds rate, channels, bits, the number of frames, and the MD5 of
all samples, interleaved, little-endian, each in as few whole bytes as its bits need. libFLAC checks
it only where asked to, and libsndfile does not ask.

m frames of a block    c channels
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import pairwise
from typing import BinaryIO

import numpy as np
import numpy.typing as npt

from bytelm.modalities.audio_files.stream import Block
from bytelm.modalities.base import MediaError

STREAM_INFO_BYTES = 34
NO_CHECKSUM = bytes(16)
JOINED = "several FLAC files joined"

_START = re.compile(rb"fLaC[\0\x80]\0\0\x22")
_SEARCH_BYTES = 1 << 20


@dataclass(frozen=True)
class StreamInfo:
    """The facts in the first metadata block of a FLAC stream."""

    rate: int
    channels: int
    bits: int
    frames: int
    """0 where the encoder did not know."""
    checksum: bytes
    """MD5 of the samples; zeros where the encoder did not make it."""

    @property
    def form(self) -> str:
        """Channels, rate and bits in words; streams that can be joined have the same."""
        return f"{self.channels} channels, {self.rate} samples a second and {self.bits} bits"


def parse_stream_info(block: bytes) -> StreamInfo:
    """The facts of STREAMINFO, given its 34 bytes; MediaError where there are fewer."""
    if len(block) < STREAM_INFO_BYTES:
        raise MediaError("truncated", "the file ends inside its header")
    facts = int.from_bytes(block[10:18])
    return StreamInfo(
        rate=facts >> 44,
        channels=(facts >> 41 & 7) + 1,
        bits=(facts >> 36 & 31) + 1,
        frames=facts & (1 << 36) - 1,
        checksum=block[18:34],
    )


def find_streams(file: BinaryIO, start: int, end: int) -> list[range]:
    """The bytes of each FLAC stream of a file from a position on; several where files were joined.

    libsndfile reads the first stream only.
    """
    starts = []
    overlap = b""
    file.seek(start)
    for position in range(start, end, _SEARCH_BYTES):
        data = overlap + file.read(min(_SEARCH_BYTES, end - position))
        found = _START.finditer(data)
        starts += [position - len(overlap) + match.start() for match in found]
        overlap = data[-7:]  # a byte less than the pattern
    return [range(*pair) for pair in pairwise([*(starts or [start]), end])]


def checked_blocks(blocks: Iterator[Block], info: StreamInfo) -> Iterator[Block]:
    """Pass blocks on, and compare their MD5 with the header's after the last one."""
    digest = hashlib.md5(usedforsecurity=False)
    for block in blocks:
        digest.update(_stored_bytes(block, info.bits))
        yield block
    if digest.digest() != info.checksum:
        raise MediaError("damaged", "the samples do not match the MD5 checksum in the header")


def _stored_bytes(block: Block, bits: int) -> memoryview | bytes:
    """The bytes that the checksum is made of, for [m c] samples with the high bit on top."""
    width = block.dtype.itemsize
    samples = np.ascontiguousarray(block.astype(block.dtype.newbyteorder("<"), copy=False))
    wanted = (bits + 7) // 8
    if bits == 8 * width:
        return samples.data
    samples = samples >> (8 * width - bits)
    if width == 4 and wanted == 3 and samples.size % 4 == 0:
        return _three_byte_samples(samples.view(np.uint32).reshape(-1, 4)).data
    return samples.view(np.uint8).reshape(-1, width)[:, :wanted].tobytes()


def _three_byte_samples(samples: npt.NDArray[np.uint32]) -> npt.NDArray[np.uint32]:
    """[k 3] numbers that hold the low 24 bits of [k 4] samples, in a third of the time of bytes."""
    low = samples & 0xFFFFFF
    packed = np.empty((len(samples), 3), "<u4")
    packed[:, 0] = low[:, 0] | low[:, 1] << 24
    packed[:, 1] = low[:, 1] >> 8 | low[:, 2] << 16
    packed[:, 2] = low[:, 2] >> 16 | low[:, 3] << 8
    return packed

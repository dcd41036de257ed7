"""Sizes that MP4, Matroska, ASF, AAC and AMR files state, against the bytes present.

FFmpeg reads a cut file up to the cut without an error.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from typing import BinaryIO

from bytelm.modalities.audio_files.containers import TRAILING, TRAILING_BYTES
from bytelm.modalities.audio_files.mp3 import id3_size
from bytelm.modalities.base import MediaError

BOXES = frozenset(b"ftyp moov mdat moof mfra sidx styp free skip wide udta meta uuid".split())
"""Names of MP4 boxes that stand at the top."""

EBML_SEGMENT = 0x18538067

ASF_HEADER_BYTES = 30
ASF_FILE_PROPERTIES = bytes.fromhex("a1dcab8c47a9cf118ee400c00c205365")
ASF_BROADCAST = 1

ADTS_HEADER_BYTES = 7
AMR_FRAME_BYTES = {
    b"#!AMR\n": (13, 14, 16, 18, 20, 21, 27, 32, 6, 1, 1, 1, 1, 1, 1, 1),
    b"#!AMR-WB\n": (18, 24, 33, 37, 41, 47, 51, 59, 61, 6, 1, 1, 1, 1, 1, 1),
}
"""Bytes of a frame by the type in its first byte, by the file's first bytes."""


def check_boxes(file: BinaryIO, demuxer: str) -> list[str]:
    """Check that a file for a demuxer of FFmpeg does not end before it says it does.

    Returns notes; raises MediaError.
    """
    checks: dict[str, Callable[[BinaryIO, int], int]] = {
        "mov": _check_mp4,
        "matroska": _check_matroska,
        "asf": _check_asf,
        "aac": _check_adts,
        "amr": _check_amr,
    }
    size = file.seek(0, os.SEEK_END)
    end = checks[demuxer](file, size) if demuxer in checks else size
    if size - end > TRAILING_BYTES:
        raise MediaError("damaged", f"{size - end} bytes at {end} that are no part of the file")
    return [TRAILING] if size > end else []


def _cut(position: int, what: str) -> MediaError:
    return MediaError("truncated", f"the {what} at byte {position} is cut")


def _check_mp4(file: BinaryIO, size: int) -> int:
    """Walk the boxes of ISO 14496-12: a size u32, a name, and a size u64 where the first is 1.

    Returns the end of the last box, as the checks of the other formats do.
    """
    position, found = 0, set()
    while position + 8 <= size:
        file.seek(position)
        head = file.read(16)
        length, name = int.from_bytes(head[:4]), head[4:8]
        if name not in BOXES and b"moov" in found:
            break
        if length == 1:
            length = int.from_bytes(head[8:])
        length = length or size - position
        if length < 8:
            raise MediaError("damaged", f"an MP4 box of {length} bytes at byte {position}")
        if position + length > size:
            raise _cut(position, f"MP4 box {name.decode('latin-1')}")
        found.add(name)
        position += length
    if b"moov" not in found:
        raise MediaError("truncated", "an MP4 without its index (moov): it was never completed")
    return position


def _check_matroska(file: BinaryIO, size: int) -> int:
    """Walk the elements of RFC 8794 that the segment holds. Those without a size are entered."""
    position, end = 0, size
    while position < end:
        file.seek(position)
        head = file.read(12)
        id_bytes = 9 - head[0].bit_length()
        if id_bytes > 4 or len(head) <= id_bytes:
            raise MediaError("damaged", f"no Matroska element at byte {position}")
        element = int.from_bytes(head[:id_bytes])
        size_bytes = 9 - head[id_bytes].bit_length()
        start = id_bytes + size_bytes
        if size_bytes > 8 or len(head) < start:
            raise _cut(position, "Matroska element")
        largest = (1 << 7 * size_bytes) - 1
        length = int.from_bytes(head[id_bytes:start]) & largest
        position += start
        if length == largest:
            continue
        if position + length > size:
            raise _cut(position - start, "Matroska element")
        if element == EBML_SEGMENT:
            end = position + length
        else:
            position += length
    return end


def _check_asf(file: BinaryIO, size: int) -> int:
    """Compare the size in the file properties object, which a broadcast does not know."""
    file.seek(0)
    header = file.read(min(size, 1 << 20))
    found = header.find(ASF_FILE_PROPERTIES, ASF_HEADER_BYTES)
    if found < 0 or len(header) < found + 92:
        raise MediaError("truncated", "the file ends inside its header")
    stated = int.from_bytes(header[found + 40 : found + 48], "little")
    flags = int.from_bytes(header[found + 88 : found + 92], "little")
    if stated > size and not flags & ASF_BROADCAST:
        raise MediaError("truncated", f"{size} bytes where the header says {stated}")
    return size


def _check_adts(file: BinaryIO, size: int) -> int:
    """Walk the frames of AAC in ADTS (ISO 13818-7): 12 bits of sync, 13 bits of size."""
    file.seek(0)
    data = file.read()
    position = id3_size(data[:64])
    while position < size:
        head = data[position : position + ADTS_HEADER_BYTES]
        if head[:1] != b"\xff":
            break
        if len(head) < ADTS_HEADER_BYTES:
            raise _cut(position, "AAC frame")
        length = (head[3] & 3) << 11 | head[4] << 3 | head[5] >> 5
        if head[1] & 0xF6 != 0xF0 or length < ADTS_HEADER_BYTES:
            raise MediaError("damaged", f"no AAC frame at byte {position}")
        position += length
        if position > size:
            raise _cut(position - length, "AAC frame")
    return position


def _check_amr(file: BinaryIO, size: int) -> int:
    """Walk the frames of AMR (RFC 4867, section 5): their size follows from the first byte."""
    file.seek(0)
    data = file.read()
    for start, sizes in AMR_FRAME_BYTES.items():
        if data.startswith(start):
            position = len(start)
            while position < size:
                length = sizes[data[position] >> 3 & 15]
                if position + length > size:
                    raise _cut(position, "AMR frame")
                position += length
            return position
    raise MediaError("unreadable", "AMR of several channels")

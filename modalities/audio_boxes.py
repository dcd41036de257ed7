"""Sizes that MP4, Matroska, ASF, AAC and AMR files state, against the bytes present.

FFmpeg reads a cut file up to the cut without an error.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from typing import BinaryIO

from bytelm.modalities.base import MediaError

BOX_NAMES = frozenset(range(0x20, 0x7F)) | {0xA9}
UNKNOWN_TAIL_BYTES = 1 << 16

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


def check_boxes(file: BinaryIO, demuxer: str) -> None:
    """Raise MediaError where a file for a demuxer of FFmpeg ends before it says it does."""
    checks: dict[str, Callable[[BinaryIO, int], None]] = {
        "mov": _check_mp4,
        "matroska": _check_matroska,
        "asf": _check_asf,
        "aac": _check_adts,
        "amr": _check_amr,
    }
    if demuxer in checks:
        checks[demuxer](file, file.seek(0, os.SEEK_END))


def _cut(position: int, what: str) -> MediaError:
    return MediaError("truncated", f"the {what} at byte {position} is cut")


def _check_mp4(file: BinaryIO, size: int) -> None:
    """Walk the boxes of ISO 14496-12: a size u32, a name, and a size u64 where the first is 1."""
    position, has_index = 0, False
    while position + 8 <= size:
        file.seek(position)
        head = file.read(16)
        length, name = int.from_bytes(head[:4]), head[4:8]
        if not BOX_NAMES.issuperset(name):
            if has_index and size - position <= UNKNOWN_TAIL_BYTES:
                return
            raise MediaError("damaged", f"no MP4 box at byte {position}")
        if length == 1:
            length = int.from_bytes(head[8:])
        length = length or size - position
        if length < 8:
            raise MediaError("damaged", f"an MP4 box of {length} bytes at byte {position}")
        if position + length > size:
            raise _cut(position, f"MP4 box {name.decode('latin-1')}")
        has_index = has_index or name == b"moov"
        position += length
    if not has_index:
        raise MediaError("truncated", "an MP4 without its index (moov): it was never completed")


def _check_matroska(file: BinaryIO, size: int) -> None:
    """Walk the elements of RFC 8794 that the segment holds. Those without a size are entered."""
    position = 0
    while position < size:
        file.seek(position)
        head = file.read(12)
        id_bytes = 9 - head[0].bit_length()
        if id_bytes > 4 or len(head) <= id_bytes:
            if position and size - position <= UNKNOWN_TAIL_BYTES:
                return
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
        if element != EBML_SEGMENT:
            position += length


def _check_asf(file: BinaryIO, size: int) -> None:
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


def _check_adts(file: BinaryIO, size: int) -> None:
    """Walk the frames of AAC in ADTS (ISO 13818-7): 12 bits of sync, 13 bits of size."""
    file.seek(0)
    data = file.read()
    position = 0
    while position < size:
        head = data[position : position + ADTS_HEADER_BYTES]
        if head[:3] in (b"TAG", b"ID3") and position:
            return
        if len(head) < ADTS_HEADER_BYTES:
            raise _cut(position, "AAC frame")
        length = (head[3] & 3) << 11 | head[4] << 3 | head[5] >> 5
        if head[0] != 0xFF or head[1] & 0xF6 != 0xF0 or length < ADTS_HEADER_BYTES:
            raise MediaError("damaged", f"no AAC frame at byte {position}")
        position += length
        if position > size:
            raise _cut(position - length, "AAC frame")


def _check_amr(file: BinaryIO, size: int) -> None:
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
            return
    raise MediaError("unreadable", "AMR of several channels")

"""Checks of a sound file's container against the bytes present in the file.

libsndfile opens a truncated WAV, AIFF or Ogg file without an error and reads the rest, so these
checks come before it.
"""

from __future__ import annotations

import os
from typing import BinaryIO, Literal

from bytelm.modalities.base import MediaError

OGG_PAGE_MAX = 65_307  # bytes: 27 of header, 255 lacing values, 255 x 255 of payload
OGG_LAST_PAGE = 4
ID3_HEADER = 10


def check_container(file: BinaryIO, limit: int) -> None:
    """Raise MediaError where a file claims more sample bytes than `limit`, or than it has."""
    file.seek(0)
    start = file.read(12)
    size = file.seek(0, os.SEEK_END)
    if start[:4] == b"RIFF":
        _check_chunks(file, size, limit, order="little", wanted=b"data")
    elif start[:4] == b"FORM":
        _check_chunks(file, size, limit, order="big", wanted=b"SSND")
    elif start[:4] == b"OggS":
        _check_last_page(file, size)


def _check_chunks(
    file: BinaryIO, size: int, limit: int, order: Literal["little", "big"], wanted: bytes
) -> None:
    """Check the chunk of samples; a chunk is a name, a size u32 and data padded to even."""
    position = 12
    while position + 8 <= size:
        file.seek(position)
        name, length = file.read(4), int.from_bytes(file.read(4), order)
        if name == wanted:
            if length > limit:
                raise MediaError("over the limit", f"the header claims {length} bytes of samples")
            if position + 8 + length > size:
                raise MediaError(
                    "truncated",
                    f"{size - position - 8} bytes of samples where the header says {length}",
                )
            return
        position += 8 + length + length % 2
    raise MediaError("truncated", "the file ends before its samples")


def _check_last_page(file: BinaryIO, size: int) -> None:
    """Check that the last page of an Ogg file is whole and marked as the last."""
    file.seek(max(0, size - OGG_PAGE_MAX))
    tail = file.read()
    page = tail[max(0, tail.rfind(b"OggS")) :]
    lacing = page[27 : 27 + page[26]] if len(page) > 26 else b""
    if not lacing or len(page) < 27 + len(lacing) + sum(lacing):
        raise MediaError("truncated", "the last Ogg page is cut")
    if not page[5] & OGG_LAST_PAGE:
        raise MediaError("truncated", "the last Ogg page is not marked as the last")


def mp3_states_length(file: BinaryIO) -> bool:
    """Whether the first frame of an MP3 says how many follow (a Xing or Info header).

    Without it libsndfile guesses the length from the file's size.
    """
    file.seek(0)
    start = file.read(ID3_HEADER)
    if start[:3] == b"ID3":
        seven_bits = start[6:10]
        file.seek(ID3_HEADER + sum(b << (7 * (3 - i)) for i, b in enumerate(seven_bits)))
    else:
        file.seek(0)
    frame = file.read(256)
    return b"Xing" in frame or b"Info" in frame

"""What the container of a sound file claims, against the bytes that are there.

libsndfile quietly takes a WAV, AIFF or Ogg file that was cut, and plays what is left; so the
claims are checked here, before it opens the file.
"""

from __future__ import annotations

import os
from typing import BinaryIO, Literal

from bytelm.modalities.base import MediaError

OGG_PAGE_MAX = 65_307  # bytes: 27 of header, 255 lacing values, 255 x 255 of payload
OGG_LAST_PAGE = 4
ID3_HEADER = 10


def check_container(file: BinaryIO, limit: int) -> None:
    """Raise MediaError for a file that claims more sample bytes than `limit`, or than it has."""
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
    """Walk the chunks (name, size u32, data padded to even) to the one that holds samples."""
    at = 12
    while at + 8 <= size:
        file.seek(at)
        name, length = file.read(4), int.from_bytes(file.read(4), order)
        if name == wanted:
            if length > limit:
                raise MediaError("over the limit", f"the header claims {length} bytes of samples")
            if at + 8 + length > size:
                raise MediaError(
                    "truncated",
                    f"{size - at - 8} bytes of samples where the header says {length}",
                )
            return
        at += 8 + length + length % 2
    raise MediaError("truncated", "the file ends before its samples")


def _check_last_page(file: BinaryIO, size: int) -> None:
    """The last page of an Ogg file has to be whole and marked as the last."""
    file.seek(max(0, size - OGG_PAGE_MAX))
    tail = file.read()
    page = tail[max(0, tail.rfind(b"OggS")) :]
    lacing = page[27 : 27 + page[26]] if len(page) > 26 else b""
    if not lacing or len(page) < 27 + len(lacing) + sum(lacing):
        raise MediaError("truncated", "the last Ogg page is cut")
    if not page[5] & OGG_LAST_PAGE:
        raise MediaError("truncated", "the last Ogg page is not marked as the last")


def mp3_states_length(file: BinaryIO) -> bool:
    """Whether an MP3's first frame says how many frames follow (a Xing or Info header);
    otherwise its length is a guess from the file's size."""
    file.seek(0)
    start = file.read(ID3_HEADER)
    if start[:3] == b"ID3":
        seven_bits = start[6:10]
        file.seek(ID3_HEADER + sum(b << (7 * (3 - i)) for i, b in enumerate(seven_bits)))
    else:
        file.seek(0)
    frame = file.read(256)
    return b"Xing" in frame or b"Info" in frame

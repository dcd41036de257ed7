"""Sizes in the headers of WAV, RF64, RIFX, W64, AIFF, CAF and AU files against the bytes present.

libsndfile opens a cut file without an error and reads the rest, and it takes a header that was
never completed for a sound of no frames. These checks come before it, and hand it a file whose
header says the size that is there.
"""

from __future__ import annotations

import os
import string
from collections.abc import Iterator
from dataclasses import dataclass
from typing import BinaryIO, Literal

from bytelm.modalities.base import MediaError
from bytelm.modalities.spliced_file import spliced

STREAMED = "streamed: no length in the header"
UNFINISHED = "header was never completed"
TRAILING = "bytes after the end left out"
TRAILING_BYTES = 1 << 16
"""Bytes after a sound that may be left out; where more follow, they may be samples."""

W64_RIFF = b"riff\x2e\x91\xcf\x11\xa5\xd6\x28\xdb\x04\xc1\x00\x00"
W64_DATA = b"data\xf3\xac\xd3\x11\x8c\xd1\x00\xc0\x4f\x8e\xdb\x8a"
HEADER_BYTES = 1 << 24
"""Bytes before the samples that are held in memory to mend a header."""

ByteOrder = Literal["little", "big"]
_NAME_CHARACTERS = frozenset((string.ascii_letters + string.digits + " _-.").encode())


@dataclass(frozen=True)
class _Field:
    """A number in a header."""

    position: int
    width: int
    order: ByteOrder

    def read(self, file: BinaryIO) -> int:
        file.seek(self.position)
        return int.from_bytes(file.read(self.width), self.order)


@dataclass(frozen=True)
class _Samples:
    """The samples in a container."""

    start: int
    """Position of the first byte."""
    size: _Field
    """The field that says how many bytes there are."""
    extra: int = 0
    """Bytes that the field counts beside the samples'."""
    rest: Literal["chunks", "nothing"] = "nothing"
    """Kind of content that may follow the samples."""
    order: ByteOrder = "little"
    are_last: bool = False
    """Whether libsndfile takes what follows the samples for more of them."""


def mend_container(file: BinaryIO, limit: int) -> tuple[BinaryIO, list[str]]:
    """Check the size of the samples that a file states.

    Returns:
        the file, or one with the header mended that ends with the samples; and notes.
    Raises:
        MediaError: the file states more sample bytes than `limit`, or than it has.
    """
    size = file.seek(0, os.SEEK_END)
    samples = _find_samples(file, size)
    if samples is None:
        return file, []
    stated = samples.size.read(file) - samples.extra
    present = size - samples.start
    note = _unknown_size(file, samples, stated, size)
    if note is None:
        if stated > limit:
            raise MediaError("over the limit", f"the header claims {stated} bytes of samples")
        if stated > present:
            raise MediaError(
                "truncated", f"{present} bytes of samples where the header says {stated}"
            )
        end = samples.start + max(stated, 0)
        notes = _check_rest(file, samples, end, size)
        if samples.are_last:
            file = spliced(file, [range(end)])
        return file, notes
    if present > limit:
        raise MediaError("over the limit", f"{present} bytes of samples")
    if samples.start > HEADER_BYTES:
        raise MediaError("unreadable", f"a header of {samples.start} bytes")
    return _mended(file, samples, present, size), [note]


def wave_codec(file: BinaryIO) -> int | None:
    """The number of the codec of a WAV; None where it has no chunk `fmt `."""
    for start, name, _ in _chunks(file, file.seek(0, os.SEEK_END), 12, "little"):
        if name == b"fmt ":
            return _Field(start + 8, 2, "little").read(file)
    return None


def _find_samples(file: BinaryIO, size: int) -> _Samples | None:
    """Where the samples of a container lie; None for formats that state no size."""
    file.seek(0)
    start = file.read(16)
    kind = start[:4]
    if kind in (b"RIFF", b"RIFX"):
        return _riff_samples(file, size, "little" if kind == b"RIFF" else "big")
    if kind == b"RF64":
        return _rf64_samples(file, size)
    if kind == b"FORM":
        position = _find_chunk(file, size, 12, b"SSND", "big")
        return _Samples(position + 16, _Field(position + 4, 4, "big"), 8, "chunks", "big")
    if start == W64_RIFF:
        return _w64_samples(file, size)
    if kind == b"caff":
        return _caf_samples(file, size)
    if kind == b".snd":
        return _Samples(_Field(4, 4, "big").read(file), _Field(8, 4, "big"))
    return None


def _riff_samples(file: BinaryIO, size: int, order: ByteOrder) -> _Samples:
    position = _find_chunk(file, size, 12, b"data", order)
    return _Samples(position + 8, _Field(position + 4, 4, order), 0, "chunks", order)


def _rf64_samples(file: BinaryIO, size: int) -> _Samples:
    """RF64 (EBU Tech 3306): sizes of 64 bits in a chunk `ds64` where those of 32 bits are -1."""
    samples = _riff_samples(file, size, "little")
    if samples.size.read(file) != 0xFFFFFFFF:
        return samples
    sizes = _find_chunk(file, size, 12, b"ds64", "little")
    return _Samples(samples.start, _Field(sizes + 16, 8, "little"), 0, "chunks")


def _w64_samples(file: BinaryIO, size: int) -> _Samples:
    """Sony Wave64: chunks of a GUID, a size u64 that counts their header too, padding to 8."""
    position = 40
    while position + 24 <= size:
        file.seek(position)
        name, length = file.read(16), int.from_bytes(file.read(8), "little")
        if name == W64_DATA:
            return _Samples(position + 24, _Field(position + 16, 8, "little"), 24, are_last=True)
        position += max(24, length + -length % 8)
    raise MediaError("truncated", "the file ends before its samples")


def _caf_samples(file: BinaryIO, size: int) -> _Samples:
    """Core Audio Format: chunks of a name and a size i64; `data` begins with an edit count."""
    position = 8
    while position + 12 <= size:
        file.seek(position)
        name, length = file.read(4), int.from_bytes(file.read(8), "big")
        if name == b"data":
            return _Samples(position + 16, _Field(position + 4, 8, "big"), 4)
        position += 12 + length
    raise MediaError("truncated", "the file ends before its samples")


def _find_chunk(file: BinaryIO, size: int, position: int, wanted: bytes, order: ByteOrder) -> int:
    """Position of the first chunk of a name; MediaError where the file ends before it."""
    for start, name, _ in _chunks(file, size, position, order):
        if name == wanted:
            return start
    raise MediaError("truncated", "the file ends before its samples")


def _chunks(
    file: BinaryIO, size: int, position: int, order: ByteOrder
) -> Iterator[tuple[int, bytes, int]]:
    """Position, name and stated length of chunks: a name, a size u32, data padded to even."""
    while position + 8 <= size:
        file.seek(position)
        name, length = file.read(4), int.from_bytes(file.read(4), order)
        yield position, name, length
        position += 8 + length + length % 2


def _unknown_size(file: BinaryIO, samples: _Samples, stated: int, size: int) -> str | None:
    """The note on a header that does not say its size; None where it does.

    Programs that write to a pipe leave the largest number (ffmpeg), one near 2 GiB (SoX, arecord)
    or 0; a recorder that crashes leaves 0.
    """
    present = size - samples.start
    written = stated + samples.extra
    if samples.size.width == 8:
        is_placeholder = written >= 1 << 62
    else:
        is_placeholder = 0x7FFFF000 <= written <= 0x80000000 or written >= 0xFFFFF000
    if stated > present and is_placeholder:
        return STREAMED
    if stated <= 0 < present and not _is_chunk_list(file, samples, samples.start, size):
        return UNFINISHED
    return None


def _is_chunk_list(file: BinaryIO, samples: _Samples, position: int, size: int) -> bool:
    """Whether chunks with printable names fill the file from a position to its end."""
    if samples.rest != "chunks":
        return False
    for start, name, length in _chunks(file, size, position, samples.order):
        if not _NAME_CHARACTERS.issuperset(name) or start + 8 + length > size:
            return False
        position = start + 8 + length + length % 2
    return position >= size - 7


def _check_rest(file: BinaryIO, samples: _Samples, end: int, size: int) -> list[str]:
    """Check that what follows the samples is no part of them; returns notes."""
    if samples.rest == "chunks":
        end += end % 2
        for start, name, length in _chunks(file, size, end, samples.order):
            if name in (b"data", b"SSND"):
                raise MediaError("unreadable", f"a second chunk of samples at byte {start}")
            if not _NAME_CHARACTERS.issuperset(name) or start + 8 + length > size:
                break
            end = start + 8 + length + length % 2
    elif end >= size or samples.size.width == 8:  # W64 and CAF: chunks follow
        return []
    if size - end > TRAILING_BYTES:
        raise MediaError("damaged", f"{size - end} bytes after the samples that are no chunk")
    return [TRAILING] if size > end else []


def _mended(file: BinaryIO, samples: _Samples, present: int, size: int) -> BinaryIO:
    """The file with the number of bytes that are there in its header."""
    file.seek(0)
    header = bytearray(file.read(samples.start))
    field = samples.size
    number = (present + samples.extra).to_bytes(field.width, field.order)
    header[field.position : field.position + field.width] = number
    return spliced(file, [bytes(header), range(samples.start, size)])

"""MP3: the frames of a file, tags between them, and files joined end to end.

ISO 11172-3 and 13818-3: a frame has four bytes of header, from which its size follows. The first
frame may be silent and hold a Xing, Info or VBRI header with the number of frames that follow.
Without one libsndfile guesses it from the file's size, and reads that many; a guess that is too
small cuts the sound. Here the frames are counted, and the header is made or mended.
"""

from __future__ import annotations

import functools
import re
import struct
from dataclasses import dataclass, field

from bytelm.modalities.audio_files.containers import TRAILING, TRAILING_BYTES
from bytelm.modalities.base import MediaError

JOINED = "several MP3 files joined"
LENGTH_MENDED = "length in the header was wrong"
LEADING = "bytes before the first frame left out"
ID3_BYTES = 10
ID3V1_BYTES = 128
APE_BYTES = 32
INFO_FRAME_BYTES = 192
"""Least size of a frame that decoders look into for a header."""

_RATES = (44100, 48000, 32000)
_BITRATES = {  # kbit/s, by whether the version is 1, and by the layer
    (True, 3): (0, 32, 40, 48, 56, 64, 80, 96, 112, 128, 160, 192, 224, 256, 320),
    (True, 2): (0, 32, 48, 56, 64, 80, 96, 112, 128, 160, 192, 224, 256, 320, 384),
    (False, 3): (0, 8, 16, 24, 32, 40, 48, 56, 64, 80, 96, 112, 128, 144, 160),
    (False, 2): (0, 8, 16, 24, 32, 40, 48, 56, 64, 80, 96, 112, 128, 144, 160),
}
_INFO = re.compile(b"Xing|Info|VBRI")


@dataclass
class Mp3Part:
    """Frames that follow one another, as one MP3 file has them."""

    start: int
    """Position of the first frame with sound."""
    end: int = 0
    frames: int = 0
    info: tuple[int, int] | None = None
    """Position and size of the frame with a Xing or Info header."""


@dataclass
class Mp3File:
    """The parts of an MP3 file, of which most have one."""

    parts: list[Mp3Part] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)

    def note(self, note: str) -> None:
        if note not in self.notes:
            self.notes.append(note)


def read_parts(data: bytes) -> Mp3File:
    """Count the frames of an MP3 file.

    Raises:
        MediaError: the last frame is cut, or bytes between frames are neither frame nor tag.
    """
    file = Mp3File()
    end = _end_of_frames(data)
    infos = _info_positions(data)
    position, part = 0, None
    while position < end:
        size = _frame_size(data, position)
        if not size:
            after_tag = _skip_tag(data, position)
            if after_tag is None:
                after_tag = _skip_junk(data, position, end, file)
            else:
                part = None
            position = after_tag
            continue
        if position + size > end:
            raise MediaError("truncated", f"the MP3 frame at byte {position} is cut")
        is_info = position in infos and _is_info_frame(data, position)
        if is_info or part is None:
            part = Mp3Part(position + size * is_info)
            file.parts.append(part)
            if is_info and data[position + 36 : position + 40] != b"VBRI":
                part.info = (position, size)
        if not is_info:
            part.frames += 1
        position += size
        part.end = position
    file.parts = [part for part in file.parts if part.frames]
    if not file.parts:
        raise MediaError("truncated" if infos else "unreadable", "no MP3 frame with sound")
    if len(file.parts) > 1:
        file.note(JOINED)
    return file


def mended_part(data: bytes, part: Mp3Part, file: Mp3File) -> bytes:
    """A part as an MP3 file whose header says how many frames there are.

    Raises MediaError where its own header says more.
    """
    if part.info is None:
        return _info_frame(data, part) + data[part.start : part.end]
    position, _ = part.info
    field = position + _info_offset(data, position) + 4
    flags, stated = struct.unpack_from(">II", data, field)
    if not flags & 1:
        return _info_frame(data, part) + data[part.start : part.end]
    if stated == part.frames:
        return data[position : part.end]
    counts_itself = (
        flags & 2
        and stated == part.frames + 1
        and struct.unpack_from(">I", data, field + 8)[0] == part.end - position
    )
    if stated > part.frames and not counts_itself:
        raise MediaError("truncated", f"{part.frames} frames where the header says {stated}")
    if not counts_itself:
        file.note(LENGTH_MENDED)
    numbers = struct.pack(">II", part.frames, part.end - position)[: 8 if flags & 2 else 4]
    return data[position : field + 4] + numbers + data[field + 4 + len(numbers) : part.end]


def is_layer_2(data: bytes, part: Mp3Part) -> bool:
    """Whether the frames of a part are of layer II, for which no header says the length."""
    return data[part.start + 1] >> 1 & 3 == 2


def _frame_size(data: bytes, position: int) -> int:
    """Bytes of the frame at a position; 0 where none begins there."""
    header = data[position : position + 4]
    if len(header) < 4 or header[0] != 0xFF:
        return 0
    size = _stated_size(header[1], header[2])
    return size if size >= 0 else _free_format_size(data, position)


@functools.cache
def _stated_size(second: int, third: int) -> int:
    """Frame size by the header's second and third byte; 0 for no frame, -1 for free format."""
    version, layer = second >> 3 & 3, 4 - (second >> 1 & 3)
    bitrate, rate = third >> 4, third >> 2 & 3
    if second < 0xE0 or version == 1 or layer not in (2, 3) or bitrate == 15 or rate == 3:
        return 0
    if bitrate == 0:
        return -1
    kilobits = _BITRATES[version == 3, layer][bitrate]
    samples = 576 if layer == 3 and version != 3 else 1152
    per_second = _RATES[rate] >> {3: 0, 2: 1, 0: 2}[version]  # halved in version 2, again in 2.5
    return samples // 8 * kilobits * 1000 // per_second + (third >> 1 & 1)


@functools.lru_cache(maxsize=1)
def _free_format_pattern(second: int, third: int) -> re.Pattern[bytes]:
    """The header of a frame of the same free format, with padding or without."""
    thirds = bytes(third & 0b11111101 | pad << 1 | private for pad in (0, 1) for private in (0, 1))
    return re.compile(b"\xff" + re.escape(bytes([second])) + b"[" + re.escape(thirds) + b"]", re.S)


def _free_format_size(data: bytes, position: int) -> int:
    """Bytes up to the next frame of the same free format, or up to the end."""
    pattern = _free_format_pattern(data[position + 1], data[position + 2] & 0b11111100)
    found = pattern.search(data, position + 24, position + 8192)
    return found.start() - position if found else len(data) - position


def _info_offset(data: bytes | bytearray, position: int) -> int:
    """Bytes from a frame's start to its Xing or Info header: after the side information."""
    is_mono = data[position + 3] >> 6 == 3
    if data[position + 1] >> 3 & 3 == 3:
        return 4 + (17 if is_mono else 32)
    return 4 + (9 if is_mono else 17)


def _info_positions(data: bytes) -> set[int]:
    """Where a frame would begin for each Xing, Info or VBRI in the data."""
    found = [match.start() for match in _INFO.finditer(data)]
    return {position - offset for position in found for offset in (36, 21, 13)}


def _is_info_frame(data: bytes, position: int) -> bool:
    offset = position + _info_offset(data, position)
    is_xing = data[offset : offset + 4] in (b"Xing", b"Info")
    return is_xing or data[position + 36 : position + 40] == b"VBRI"


def _info_frame(data: bytes, part: Mp3Part) -> bytes:
    """A silent frame that says how many frames the part has."""
    second, third = data[part.start + 1] | 1, data[part.start + 2] & 0b1100  # no CRC, no padding
    rates = (third | bitrate << 4 for bitrate in range(1, 15))
    third = next(t for t in rates if _stated_size(second, t) >= INFO_FRAME_BYTES)
    frame = bytearray(_stated_size(second, third))
    frame[:4] = bytes([0xFF, second, third, data[part.start + 3]])
    offset = _info_offset(frame, 0)
    frame[offset : offset + 12] = b"Info" + struct.pack(">II", 1, part.frames)
    return bytes(frame)


def _skip_tag(data: bytes, position: int) -> int | None:
    """The position after a tag; None where none begins."""
    start = data[position : position + APE_BYTES]
    if start[:3] == b"ID3" and len(start) >= ID3_BYTES:
        return position + id3_size(start)
    if start[:8] == b"APETAGEX":
        return position + APE_BYTES + int.from_bytes(start[12:16], "little")
    if start[:3] == b"TAG":
        return position + ID3V1_BYTES
    return None


def id3_size(start: bytes) -> int:
    """Bytes of the ID3v2 tag that a file begins with; 0 where there is none."""
    if start[:3] != b"ID3" or len(start) < ID3_BYTES:
        return 0
    seven_bits = start[6:10]
    footer = ID3_BYTES if start[5] & 0x10 else 0
    return ID3_BYTES + footer + sum((b & 127) << (7 * (3 - i)) for i, b in enumerate(seven_bits))


def _skip_junk(data: bytes, position: int, end: int, file: Mp3File) -> int:
    """The position of the next frame, after bytes that are none.

    Zeros are padding; other bytes may stand before the first frame and after the last.
    """
    following = position
    while (following := data.find(b"\xff", following, end)) >= 0:
        size = _frame_size(data, following)
        if size and (following + size == end or _frame_size(data, following + size)):
            break
        following += 1
    stop = following if following >= 0 else end
    junk = data[position:stop]
    if not junk.strip(b"\0"):
        return stop
    if len(junk) > TRAILING_BYTES or (file.parts and following >= 0):
        raise MediaError("damaged", f"{len(junk)} bytes at {position} that are no MP3 frame")
    file.note(TRAILING if file.parts else LEADING)
    return stop


def _end_of_frames(data: bytes) -> int:
    """The position of the tags at the end: ID3v1, APE, Lyrics3."""
    end = len(data)
    if data[end - ID3V1_BYTES :].startswith(b"TAG"):
        end -= ID3V1_BYTES
    if data[max(0, end - 9) : end] == b"LYRICS200":
        start = data.rfind(b"LYRICSBEGIN", 0, end)
        end = start if start >= 0 else end
    footer = data[max(0, end - APE_BYTES) : end]
    if footer[:8] == b"APETAGEX":
        has_header = footer[23] & 0x80
        size = int.from_bytes(footer[12:16], "little") + APE_BYTES * bool(has_header)
        end = max(0, end - size)
    return end

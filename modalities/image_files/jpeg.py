"""Decoding of JPEG files that refuses damage in their pixels.

A JPEG has no checksum. Where its data make no sense, libjpeg warns and fills with grey; Pillow
hides the warnings. simplejpeg, the same library, gives the first of them as an error.

Format: https://www.w3.org/Graphics/JPEG/itu-t81.pdf
"""

from __future__ import annotations

import io
import re
from collections.abc import Iterator
from dataclasses import dataclass, field

import numpy as np
import PIL.Image
import simplejpeg

from bytelm.modalities.base import Bytes, Limits, MediaError
from bytelm.modalities.image_files.decoded_image import (
    NO_END_NOTE,
    DecodedImage,
    band_lines,
    check_size,
)
from bytelm.modalities.image_files.metadata import orientation

MAX_STRAY_BYTES = 16
"""Bytes between the last pixel and a marker up to which they are padding, as cameras write it; more
are pixels that were not understood."""

UNCHECKED_NOTE = "unusual sampling of colours, damage not looked for"

_END = b"\xff\xd9"
_NO_END = "Premature end of JPEG file"  # libjpeg's words
_APP0, _APP1, _APP2, _APP14, _START_OF_SCAN = 0xE0, 0xE1, 0xE2, 0xEE, 0xDA
_SEQUENTIAL, _PROGRESSIVE = (0xC0, 0xC1, 0xC9), (0xC2, 0xCA)
_FRAMES = {*range(0xC0, 0xD0)} - {0xC4, 0xC8, 0xCC}
"""Markers that begin a frame."""
_STANDALONE = {0x01, *range(0xD0, 0xD8)}
"""Markers without content."""
_MARKER = re.compile(rb"\xff[^\x00\xff\xd0-\xd7]", re.DOTALL)
_STRAY = re.compile(r"(\d+) extraneous bytes before marker 0x([0-9a-f]+)")
_COLOUR_SPACES = {1: "GRAY", 3: "RGB", 4: "CMYK"}
_MODES = {1: "L", 3: "RGB", 4: "CMYK"}


@dataclass
class _Header:
    """Facts of the segments before the pixels."""

    width: int = 0
    height: int = 0
    components: int = 0
    bits: int = 0
    frame: int = 0
    """The marker of the frame, which names the process of coding."""
    names: bytes = b""
    """The components' names, a byte each."""
    exif: bytes = b""
    xmp: bytes = b""
    profile: dict[int, bytes] = field(default_factory=dict)
    """Parts of the ICC profile by their numbers."""
    segments: list[bytes] = field(default_factory=list)
    """All segments with their markers, up to the first scan's."""
    scan: int = 0
    """Position of the first scan's coded data."""


def decode_jpeg(data: bytes, limits: Limits) -> DecodedImage:
    """Decode a JPEG file, the first picture where it holds several.

    Raises MediaError for a file that is damaged, too large, or of a process that is not read.
    """
    header = _read_header(data)
    if header.components not in _COLOUR_SPACES:
        raise MediaError("unreadable", f"a JPEG of {header.components} components")
    if header.bits != 8:
        raise MediaError("unreadable", f"a JPEG of {header.bits} bits a sample")
    channels = 1 if header.components == 1 else 3
    check_size(header.width, header.height, channels, limits)
    notes: list[str] = []
    pixels = _decode_pixels(data, header, notes)
    if _lacks_scans(data, header):
        raise MediaError("truncated", "its last scans are missing")
    if header.components == 4:
        np.subtract(255, pixels, out=pixels)  # all programs write ink as its complement
    if pixels.shape[:2] != (header.height, header.width):
        raise MediaError("damaged", "two headers of different sizes")
    return DecodedImage(
        header.width,
        header.height,
        channels,
        bands=_bands(pixels),
        orientation=orientation(header.exif, header.xmp),
        profile=b"".join(header.profile[number] for number in sorted(header.profile)),
        notes=notes,
    )


def _bands(pixels: Bytes) -> Iterator[PIL.Image.Image]:
    """Bands of whole lines of pixels [h w c]."""
    height, width, components = pixels.shape
    lines = band_lines(width)
    for top in range(0, height, lines):
        band = pixels[top : top + lines]
        yield PIL.Image.frombytes(_MODES[components], (width, len(band)), band)


# --- header ---


def _read_header(data: bytes) -> _Header:
    """Read the segments up to the first scan."""
    header = _Header()
    position = 2
    while True:
        position = data.find(b"\xff", position)
        while data[position + 1 : position + 2] == b"\xff":  # fill bytes
            position += 1
        if position < 0 or position + 4 > len(data):
            raise MediaError("truncated", "the file ends before its pixels")
        marker = data[position + 1]
        if marker == 0 or marker in _STANDALONE:
            position += 2
            continue
        if marker == _END[1]:
            raise MediaError("damaged", "a JPEG without pixels")
        end = position + 2 + int.from_bytes(data[position + 2 : position + 4])
        if end > len(data):
            raise MediaError("truncated", "the file ends inside its header")
        content = data[position + 4 : end]
        _read_segment(header, marker, content)
        header.segments.append(data[position:end])
        position = end
        if marker == _START_OF_SCAN:
            header.scan = end
            if not header.frame:
                raise MediaError("damaged", "a JPEG without a frame's header")
            return header


def _read_segment(header: _Header, marker: int, content: bytes) -> None:
    """Take the facts of one segment into the header."""
    if marker in _FRAMES and not header.frame and len(content) >= 6:
        header.frame, header.bits = marker, content[0]
        header.height = int.from_bytes(content[1:3])
        header.width = int.from_bytes(content[3:5])
        header.components = content[5]
        header.names = content[6::3]
    elif marker == _APP1 and content.startswith(b"Exif\0") and not header.exif:
        header.exif = content[6:]
    elif marker == _APP1 and content.startswith(b"http://ns.adobe.com/xap/1.0/\0"):
        header.xmp = content
    elif marker == _APP2 and content.startswith(b"ICC_PROFILE\0"):
        header.profile[content[12] if len(content) > 12 else 0] = content[14:]


# --- scans ---


def _lacks_scans(data: bytes, header: _Header) -> bool:
    """Whether a file of several scans was cut between two of them, of which libjpeg does not warn.

    Each component needs all its 64 coefficients, to the last bit.
    """
    position, segment = header.scan, header.segments[-1]
    if header.frame not in _PROGRESSIVE and segment[4] == header.components:
        return False
    missing = {name: set(range(64)) for name in header.names}
    while True:
        count = segment[4]
        first, last, bits = segment[-3:]
        if header.frame not in _PROGRESSIVE:
            first, last, bits = 0, 63, 0
        if bits & 0x0F == 0:  # no later scan refines these
            for name in segment[5 : 5 + 2 * count : 2]:
                missing.get(name, set()).difference_update(range(first, last + 1))
        segment = b""
        while not segment:
            marker = _MARKER.search(data, position)
            if marker is None or marker[0] == _END:
                return any(missing.values())
            start = marker.start()
            position = start + 2 + int.from_bytes(data[start + 2 : start + 4])
            if marker[0][1] == _START_OF_SCAN:
                segment = data[start:position]


# --- pixels ---


def _decode_pixels(data: bytes, header: _Header, notes: list[str]) -> Bytes:
    """Pixels [h w c], or MediaError where libjpeg warns of damage."""
    try:
        return _decode(data, header)
    except ValueError as error:
        first = str(error)
    # libjpeg tells its first warning alone, so harmless ones are mended before the second try.
    mended = _mend_header(data, header)
    no_end = first == _NO_END and header.frame not in _PROGRESSIVE  # these may lack whole scans
    if no_end:
        mended += _END
    try:
        pixels = _decode(mended, header)
    except ValueError as error:
        warning = str(error)
        if "subsampling" in warning:
            notes.append(UNCHECKED_NOTE)
            return _decode_with_pillow(data)
        stray = _STRAY.search(warning)
        if not stray or int(stray[1]) > MAX_STRAY_BYTES or int(stray[2], 16) != _END[1]:
            raise _refusal(first, warning) from error
        pixels = _decode(mended, header, strict=False)
    if no_end:
        notes.append(NO_END_NOTE)
    return pixels


def _decode(data: bytes, header: _Header, strict: bool = True) -> Bytes:
    """Pixels [h w c]; ValueError with libjpeg's error or, where strict, its first warning."""
    return simplejpeg.decode_jpeg(data, _COLOUR_SPACES[header.components], strict=strict)


def _decode_with_pillow(data: bytes) -> Bytes:
    """Pixels [h w c] of a subsampling that simplejpeg does not know; warnings are not seen."""
    with PIL.Image.open(io.BytesIO(data), formats=["JPEG"]) as image:
        pixels = np.asarray(image)
    if image.mode == "CMYK":
        return 255 - pixels
    return pixels.reshape(*pixels.shape[:2], -1)


def _mend_header(data: bytes, header: _Header) -> bytes:
    """The file without bytes between segments, and without numbers that libjpeg warns of and does
    not need: JFIF's version, Adobe's colour transform, and the spectrum of a sequential scan."""
    segments = []
    for segment in header.segments:
        marker = segment[1]
        if marker == _APP0 and segment[4:8] == b"JFIF":
            segment = segment[:9] + b"\1" + segment[10:]
        elif marker == _APP14 and segment[4:9] == b"Adobe" and segment[15:16] != b"\0":
            segment = segment[:15] + (b"\2" if header.components == 4 else b"\1") + segment[16:]
        elif marker == _START_OF_SCAN and header.frame in _SEQUENTIAL:
            segment = segment[:-3] + b"\0\x3f\0"
        segments.append(segment)
    return data[:2] + b"".join(segments) + data[header.scan :]


def _refusal(first: str, warning: str) -> MediaError:
    """The reason for a file of which libjpeg warned first, and after its header was mended."""
    if first == _NO_END:
        return MediaError("truncated", "the file ends inside its pixels")
    if _STRAY.search(warning):
        return MediaError("damaged", "coded pixels are left over")
    if warning.startswith(("Corrupt", "Inconsistent", "Premature")):
        return MediaError("damaged", warning.removeprefix("Corrupt JPEG data: "))
    return MediaError("unreadable", warning)

"""Decoding of PNG files, with every checksum that they carry.

Pillow checks neither the pixels' CRC nor their Adler-32, compares a transparent colour of 16 bits
with samples of 8, and refuses a file for a wrong CRC in its metadata. So the chunks are read here.

Format: https://www.w3.org/TR/png-3/
"""

from __future__ import annotations

import re
import struct
import zlib
from collections.abc import Iterator

import PIL.Image
from isal import isal_zlib

from bytelm.modalities.base import Limits, MediaError
from bytelm.modalities.image_files.decoded_image import (
    NO_END_NOTE,
    SEVERAL_NOTE,
    DecodedImage,
    check_size,
)
from bytelm.modalities.image_files.metadata import orientation
from bytelm.modalities.image_files.png_pixels import (
    GREY,
    GREY_ALPHA,
    PALETTE,
    RGB,
    VALUES,
    PngHeader,
    read_bands,
    read_deep_bands,
)

SIGNATURE = b"\x89PNG\r\n\x1a\n"

Chunks = dict[bytes, list[memoryview]]
"""Contents of chunks by name."""

_PIXEL_CHUNKS = (b"IHDR", b"PLTE", b"tRNS", b"IDAT", b"IEND")
"""Chunks whose damage changes pixels; a wrong checksum in another one drops that chunk."""
_BITS = {GREY: (1, 2, 4, 8, 16), PALETTE: (1, 2, 4, 8)}
_BITS_WITH_OTHERS = (8, 16)
_MAX_METADATA = 1 << 24


def decode_png(data: bytes, limits: Limits) -> DecodedImage:
    """Read the chunks of a PNG file, and prepare to decode its pixels.

    Raises MediaError here or, for damage within the pixels, while the bands are taken.
    """
    header = _header(data)
    channels = 1 if header.colour_type in (GREY, GREY_ALPHA) else 3
    check_size(header.width, header.height, channels, limits)
    chunks, notes = _read_chunks(data)
    if b"acTL" in chunks:  # an animation
        notes.append(SEVERAL_NOTE)
    image = DecodedImage(header.width, header.height, channels, notes=notes)
    image.profile = _profile(chunks)
    image.orientation = _orientation(chunks)
    if header.bits == 16:
        image.deep_bands = read_deep_bands(header, chunks[b"IDAT"])
        image.transparent = _transparent_colour(header, chunks)
        significant = max(_first(chunks, b"sBIT"), default=16)
        image.significant_bits = significant if 8 <= significant < 16 else 16
    else:
        image.bands = _marked_bands(header, chunks)
    return image


def _marked_bands(header: PngHeader, chunks: Chunks) -> Iterator[PIL.Image.Image]:
    """Bands of an image of up to 8 bits, with palette and transparency."""
    palette = _first(chunks, b"PLTE")
    if header.colour_type == PALETTE and not 0 < len(palette) <= 768:
        raise MediaError("damaged", f"a palette of {len(palette)} bytes")
    transparent = _transparent_colour(header, chunks)
    for band in read_bands(header, chunks[b"IDAT"]):
        if header.colour_type == PALETTE:
            band.putpalette(palette)
            if b"tRNS" in chunks:
                band.info["transparency"] = _first(chunks, b"tRNS")
        elif transparent:
            scale = 255 // ((1 << header.bits) - 1)
            colour = tuple((value & (1 << header.bits) - 1) * scale for value in transparent)
            band.info["transparency"] = colour if header.values == 3 else colour[0]
        yield band


def _transparent_colour(header: PngHeader, chunks: Chunks) -> tuple[int, ...]:
    """The values of the one colour that is transparent; () where there is none."""
    trns = _first(chunks, b"tRNS")
    if header.colour_type not in (GREY, RGB) or len(trns) < 2 * header.values:
        return ()
    return struct.unpack_from(f">{header.values}H", trns)


# --- chunks ---


def _header(data: bytes) -> PngHeader:
    """The first chunk."""
    if data[12:16] == b"CgBI":
        raise MediaError("unreadable", "a PNG in Apple's own form (CgBI)")
    if len(data) < 33:
        raise MediaError("truncated", "the file ends inside its header")
    if data[8:16] != b"\0\0\0\x0dIHDR":
        raise MediaError("unreadable", "a PNG that does not begin with IHDR")
    if isal_zlib.crc32(data[12:29]) != int.from_bytes(data[29:33]):
        raise MediaError("damaged", "a wrong checksum in the chunk IHDR")
    header = PngHeader(*struct.unpack_from(">IIBBBBB", data, 16))
    bits = _BITS.get(header.colour_type, _BITS_WITH_OTHERS)
    if header.colour_type not in VALUES or header.bits not in bits:
        raise MediaError(
            "unreadable", f"a PNG of colour type {header.colour_type} and {header.bits} bits"
        )
    if header.compression or header.filtering or header.interlace > 1:
        raise MediaError("unreadable", "a PNG of an unknown compression, filter or interlace")
    return header


def _read_chunks(data: bytes) -> tuple[Chunks, list[str]]:
    """All chunks up to the end, by name, without those of metadata that are damaged; notes."""
    view = memoryview(data)
    chunks: Chunks = {}
    position = len(SIGNATURE)
    while position + 12 <= len(data):
        size = int.from_bytes(view[position : position + 4])
        name = data[position + 4 : position + 8]
        end = position + 8 + size
        if end + 4 > len(data):
            if name == b"IDAT":
                raise MediaError("truncated", "the file ends inside its pixels")
            break
        crc = isal_zlib.crc32(view[position + 4 : end])
        whole = crc == int.from_bytes(view[end : end + 4])
        if not whole and (name in _PIXEL_CHUNKS or not name.isalpha() or name[:1].isupper()):
            raise MediaError("damaged", f"a wrong checksum in the chunk {_text(name)}")
        if whole:
            if name[:1].isupper() and name not in _PIXEL_CHUNKS:
                raise MediaError("unreadable", f"a PNG with the unknown chunk {_text(name)}")
            chunks.setdefault(name, []).append(view[position + 8 : end])
        if name == b"IEND":
            break
        position = end + 4
    if b"IDAT" not in chunks:
        raise MediaError("truncated", "the file ends before its pixels")
    return chunks, [] if b"IEND" in chunks else [NO_END_NOTE]


def _text(name: bytes) -> str:
    return ascii(name)[2:-1]


def _first(chunks: Chunks, name: bytes) -> bytes:
    """The content of the first chunk of this name; b"" where there is none."""
    return bytes(chunks[name][0]) if name in chunks else b""


def _profile(chunks: Chunks) -> bytes:
    """The ICC profile of an iCCP chunk; b"" where there is none, and what cannot be used as one
    where it cannot be inflated."""
    if b"iCCP" not in chunks:
        return b""
    _, _, packed = _first(chunks, b"iCCP").partition(b"\0")
    return _inflate_small(packed[1:]) or b"damaged"


def _inflate_small(packed: bytes) -> bytes:
    """Metadata inflated; b"" where it is broken or too large."""
    try:
        return zlib.decompressobj().decompress(packed, _MAX_METADATA)
    except zlib.error:
        return b""


def _orientation(chunks: Chunks) -> int:
    """EXIF's orientation, from the chunk eXIf, ImageMagick's raw profile, or XMP."""
    exif = _first(chunks, b"eXIf")
    xmp = b""
    for name in (b"zTXt", b"tEXt", b"iTXt"):
        for chunk in chunks.get(name, []):
            keyword, _, text = bytes(chunk).partition(b"\0")
            if keyword == b"XML:com.adobe.xmp":
                xmp = text
            elif keyword in (b"Raw profile type exif", b"Raw profile type APP1") and not exif:
                plain = _inflate_small(text[1:]) if name == b"zTXt" else text
                exif = _raw_profile(plain)
    return orientation(exif, xmp)


def _raw_profile(text: bytes) -> bytes:
    """The bytes of a profile that ImageMagick wrote in hexadecimal, after its name and length."""
    match = re.match(rb"\s*\w+\s+\d+\s+([0-9a-fA-F\s]*)", text)
    digits = b"".join(match[1].split()) if match else b""
    return bytes.fromhex(digits[: len(digits) // 2 * 2].decode("ascii"))

"""Decoding of the formats that Pillow reads well: GIF, BMP, WebP, AVIF; and HEIC by pillow-heif.

Their sizes are checked before a pixel is decoded.
"""

from __future__ import annotations

import io
import re
import struct

import numpy as np
import PIL.Image

from bytelm.modalities.base import Limits, MediaError
from bytelm.modalities.image_files.decoded_image import (
    REDUCED_NOTE,
    SEVERAL_NOTE,
    DecodedImage,
    bands_of,
    check_size,
)
from bytelm.modalities.image_files.metadata import orientation

_FORMATS = ("WEBP", "GIF", "BMP", "AVIF")
"""Formats that Pillow may open; those that run programs (EPS) or vary too much are left out."""
_GREY_MODES = ("1", "L", "LA", "La")
_AVIF_BRANDS = (b"avif", b"avis")
_AV1_CONFIGURATION = re.compile(rb"av1C\x81.(.)", re.DOTALL)
"""Start of AVIF's box for the codec; its third byte says how many bits samples have."""
_BMP_V5_BYTES = 124
_EMBEDDED_PROFILE = b"DEBM"
"""Colour space of a BMP that holds its ICC profile, as the file stores it."""


def decode_with_pillow(data: bytes, limits: Limits) -> DecodedImage:
    """Decode the first frame. Raises MediaError, or what Pillow raises."""
    if data[4:8] == b"ftyp":
        brands = data[8 : max(16, int.from_bytes(data[:4]))]
        if not any(brand in brands for brand in _AVIF_BRANDS):
            return _decode_heic(data, limits)
    if data[:4] == b"RIFF":
        _check_webp(data, limits)
    import PIL.AvifImagePlugin

    PIL.AvifImagePlugin.DEFAULT_MAX_THREADS = 1
    with PIL.Image.open(io.BytesIO(data), formats=_FORMATS) as image:
        channels = 1 if image.mode in _GREY_MODES else 3
        check_size(*image.size, channels, limits)
        notes = [SEVERAL_NOTE] if _has_more_frames(image) else []
        if image.format == "AVIF":
            notes += _avif_notes(data)
        box = image.tile[0].extents if image.format == "GIF" and image.tile else None
        image.load()
        picture: PIL.Image.Image = image
        if image.format == "BMP" and image.mode == "RGBA":
            picture = _without_empty_alpha(image)
        if box and box != (0, 0, *image.size):
            picture = _on_canvas(image, box, channels)
        return DecodedImage(
            *picture.size,
            channels,
            bands=bands_of(picture),
            orientation=orientation(_block(image, "exif"), _block(image, "xmp")),
            profile=_bmp_profile(data) if image.format == "BMP" else _block(image, "icc_profile"),
            notes=notes,
        )


def _block(image: PIL.Image.Image, name: str) -> bytes:
    """A block of metadata; b"" where there is none."""
    block = image.info.get(name)
    return block if isinstance(block, bytes) else b""


def _has_more_frames(image: PIL.Image.Image) -> bool:
    """Whether the file is an animation; damage behind the first frame does not matter."""
    try:
        return bool(getattr(image, "is_animated", False))
    except Exception:
        return False


def _avif_notes(data: bytes) -> list[str]:
    """The note for samples of 10 or 12 bits, of which Pillow gives 8."""
    configuration = _AV1_CONFIGURATION.search(data)
    flags = configuration[1][0] if configuration else 0
    bits = 8 + 2 * bool(flags & 0x40) + 2 * bool(flags & 0x20)
    return [REDUCED_NOTE.format(bits)] if bits > 8 else []


def _bmp_profile(data: bytes) -> bytes:
    """The ICC profile in a BMP with a header of version 5, which Pillow does not read; or b""."""
    header = data[14 : 14 + _BMP_V5_BYTES]
    if header[:4] != _BMP_V5_BYTES.to_bytes(4, "little") or header[56:60] != _EMBEDDED_PROFILE:
        return b""
    start, size = struct.unpack_from("<II", header, 112)
    return data[14 + start : 14 + start + size]


def _without_empty_alpha(image: PIL.Image.Image) -> PIL.Image.Image:
    """A BMP without its alpha where that is 0 everywhere: the byte is unused there."""
    return image.convert("RGB") if image.getchannel("A").getextrema() == (0, 0) else image


def _on_canvas(
    image: PIL.Image.Image, box: tuple[int, int, int, int], channels: int
) -> PIL.Image.Image:
    """A GIF whose first frame covers a part of it; the rest is transparent, as browsers show it."""
    mode = "LA" if channels == 1 else "RGBA"
    canvas = PIL.Image.new(mode, image.size)
    canvas.paste(image.convert(mode).crop(box), box)
    return canvas


def _check_webp(data: bytes, limits: Limits) -> None:
    """Check the length and the size of a WebP, which Pillow does too late."""
    claimed = int.from_bytes(data[4:8], "little") + 8
    if len(data) < claimed:
        raise MediaError("truncated", f"{len(data)} bytes where the header says {claimed}")
    if len(data) < 30:
        raise MediaError("truncated", "the file ends inside its header")
    kind = data[12:16]
    if kind == b"VP8X":
        width = int.from_bytes(data[24:27], "little") + 1
        height = int.from_bytes(data[27:30], "little") + 1
    elif kind == b"VP8L":
        bits = int.from_bytes(data[21:25], "little")
        width, height = (bits & 0x3FFF) + 1, (bits >> 14 & 0x3FFF) + 1
    else:
        width, height = (number & 0x3FFF for number in struct.unpack_from("<HH", data, 26))
    check_size(width, height, 3, limits)


def _decode_heic(data: bytes, limits: Limits) -> DecodedImage:
    """Decode the primary image of a HEIF file."""
    try:
        import pillow_heif
    except ImportError as error:
        raise MediaError(
            "unreadable", "a HEIC image; pip install 'bytelm[media]' reads it"
        ) from error
    pillow_heif.options.DECODE_THREADS = 1
    pillow_heif.options.THUMBNAILS = False
    pillow_heif.options.DEPTH_IMAGES = False
    pillow_heif.options.AUX_IMAGES = False
    file = pillow_heif.open_heif(
        io.BytesIO(data), convert_hdr_to_8bit=False, hdr_to_16bit=False
    )  # turned upright
    width, height = file.size
    bits = file.info["bit_depth"]
    channels = 1 if file.mode[0] in "LI" else 3
    check_size(width, height, channels * (2 if bits > 8 else 1), limits)
    image = DecodedImage(width, height, channels, notes=[SEVERAL_NOTE] if len(file) > 1 else [])
    image.profile = file.info.get("icc_profile") or b""
    if bits > 8:
        samples = np.asarray(file).reshape(height, width, -1).astype(np.uint32)
        largest = (1 << bits) - 1
        image.deep_bands = [((samples * 0xFFFF + largest // 2) // largest).astype(np.uint16)]
        image.stored_bits = bits
    else:
        image.bands = bands_of(file.to_pillow())
    return image

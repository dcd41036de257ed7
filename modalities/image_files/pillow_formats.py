"""Decoding of the formats that Pillow reads well: GIF, BMP, WebP, AVIF; and HEIC by pillow-heif.

Their sizes are checked before a pixel is decoded.
"""

from __future__ import annotations

import io
import struct

import PIL.Image

from bytelm.modalities.base import Limits, MediaError
from bytelm.modalities.image_files.decoded_image import (
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
            profile=_block(image, "icc_profile"),
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
    file = pillow_heif.open_heif(io.BytesIO(data), convert_hdr_to_8bit=True)
    width, height = file.size
    check_size(width, height, 3, limits)
    image = file.to_pillow()  # turned upright
    return DecodedImage(
        *image.size,
        1 if image.mode in _GREY_MODES else 3,
        bands=bands_of(image),
        profile=_block(image, "icc_profile"),
        notes=[SEVERAL_NOTE] if len(file) > 1 else [],
    )

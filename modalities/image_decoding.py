"""Decoding of image files to 8-bit pixels.

h lines    w pixels of a line    c channels
"""

from __future__ import annotations

import os
import struct
import warnings
from collections.abc import Iterator
from typing import BinaryIO

import numpy as np
import PIL.Image
import PIL.ImageOps

from bytelm.modalities.base import Header, Limits, MediaError

FORMATS = ("PNG", "JPEG", "WEBP", "GIF", "BMP", "PPM")
"""Formats that Pillow may open; those that run programs (EPS) or vary too much are left out."""

BAND_PIXELS = 1 << 20
"""Pixels that are converted at once, which bounds memory."""

_GREY_MODES = ("1", "L", "LA", "La", "I;16", "I;16L", "I;16B", "I")
_DEEP_MODES = ("I;16", "I;16L", "I;16B", "I")
_ORIENTED = ("exif", "Raw profile type exif", "XML:com.adobe.xmp", "xmp")
"""Metadata in which Pillow looks for an orientation."""
_REFUSED_MODES = ("F",)  # floating point has no range to map to 8 bits


def decode_image(file: BinaryIO, limits: Limits) -> tuple[Header, bytes]:
    """Decode the first frame of an open image file.

    Returns:
        its header, and its pixels [h w c].
    Raises:
        MediaError: the file is broken, too large or of a kind that is not allowed.
        MemoryError: the decoder cannot allocate.
    """
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            warnings.simplefilter("error", PIL.Image.DecompressionBombWarning)
            return _decode_pixels(file, limits)
    except (MediaError, MemoryError):
        raise
    except (PIL.Image.DecompressionBombWarning, PIL.Image.DecompressionBombError) as error:
        raise MediaError("over the limit", str(error)) from error
    except Exception as error:  # a broken file makes Pillow raise almost anything
        detail = " ".join(str(error).split()) or type(error).__name__
        if isinstance(error, PIL.UnidentifiedImageError):
            detail = "no image that Pillow can open"  # its own message has an address in it
        reason = "truncated" if "truncated" in detail.lower() else "unreadable"
        raise MediaError(reason, detail) from error


def _decode_pixels(file: BinaryIO, limits: Limits) -> tuple[Header, bytes]:
    """Header and pixels of the first frame, decoded only if the file's header passes all checks."""
    _check_start(file, limits)
    with PIL.Image.open(file, formats=FORMATS) as image:
        channels = 1 if image.mode in _GREY_MODES else 3
        _check_size(*image.size, channels, limits)
        if image.mode in _REFUSED_MODES:
            raise MediaError("unreadable", f"pixels of mode {image.mode}")
        image.load()
        if not image.info.keys().isdisjoint(_ORIENTED):
            PIL.ImageOps.exif_transpose(image, in_place=True)
        header = Header(width=image.width, height=image.height, channels=channels)
        pixels = [_grey(b) if channels == 1 else _rgb(b) for b in _bands(image)]
    del image  # its pixels need four bytes each
    return header, b"".join(pixels)


def _bands(image: PIL.Image.Image) -> Iterator[PIL.Image.Image]:
    """Cut an image into bands of whole lines, whose conversion needs little memory."""
    lines = max(1, BAND_PIXELS // image.width)
    if image.height <= lines:
        yield image
        return
    for top in range(0, image.height, lines):
        yield image.crop((0, top, image.width, min(top + lines, image.height)))


def _check_start(file: BinaryIO, limits: Limits) -> None:
    """Make the checks that Pillow makes too late (WebP) or without saying what is wrong (PNG)."""
    start = file.read(24)
    size = file.seek(0, os.SEEK_END)
    file.seek(0)
    if start[:4] == b"RIFF" and len(start) >= 8:
        claimed = int.from_bytes(start[4:8], "little") + 8
        if size < claimed:
            raise MediaError("truncated", f"{size} bytes where the header says {claimed}")
    if start[:4] == b"\x89PNG" and start[12:16] == b"IHDR" and len(start) == 24:
        width, height = struct.unpack(">II", start[16:])
        _check_size(width, height, 1, limits)


def _check_size(width: int, height: int, channels: int, limits: Limits) -> None:
    if not width or not height:
        raise MediaError("empty", f"an image of {width} x {height} pixels")
    if max(width, height) > limits.max_side or width * height * channels > limits.max_bytes:
        raise MediaError("over the limit", f"an image of {width} x {height} pixels")


def _grey(image: PIL.Image.Image) -> bytes:
    """[h w 1] of a grey image; of 16 bits the upper 8, as Pillow takes them of colours."""
    transparent = image.info.get("transparency")
    if image.mode in _DEEP_MODES:
        deep = np.asarray(image).astype(np.int64).clip(0, 0xFFFF)
        grey = (deep >> 8).astype(np.uint8)
        if isinstance(transparent, int):
            grey[deep == transparent] = 255
        return grey.tobytes()
    if image.mode in ("LA", "La") or transparent is not None:
        return _on_white(image).getchannel(0).tobytes()
    return image.convert("L").tobytes()


def _rgb(image: PIL.Image.Image) -> bytes:
    """[h w 3] of a colour image."""
    if image.mode in ("RGBA", "RGBa", "PA") or "transparency" in image.info:
        return _on_white(image).tobytes()
    return image.convert("RGB").tobytes()


def _on_white(image: PIL.Image.Image) -> PIL.Image.Image:
    """A transparent image on a white ground."""
    if image.mode == "La":
        image = image.convert("LA")
    if image.mode != "RGBA":
        image = image.convert("RGBA")
    white = PIL.Image.new("RGB", image.size, (255, 255, 255))
    white.paste(image, mask=image)
    return white

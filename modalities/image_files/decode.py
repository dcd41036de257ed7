"""Decoding of image files to pixels.

PNG, JPEG, Netpbm and TIFF have files of their own (`png.py`, `jpeg.py`, `netpbm.py`, `tiff.py`);
`pillow_formats.py` has GIF, BMP, WebP, AVIF and HEIC.

h lines    w pixels of a line    c channels
"""

from __future__ import annotations

import warnings
from typing import BinaryIO

import numpy as np
import PIL.Image

from bytelm.modalities.base import DecodeOptions, Header, Limits, MediaError, Sample
from bytelm.modalities.image_files.decoded_image import DecodedImage, check_size
from bytelm.modalities.image_files.jpeg import decode_jpeg
from bytelm.modalities.image_files.metadata import Pixels, turn
from bytelm.modalities.image_files.netpbm import decode_netpbm
from bytelm.modalities.image_files.pillow_formats import decode_with_pillow
from bytelm.modalities.image_files.pixels import to_deep_pixels, to_pixels
from bytelm.modalities.image_files.png import decode_png
from bytelm.modalities.image_files.tiff import decode_tiff

_DECODERS = {
    b"\x89PNG": decode_png,
    b"\xff\xd8": decode_jpeg,
    b"II": decode_tiff,
    b"MM": decode_tiff,
    b"P": decode_netpbm,
}
"""Decoders by the first bytes of files; `decode_with_pillow` takes the others."""

_TRUNCATED = ("truncated", "unexpected end of file", "insufficient input data")
"""Words of decoders, in lower case, for a file that ends early."""


def decode_image(file: BinaryIO, options: DecodeOptions) -> Sample:
    """Decode the first frame of an open image file.

    Returns:
        its sample: pixels [h w c] of 8 bits, or of 16 where the options keep them and the file has
        more than 8; with notes on what decoding changed.
    Raises:
        MediaError: the file is broken, too large or of a kind that is not allowed.
        MemoryError: the decoder cannot allocate.
    """
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            warnings.simplefilter("error", PIL.Image.DecompressionBombWarning)
            return _finish(_decode(file.read(), options.limits), options)
    except (MediaError, MemoryError):
        raise
    except (PIL.Image.DecompressionBombWarning, PIL.Image.DecompressionBombError) as error:
        raise MediaError("over the limit", str(error)) from error
    except Exception as error:  # a broken file makes Pillow raise almost anything
        detail = " ".join(str(error).split()) or type(error).__name__
        if isinstance(error, PIL.UnidentifiedImageError):
            detail = "no image that Pillow can open"  # its own message has an address in it
        is_cut = any(words in detail.lower() for words in _TRUNCATED)
        reason = "truncated" if is_cut else "unreadable"
        raise MediaError(reason, detail) from error


def _decode(data: bytes, limits: Limits) -> DecodedImage:
    """The image as its file stores it."""
    for start, decode in _DECODERS.items():
        if data.startswith(start):
            return decode(data, limits)
    return decode_with_pillow(data, limits)


def _finish(image: DecodedImage, options: DecodeOptions) -> Sample:
    """The sample of an image, turned upright."""
    is_deep = options.keep_depth and image.deep_bands is not None
    if is_deep:
        check_size(image.width, image.height, 2 * image.channels, options.limits)
    pixels = to_deep_pixels(image) if is_deep else to_pixels(image)
    width, height = image.width, image.height
    if image.orientation != 1:
        stored: Pixels = np.frombuffer(pixels, np.uint16 if is_deep else np.uint8)
        turned = turn(stored.reshape(height, width, image.channels), image.orientation)
        height, width = turned.shape[:2]
        pixels = turned.tobytes()
    header = Header(width=width, height=height, channels=image.channels)
    return Sample("image", header, pixels, notes=tuple(image.notes), is_deep=is_deep)

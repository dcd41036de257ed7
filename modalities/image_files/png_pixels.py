"""The pixels of a PNG file: inflating with the check of Adler-32, filters, interlacing.

isal inflates, twice as fast as zlib. Pillow's decoder undoes the filters: it is given the inflated
lines in a zlib stream that stores them as they are, and a mode whose pixels have as many bytes as
those of the file.

n lines of a band    w pixels of a line    v values of a pixel, with alpha
"""

from __future__ import annotations

import zlib
from collections.abc import Iterator
from typing import NamedTuple

import numpy as np
import PIL.Image
from isal import isal_zlib

from bytelm.modalities.base import MediaError
from bytelm.modalities.image_files.decoded_image import Samples, band_lines

GREY, RGB, PALETTE, GREY_ALPHA, RGBA = 0, 2, 3, 4, 6
"""Colour types."""
VALUES = {GREY: 1, RGB: 3, PALETTE: 1, GREY_ALPHA: 2, RGBA: 4}
"""Values of a pixel by colour type."""

_SMALL_MODES = {
    (GREY, 1): ("1", "1"),
    (GREY, 2): ("L", "L;2"),
    (GREY, 4): ("L", "L;4"),
    (PALETTE, 1): ("P", "P;1"),
    (PALETTE, 2): ("P", "P;2"),
    (PALETTE, 4): ("P", "P;4"),
}
"""Pillow's modes in memory and in the file of several pixels a byte, by colour type and bits."""
_FILTER_MODES = {
    1: (("L", "L"),),
    2: (("LA", "LA"),),
    3: (("RGB", "RGB"),),
    4: (("RGBA", "RGBA"),),
    6: (("RGB", "RGB;16B"), ("RGB", "RGB;16L")),
    8: (("RGBA", "RGBA;16B"), ("RGBA", "RGBA;16L")),
}
"""Pillow's modes that undo the filters of pixels of so many bytes: one that takes all bytes as they
are, or two that take every first and every second byte."""
_PASSES = (
    (0, 0, 8, 8),
    (4, 0, 8, 8),
    (0, 4, 4, 8),
    (2, 0, 4, 4),
    (0, 2, 2, 4),
    (1, 0, 2, 2),
    (0, 1, 1, 2),
)
"""First column, first line, and steps of columns and lines of the passes of an interlaced image."""
_WHOLE = (0, 0, 1, 1)
_FEED_BYTES = 1 << 18


class PngHeader(NamedTuple):
    """The chunk IHDR."""

    width: int
    height: int
    bits: int
    colour_type: int
    compression: int
    filtering: int
    interlace: int

    @property
    def values(self) -> int:
        """Values of a pixel, with alpha."""
        return VALUES[self.colour_type]

    @property
    def pixel_bytes(self) -> int:
        """Bytes between those that a filter compares."""
        return max(1, self.values * self.bits // 8)

    def line_bytes(self, width: int) -> int:
        """Bytes of a line of so many pixels, without its filter byte."""
        return (width * self.values * self.bits + 7) // 8


def read_bands(header: PngHeader, chunks: list[memoryview]) -> Iterator[PIL.Image.Image]:
    """Decode an image of up to 8 bits a value.

    Args:
        header: the file's header.
        chunks: the contents of its chunks IDAT.
    Yields:
        Bands of whole lines in the modes 1, L, LA, P (without a palette), RGB, RGBA.
    Raises:
        MediaError: the pixels are damaged.
    """
    stream = _PixelStream(chunks)
    if header.interlace:
        pixels = np.empty((header.height, header.width, header.values), np.uint8)
        for x, y, dx, dy in _PASSES:
            for top, images in _unfiltered(header, stream, (x, y, dx, dy)):
                part = _unpack(images[0], header, len(range(x, header.width, dx)))
                part = part.convert("L") if part.mode == "1" else part
                lines = slice(y + top * dy, y + (top + part.height) * dy, dy)
                pixels[lines, x::dx] = np.asarray(part).reshape(*part.size[::-1], -1)
        yield PIL.Image.fromarray(pixels[:, :, 0] if header.values == 1 else pixels)
    else:
        for _, images in _unfiltered(header, stream):
            yield _unpack(images[0], header, header.width)
    stream.check_end()


def read_deep_bands(header: PngHeader, chunks: list[memoryview]) -> Iterator[Samples]:
    """Decode an image of 16 bits a value to bands [n w v] of whole lines, as `read_bands` does."""
    stream = _PixelStream(chunks)
    if header.interlace:
        values = np.empty((header.height, header.width, header.values), np.uint16)
        for x, y, dx, dy in _PASSES:
            for top, images in _unfiltered(header, stream, (x, y, dx, dy)):
                part = _join(images, header.values)
                values[y + top * dy : y + (top + len(part)) * dy : dy, x::dx] = part
        yield values
    else:
        for _, images in _unfiltered(header, stream):
            yield _join(images, header.values)
    stream.check_end()


def _join(images: list[PIL.Image.Image], values: int) -> Samples:
    """[n w v] 16-bit values from images of their bytes."""
    if len(images) == 1:  # upper and lower bytes in turn
        pairs = np.asarray(images[0])
        return pairs.view(">u2").reshape(*pairs.shape[:2], values)
    upper, lower = (np.asarray(image) for image in images)
    return upper.astype(np.uint16) << 8 | lower


def _unpack(image: PIL.Image.Image, header: PngHeader, width: int) -> PIL.Image.Image:
    """Lines of bytes as lines of `width` pixels, where a byte holds several."""
    modes = _SMALL_MODES.get((header.colour_type, header.bits))
    if modes is None:
        return image
    return PIL.Image.frombytes(modes[0], (width, image.height), image.tobytes(), "raw", modes[1])


def _unfiltered(
    header: PngHeader, stream: _PixelStream, grid: tuple[int, int, int, int] = _WHOLE
) -> Iterator[tuple[int, list[PIL.Image.Image]]]:
    """Lines without their filters: of the whole image, or of a pass of an interlaced one.

    Yields bands, each as the number of lines above it and an image for each of `_FILTER_MODES`.
    """
    x, y, dx, dy = grid
    width, height = len(range(x, header.width, dx)), len(range(y, header.height, dy))
    if not width:
        return
    lines = band_lines(header.width)
    above = b""  # the line above the band, as a line without a filter
    for top in range(0, height, lines):
        count = min(lines, height - top)
        filtered = above + stream.read(count * (1 + header.line_bytes(width)))
        images = _undo_filters(filtered, header, header.line_bytes(width))
        if top + count < height:
            last = [image.crop((0, image.height - 1, *image.size)).tobytes() for image in images]
            above = b"\0" + (last[0] if len(last) == 1 else _alternate(*last))
        if top:
            images = [image.crop((0, 1, *image.size)) for image in images]
        yield top, images


def _alternate(first: bytes, second: bytes) -> bytes:
    """The bytes of both in turn."""
    both = np.stack([np.frombuffer(first, np.uint8), np.frombuffer(second, np.uint8)], axis=1)
    return both.tobytes()


def _undo_filters(filtered: bytes, header: PngHeader, line_bytes: int) -> list[PIL.Image.Image]:
    """Images of the bytes of filtered lines, one for each of `_FILTER_MODES`."""
    size = (line_bytes // header.pixel_bytes, len(filtered) // (1 + line_bytes))
    stored = zlib.compress(filtered, 0)
    try:
        return [
            PIL.Image.frombytes(mode, size, stored, "zip", raw_mode, 0)
            for mode, raw_mode in _FILTER_MODES[header.pixel_bytes]
        ]
    except ValueError as error:
        raise MediaError("damaged", "a line of an unknown filter") from error


class _PixelStream:
    """The bytes of filtered lines, inflated from the chunks IDAT as they are asked for."""

    def __init__(self, chunks: list[memoryview]):
        self._feed = (
            chunk[i : i + _FEED_BYTES]
            for chunk in chunks
            for i in range(0, len(chunk), _FEED_BYTES)
        )
        self._inflater = isal_zlib.decompressobj()
        self._rest: bytes | memoryview = b""

    def read(self, size: int) -> bytes:
        """The next `size` bytes; MediaError where the pixels are damaged, or end before."""
        parts = []
        while size:
            part = self._inflate(size)
            if not part:
                raise MediaError("damaged", "the pixels end early")
            parts.append(part)
            size -= len(part)
        return parts[0] if len(parts) == 1 else b"".join(parts)

    def check_end(self) -> None:
        """Inflate what follows the pixels, at most a little, so that their Adler-32 is checked."""
        for _ in range(4):
            if not self._inflate(1 << 16):
                return

    def _inflate(self, size: int) -> bytes:
        """Up to `size` more bytes; none at the end of the stream or of the chunks."""
        part = b""
        while not part and not self._inflater.eof:
            fed = self._rest or next(self._feed, None)
            try:
                part = self._inflater.decompress(fed or b"", size)
            except isal_zlib.error as error:  # type: ignore[misc]  # the stub calls it an instance
                raise MediaError("damaged", f"compressed pixels: {error}") from error
            self._rest = self._inflater.unconsumed_tail
            if fed is None:
                break
        return part

"""Positions in the picture of the bytes of an image's payload, by view.

n payload bytes    h lines    w pixels of a line    c channels    a, b lines and pixels of a tile
"""

from __future__ import annotations

import math
from typing import NamedTuple

import numpy as np

from bytelm.modalities.base import Header
from bytelm.modalities.evaluation_head import Ints, quotient_and_rest


class PixelPositions(NamedTuple):
    """Positions of payload bytes in a picture, each [n]."""

    line: Ints
    column: Ints
    channel: Ints
    byte: Ints
    """Byte of the value: 0, or in the view `deep` 0 for the high byte and 1 for the low one."""


def tile_sides(channels: int, patch: int) -> tuple[int, int]:
    """Lines and pixels (a, b) of the squarest tile with a * b * c = patch and a <= b."""
    area = patch // channels
    lines = next(a for a in range(math.isqrt(area), 0, -1) if area % a == 0)
    return lines, area // lines


def pixel_positions(
    header: Header, view: str, patch: int, offset: int, count: int
) -> PixelPositions:
    """Positions in the picture of the payload bytes [offset, offset + count) of a decoded image.

    Args:
        view: raster, planar, patch or deep.
        patch: P, the bytes of a tile in the view `patch`.
    """
    value_bytes = 2 if view == "deep" else 1
    size = header.height * header.width * header.channels * value_bytes
    dtype = np.int32 if size < 1 << 31 else np.int64  # int32 is twice as fast
    value, byte = quotient_and_rest(np.arange(offset, offset + count, dtype=dtype), value_bytes)
    if view == "patch":
        return PixelPositions(*_in_tiles(value, header, patch), byte)
    if view == "planar":
        channel, pixel = quotient_and_rest(value, header.height * header.width)
    else:
        pixel, channel = quotient_and_rest(value, header.channels)
    return PixelPositions(*quotient_and_rest(pixel, header.width), channel, byte)


def _in_tiles(value: Ints, header: Header, patch: int) -> tuple[Ints, Ints, Ints]:
    """Line, column and channel of values [n] of the view `patch`: whole tiles, the strip right of
    them, the strip below."""
    height, width, channels = header.height, header.width, header.channels
    a, b = tile_sides(channels, patch)
    rows, columns = height // a, width // b
    right = rows * a * columns * b * channels  # begin of the strip right of the tiles
    bottom = rows * a * width * channels
    parts = []
    for begin, end, first_line, first_column, strip in (
        (0, right, 0, 0, None),
        (right, bottom, 0, columns * b, width - columns * b),
        (bottom, height * width * channels, rows * a, 0, width),
    ):
        index = value[(value >= begin) & (value < end)] - begin
        if not len(index):
            continue
        if strip is None:
            tile, index = quotient_and_rest(index, patch)
            row, tile_column = quotient_and_rest(tile, columns)
        line, rest = quotient_and_rest(index, (strip or b) * channels)
        column, channel = quotient_and_rest(rest, channels)
        if strip is None:
            line, column = line + row * a, column + tile_column * b
        parts.append((line + first_line, column + first_column, channel))
    lines, all_columns, all_channels = (np.concatenate(p) for p in zip(*parts, strict=True))
    return lines, all_columns, all_channels

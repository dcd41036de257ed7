"""PNG files of 16 bits a channel, which Pillow writes in grey only.

h lines    w pixels of a line    c channels
"""

from __future__ import annotations

import struct
import zlib

import numpy as np
import numpy.typing as npt

_GREY, _RGB = 0, 2
LEVEL = 9


def deep_png(pixels: npt.NDArray[np.uint16]) -> bytes:
    """The content of a PNG file (ISO/IEC 15948) of [h w c] values of 16 bits, c = 1 or 3.

    Each line gets the filter with the smallest sum of absolute differences, as libpng chooses it.
    """
    height, width, channels = pixels.shape
    raw = pixels.astype(">u2").view(np.uint8).reshape(height, -1)  # [h 2wc]
    kind = _GREY if channels == 1 else _RGB
    return b"".join(
        [
            b"\x89PNG\r\n\x1a\n",
            _chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, 16, kind, 0, 0, 0)),
            _chunk(b"IDAT", zlib.compress(_filtered(raw, 2 * channels), LEVEL)),
            _chunk(b"IEND", b""),
        ]
    )


def _chunk(name: bytes, data: bytes) -> bytes:
    crc = zlib.crc32(data, zlib.crc32(name))
    return struct.pack(">I", len(data)) + name + data + struct.pack(">I", crc)


def _filtered(raw: npt.NDArray[np.uint8], pixel: int) -> bytes:
    """Lines [h n] of pixels of `pixel` bytes, each after the number of its filter."""
    values = np.pad(raw.astype(np.int16), ((1, 0), (pixel, 0)))
    left, above, corner = values[1:, :-pixel], values[:-1, pixel:], values[:-1, :-pixel]
    guess = left + above - corner
    to_left, to_above, to_corner = abs(guess - left), abs(guess - above), abs(guess - corner)
    nearest = np.where(to_above <= to_corner, above, corner)
    paeth = np.where((to_left <= to_above) & (to_left <= to_corner), left, nearest)
    predictions = (np.zeros_like(left), left, above, (left + above) >> 1, paeth)
    filtered = np.stack([(raw - p).astype(np.uint8) for p in predictions])  # [filters h n]
    sums = abs(filtered.view(np.int8).astype(np.int64)).sum(2)  # [filters h]
    best = sums.argmin(0)
    lines = filtered[best, np.arange(len(raw))]
    return np.concatenate([best[:, None].astype(np.uint8), lines], 1).tobytes()

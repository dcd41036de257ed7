"""Image files made by hand or by Pillow, and what decoding makes of them."""

from __future__ import annotations

import io
import struct
import zlib

import numpy as np
import PIL.Image
import pytest

from bytelm.modalities import MODALITIES
from bytelm.modalities.base import DecodeOptions, MediaError, Sample

IMAGE = MODALITIES["image"]
DEFAULTS = DecodeOptions()


def encoded(picture: PIL.Image.Image, kind: str = "PNG", **options: object) -> bytes:
    file = io.BytesIO()
    picture.save(file, kind, **options)
    return file.getvalue()


def noise(width: int = 40, height: int = 30, mode: str = "RGB") -> PIL.Image.Image:
    data = np.random.default_rng(0).integers(0, 256, (height, width, 4), np.uint8)
    return PIL.Image.fromarray(data).convert(mode)


def smooth(width: int = 256, height: int = 256) -> PIL.Image.Image:
    """A picture that JPEG codes in few bits."""
    rng = np.random.default_rng(0)
    ramp = np.add.outer(np.arange(height), np.arange(width))[..., None] / 2
    levels = ramp + rng.normal(size=(height, width, 3)) * 4
    return PIL.Image.fromarray(np.clip(levels, 0, 255).astype(np.uint8))


def chunk(name: bytes, data: bytes, crc: int | None = None) -> bytes:
    """A chunk of a PNG, with its right checksum unless another one is given."""
    right = zlib.crc32(name + data) if crc is None else crc
    return struct.pack(">I", len(data)) + name + data + struct.pack(">I", right)


def png(
    width: int,
    height: int,
    bits: int,
    colour_type: int,
    lines: bytes,
    before: bytes = b"",
    interlace: int = 0,
) -> bytes:
    """A PNG of lines that begin with their filter byte; `before` are chunks before the pixels."""
    header = struct.pack(">IIBBBBB", width, height, bits, colour_type, 0, 0, interlace)
    body = chunk(b"IHDR", header) + before + chunk(b"IDAT", zlib.compress(lines))
    return b"\x89PNG\r\n\x1a\n" + body + chunk(b"IEND", b"")


def unfiltered(samples: np.ndarray) -> bytes:
    """Lines [h w v] of a PNG, each with the filter byte of none."""
    lines = samples.reshape(len(samples), -1)
    big_endian = lines.astype(lines.dtype.newbyteorder(">"))
    return b"".join(b"\0" + line.tobytes() for line in big_endian)


def on_white(samples: np.ndarray) -> np.ndarray:
    """16-bit values [h w v], of which two or four have alpha, on a white ground."""
    if samples.shape[2] in (1, 3):
        return samples
    share = samples[:, :, -1:] / 65535
    return np.rint(samples[:, :, :-1] * share + 65535 * (1 - share)).astype(np.uint16)


def decode(data: bytes, options: DecodeOptions = DEFAULTS) -> Sample:
    return IMAGE.decode_file(io.BytesIO(data), options)


def pixels(data: bytes) -> np.ndarray:
    """[h w c] of a decoded file."""
    sample = decode(data)
    h = sample.header
    return np.frombuffer(sample.data, np.uint8).reshape(h.height, h.width, h.channels)


def refusal(data: bytes) -> MediaError:
    """The error of a file that is refused."""
    with pytest.raises(MediaError) as error:
        decode(data)
    return error.value


def outcome(data: bytes) -> Sample | str:
    """The sample of a file, or the reason why it has none."""
    try:
        return decode(data)
    except MediaError as error:
        return error.reason

"""Decoding of Netpbm files: PBM, PGM and PPM, plain and raw, and PAM, of 8 and of 16 bits.

Format: https://netpbm.sourceforge.net/doc/#formats

h lines    w pixels of a line    v values of a pixel, with alpha
"""

from __future__ import annotations

import re
from typing import NamedTuple

import numpy as np
import numpy.typing as npt
import PIL.Image

from bytelm.modalities.base import Limits, MediaError
from bytelm.modalities.image_files.decoded_image import DecodedImage, bands_of, check_size

_FLOAT_KINDS = (b"Pf", b"PF", b"PF4")
_VALUES = {1: 1, 2: 1, 3: 3, 4: 1, 5: 1, 6: 3}
"""Values of a pixel by the digit of the kind."""
_BITMAPS, _PLAIN = (1, 4), (1, 2, 3)
_SPACE = rb"(?:\s|#[^\n]*\n)+"
_PAM_END = re.compile(rb"^ENDHDR[ \t\r]*\n", re.MULTILINE)
_PAM_FIELD = re.compile(rb"^(WIDTH|HEIGHT|DEPTH|MAXVAL)\s+(\d{1,9})\s*$", re.MULTILINE)
_MAX_HEADER = 1 << 16


class _Header(NamedTuple):
    width: int
    height: int
    values: int
    maximum: int
    """The value of full brightness."""
    start: int
    """Position of the first pixel."""
    is_plain: bool = False
    is_bitmap: bool = False


def decode_netpbm(data: bytes, limits: Limits) -> DecodedImage:
    """Decode the first image of a Netpbm file. Raises MediaError."""
    if data[:3].strip() in _FLOAT_KINDS:
        raise MediaError("unreadable", "floating-point pixels (PFM), which have no range")
    header = _pam_header(data) if data[:2] == b"P7" else _header(data)
    channels = 1 if header.values <= 2 else 3
    check_size(header.width, header.height, channels, limits)
    if not 1 <= header.maximum <= 0xFFFF:
        raise MediaError("damaged", f"a brightest value of {header.maximum}")
    image = DecodedImage(header.width, header.height, channels)
    if header.is_bitmap and not header.is_plain:
        picture = _bitmap(data, header)
    else:
        values = _plain_values(data, header) if header.is_plain else _raw_values(data, header)
        values = values.reshape(header.height, header.width, header.values)
        if header.maximum > 255:
            image.deep_bands = [_scale(values, header.maximum, np.uint16)]
            return image
        picture = _picture(_scale(values, header.maximum, np.uint8))
        if header.is_bitmap:
            picture = picture.point(lambda level: 255 - level)
    image.bands = bands_of(picture)
    return image


def _picture(pixels: npt.NDArray[np.uint8]) -> PIL.Image.Image:
    return PIL.Image.fromarray(pixels[:, :, 0] if pixels.shape[2] == 1 else pixels)


def _header(data: bytes) -> _Header:
    """The header of a PBM, PGM or PPM file."""
    kind = data[1] - ord("0")
    count = 2 if kind in _BITMAPS else 3
    pattern = rb"P\d" + (_SPACE + rb"(\d{1,9})") * count + rb"(?:#[^\n]*)?\s"
    match = re.match(pattern, data[:_MAX_HEADER])
    if kind not in _VALUES or not match:
        raise MediaError("damaged", "a header that cannot be read")
    width, height, *rest = map(int, match.groups())
    maximum = rest[0] if rest else 1
    return _Header(
        width, height, _VALUES[kind], maximum, match.end(), kind in _PLAIN, kind in _BITMAPS
    )


def _pam_header(data: bytes) -> _Header:
    """The header of a PAM file."""
    end = _PAM_END.search(data[:_MAX_HEADER])
    fields = dict(_PAM_FIELD.findall(data[: end.start()])) if end else {}
    if end is None or len(fields) < 4:
        raise MediaError("damaged", "a header that cannot be read")
    width, height, values, maximum = (
        int(fields[name]) for name in (b"WIDTH", b"HEIGHT", b"DEPTH", b"MAXVAL")
    )
    if not 1 <= values <= 4:
        raise MediaError("unreadable", f"a PAM of {values} values a pixel")
    return _Header(width, height, values, maximum, end.end())


def _bitmap(data: bytes, header: _Header) -> PIL.Image.Image:
    """Pixels of one bit, where 1 is black."""
    size = (header.width + 7) // 8 * header.height
    _check_length(len(data) - header.start, size)
    bits = memoryview(data)[header.start : header.start + size]
    return PIL.Image.frombytes("1", (header.width, header.height), bits, "raw", "1;I")


def _raw_values(data: bytes, header: _Header) -> npt.NDArray[np.integer]:
    """All values, one after the other."""
    dtype = np.dtype(">u2" if header.maximum > 255 else "u1")
    count = header.width * header.height * header.values
    _check_length(len(data) - header.start, count * dtype.itemsize)
    return np.frombuffer(data, dtype, count, header.start)


def _plain_values(data: bytes, header: _Header) -> npt.NDArray[np.integer]:
    """All values, which are written as decimal numbers."""
    count = header.width * header.height * header.values
    text = re.sub(rb"#[^\n]*", b"", data[header.start :])
    if header.is_bitmap:  # digits may stand side by side
        text = b" ".join(re.findall(rb"[01]", text))
    words = text.split(maxsplit=count)[:count]
    _check_length(len(words), count)
    try:
        values = np.array(words, dtype="S9").astype(np.int64)
    except ValueError as error:
        raise MediaError("damaged", "a value that is no number") from error
    return values


def _check_length(found: int, needed: int) -> None:
    if found < needed:
        raise MediaError("truncated", f"{found} of {needed} pixel values or bytes")


def _scale(
    values: npt.NDArray[np.integer], maximum: int, dtype: type[np.unsignedinteger]
) -> npt.NDArray:
    """Values of 0 to `maximum` on the full scale of a type, rounded; those above are clipped."""
    full = np.iinfo(dtype).max
    if maximum == full:
        return values.astype(dtype)
    table = (np.arange(maximum + 1) * full + maximum // 2) // maximum
    return table.astype(dtype)[np.minimum(values, maximum)]

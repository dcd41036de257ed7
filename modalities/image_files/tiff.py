"""Decoding of TIFF files, by Pillow and libtiff.

The first directory is read here: Pillow does not say why it refuses a file, and does not look
whether its pixels lie within the file.

Format: https://www.itu.int/itudoc/itu-t/com16/tiff-fx/docs/tiff6.pdf
"""

from __future__ import annotations

import io
import struct
from typing import NamedTuple

import numpy as np
import PIL.Image
import PIL.ImageFile

from bytelm.modalities.base import Limits, MediaError
from bytelm.modalities.image_files.decoded_image import (
    REDUCED_NOTE,
    SEVERAL_NOTE,
    DecodedImage,
    Samples,
    bands_of,
    check_size,
)

_WIDTH, _HEIGHT, _BITS, _COMPRESSION, _PHOTOMETRIC = 256, 257, 258, 259, 262
_ORIENTATION, _PLANES, _FORMAT = 274, 284, 339
_STRIPS, _TILES = (273, 279), (324, 325)
"""Tags of the positions and the sizes of pixels."""
_WHITE_IS_ZERO, _LAB = 0, 8
_UNSIGNED = 1
_FORMATS = {2: "signed", 3: "floating-point", 4: "undefined", 5: "complex", 6: "complex"}
_TYPES = {1: "B", 3: "H", 4: "I", 13: "I", 16: "Q"}
_MAX_VALUES = 1 << 22
_SWAPPED = {"B": "L", "L": "B", "N": "B"}  # libtiff gives the machine's own order, little-endian

Directory = dict[int, tuple[int, ...]]
"""Integer values of a directory by tag."""


class _Layout(NamedTuple):
    """How a TIFF file writes numbers."""

    order: str
    is_big: bool


def decode_tiff(data: bytes, limits: Limits) -> DecodedImage:
    """Decode the first page of a TIFF file. Raises MediaError, or what Pillow raises."""
    directory, next_page = _read_directory(data)
    width, height = _one(directory, _WIDTH, 0), _one(directory, _HEIGHT, 0)
    check_size(width, height, 1, limits)
    _check_directory(directory, len(data))
    import PIL.TiffImagePlugin

    PIL.TiffImagePlugin.READ_LIBTIFF = True  # Pillow's own reader mistakes planes of 16 bits
    with _open(data, directory) as image:
        deep = image.mode.startswith("I;16") or _raw_mode(image)[-4:-1] == ";16"
        channels = 1 if image.mode in ("1", "L", "LA", "La") or image.mode[0] == "I" else 3
        check_size(width, height, channels * 2 if deep else channels, limits)
        decoded = DecodedImage(image.width, image.height, channels)
        decoded.profile = image.info.get("icc_profile", b"")
        if next_page:
            decoded.notes.append(SEVERAL_NOTE)
        planes = _one(directory, _PLANES, 1)
        if planes != 1 and image.mode in ("LA", "La", "PA"):
            raise MediaError("unreadable", "grey and alpha in planes, which Pillow mistakes")
        if deep and (image.mode.startswith("I;16") or _is_readable_twice(image, planes)):
            decoded.deep_bands = [_deep_samples(image, data, directory)]
        else:
            _load(image)
            if deep:
                decoded.notes.append(REDUCED_NOTE.format(16))
            decoded.bands = bands_of(image.convert("RGB") if image.mode == "YCbCr" else image)
    return decoded


def _open(data: bytes, directory: Directory) -> PIL.ImageFile.ImageFile:
    """The file opened by Pillow; MediaError with the form of its pixels where Pillow refuses it."""
    try:
        return PIL.Image.open(io.BytesIO(data), formats=["TIFF"])
    except PIL.UnidentifiedImageError as error:
        bits = "+".join(map(str, directory.get(_BITS) or (1,)))
        raise MediaError(
            "unreadable",
            f"Pillow reads no TIFF of {bits} bits, photometric {_one(directory, _PHOTOMETRIC, 0)}, "
            f"compression {_one(directory, _COMPRESSION, 1)}",
        ) from error


def _is_readable_twice(image: PIL.ImageFile.ImageFile, planes: int) -> bool:
    """Whether the low bytes of 16-bit colours can be had, which Pillow gives in a second reading.

    Of colours in planes it has the upper bytes alone.
    """
    return planes == 1 and image.mode in ("RGB", "RGBA")


def _load(image: PIL.ImageFile.ImageFile) -> None:
    """Decode the pixels; MediaError where libtiff fails, which tells Pillow a number alone."""
    try:
        image.load()
    except OSError as error:
        if str(error).startswith("decoder error"):
            raise MediaError("damaged", "libtiff cannot decode the pixels") from error
        raise


def _check_directory(directory: Directory, size: int) -> None:
    """Raise MediaError for pixels of a kind that is not read, or outside of the file."""
    bits = directory.get(_BITS) or (1,)
    kind = _one(directory, _FORMAT, _UNSIGNED)
    if kind in _FORMATS:
        raise MediaError("unreadable", f"{_FORMATS[kind]} pixels, which have no range")
    if max(bits) > 16:
        raise MediaError("unreadable", f"pixels of {max(bits)} bits")
    if _one(directory, _PHOTOMETRIC, 0) == _LAB:
        raise MediaError("unreadable", "colours of CIE L*a*b*")
    for positions, sizes in (_STRIPS, _TILES):
        ends = zip(directory.get(positions, ()), directory.get(sizes, ()), strict=False)
        if any(position + length > size for position, length in ends):
            raise MediaError("truncated", "pixels that lie behind the end of the file")


def _raw_mode(image: PIL.ImageFile.ImageFile) -> str:
    """Pillow's name for the form of pixels in the file."""
    args = image.tile[0].args if image.tile else ()
    return str(args[0]) if isinstance(args, tuple) else ""


def _deep_samples(image: PIL.ImageFile.ImageFile, data: bytes, directory: Directory) -> Samples:
    """[h w v] 16-bit values, turned upright by Pillow."""
    if image.mode.startswith("I;16"):
        _load(image)
        samples: Samples = np.asarray(image).astype(np.uint16)[:, :, None]
        bits = _one(directory, _BITS, 16)
        samples <<= np.uint16(16 - bits)
        if _one(directory, _PHOTOMETRIC, 1) == _WHITE_IS_ZERO:
            np.subtract(0xFFFF, samples, out=samples)
        return samples
    _load(image)
    upper: Samples = np.asarray(image).astype(np.uint16) << np.uint16(8)
    with PIL.Image.open(io.BytesIO(data), formats=["TIFF"]) as again:
        args = again.tile[0].args
        assert isinstance(args, tuple)
        swapped = args[0][:-1] + _SWAPPED[args[0][-1]]
        again.tile = [again.tile[0]._replace(args=(swapped, *args[1:]))]
        _load(again)
        return upper | np.asarray(again)


# --- directory ---


def _read_directory(data: bytes) -> tuple[Directory, int]:
    """The first directory, and the position of the next one or 0."""
    order = "<" if data[:2] == b"II" else ">"
    is_big = 43 in data[2:4]
    try:
        if is_big:
            start = struct.unpack_from(order + "Q", data, 8)[0]
            count = struct.unpack_from(order + "Q", data, start)[0]
            first, step = start + 8, 20
        else:
            start = struct.unpack_from(order + "I", data, 4)[0]
            count = struct.unpack_from(order + "H", data, start)[0]
            first, step = start + 2, 12
        end = first + count * step
        next_page = struct.unpack_from(order + ("Q" if is_big else "I"), data, end)[0]
        layout = _Layout(order, is_big)
        directory: Directory = {}
        for position in range(first, end, step):
            tag, values = _read_entry(data, position, layout)
            directory[tag] = values
    except (struct.error, OverflowError) as error:
        raise MediaError("truncated", "its directory lies behind the end of the file") from error
    return directory, next_page


def _read_entry(data: bytes, position: int, layout: _Layout) -> tuple[int, tuple[int, ...]]:
    """Tag and integer values of an entry; no values where it holds others."""
    form = "HHQ" if layout.is_big else "HHI"
    tag, kind, count = struct.unpack_from(layout.order + form, data, position)
    letter = _TYPES.get(kind)
    if letter is None or count > _MAX_VALUES:
        return tag, ()
    room = 8 if layout.is_big else 4
    position += 4 + room
    if struct.calcsize(letter) * count > room:
        position = struct.unpack_from(layout.order + ("Q" if room == 8 else "I"), data, position)[0]
    return tag, struct.unpack_from(f"{layout.order}{count}{letter}", data, position)


def _one(directory: Directory, tag: int, default: int) -> int:
    """The first value of a tag."""
    return next(iter(directory.get(tag, ())), default)

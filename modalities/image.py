"""Images: 8-bit pixels in raster order, grey or RGB.

h lines    w pixels of a line    c channels    a, b lines and pixels of a tile
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import BinaryIO, ClassVar

import numpy as np
import numpy.typing as npt
import PIL.Image

from bytelm.modalities.base import (
    FILE_VIEW,
    Bytes,
    DecodeOptions,
    Header,
    Modality,
    Sample,
)
from bytelm.modalities.image_files.decode import decode_image
from bytelm.modalities.image_files.deep_png import deep_png
from bytelm.modalities.image_head import ImageHead
from bytelm.modalities.image_layout import tile_sides
from bytelm.modalities.raw_files import RAW_SUFFIX, raw_payload, raw_sample, write_raw

SIGNATURES = {
    "png": rb"\x89PNG\r\n\x1a\n",
    "jpg": rb"\xff\xd8\xff",
    "webp": rb"RIFF....WEBP",
    "gif": rb"GIF8[79]a",
    "bmp": rb"BM.{4}\0{4}.{4}[\x0c\x28\x34\x38\x40\x6c\x7c]\0\0\0",
    "ppm": rb"P[1-6]\s+(?:#[^\n]*\n\s*)*\d+\s+(?:#[^\n]*\n\s*)*\d+\s",
    "pam": rb"P7\s+(?:#[^\n]*\n\s*)*(?:WIDTH|HEIGHT|DEPTH|MAXVAL|TUPLTYPE)\s",
    "pfm": rb"P[Ff]4?\s+\d+\s+\d+\s+-?\d",
    "tif": rb"II[\x2a\x2b]\0|MM\0[\x2a\x2b]",
    "avif": rb".{4}ftyp(?:avi[fs]|(?:mif1|msf1|miaf).{4}(?:[ -~]{4})*?avi[fs])",
    "heic": rb".{4}ftyp(?:hei[cxms]|hev[cxms]|mif1|msf1|miaf)",
}
"""Regular expressions for the first bytes of a file, by suffix."""

_SIGNATURE = re.compile(b"|".join(b"(?:%b)" % s for s in SIGNATURES.values()), re.DOTALL)


class Image(Modality):
    """PNG, JPEG, WebP, GIF, BMP, Netpbm, TIFF, AVIF and HEIC files; the first frame of several."""

    name = "image"
    code = 1
    som = 260
    views = ("raster", "planar", "patch", "deep")
    plain_views = ("raster", "deep")
    whole_views = frozenset({"planar", "patch"})
    value_bytes = (1, 2)
    view_value_bytes: ClassVar = {"raster": 1, "planar": 1, "patch": 1, "deep": 2}
    header_format = ">HHB"
    header_fields = ("width", "height", "channels")
    head = ImageHead
    suffixes = ("png",)

    def recognises(self, start: bytes) -> bool:
        return _SIGNATURE.match(start) is not None

    def decode_file(self, file: BinaryIO, options: DecodeOptions) -> Sample:
        sample = decode_image(file, options)
        if options.keep_files:
            file.seek(0)
            return raw_sample(self.name, sample.header, file.read())
        return sample

    def member_suffix(self, sample: Sample) -> str:
        if sample.is_file:
            return RAW_SUFFIX
        suffix = "gray" if sample.header.channels == 1 else "rgb"
        return f"{suffix}16" if sample.is_deep else suffix

    def write_file(self, sample: Sample, stem: Path, suffix: str | None = None) -> Path:
        """Write a sample as PNG, a raw file as it is."""
        if sample.is_file:
            return write_raw(sample, stem, SIGNATURES, default=RAW_SUFFIX)
        path = stem.with_name(f"{stem.name}.png")
        if sample.is_deep:
            path.write_bytes(deep_png(deep_pixels(sample)))
            return path
        pixels = np.frombuffer(sample.data, np.uint8).reshape(_shape(sample.header))  # [h w c]
        if sample.header.channels == 1:
            pixels = pixels[:, :, 0]
        PIL.Image.fromarray(pixels).save(path, "PNG")
        return path

    def check_view(self, view: str, channels: int, patch: int) -> None:
        """Raise ValueError for the view `patch` where the channels do not divide the patch."""
        self.view_code(view)
        if view == "patch" and patch % channels:
            raise ValueError(
                f"view 'patch' of image: a patch of {patch} bytes holds no whole pixels of "
                f"{channels} channels; choose a patch size that is a multiple of {channels}, or "
                "the view 'raster' or 'planar'"
            )

    def to_view(self, sample: Sample, view: str, patch: int) -> Bytes:
        self.view_code(view)
        raw = raw_payload(sample, view)
        if raw is not None:
            return raw
        flat = np.frombuffer(sample.data, np.uint8)
        if view == "deep":
            return flat if sample.is_deep else flat.repeat(2)  # v / 255 is (257 v) / 65535
        if sample.is_deep:
            flat = flat[::2]  # the high bytes
        if view == "raster":
            return flat
        pixels = flat.reshape(_shape(sample.header))  # [h w c]
        if view == "planar":
            return pixels.transpose(2, 0, 1).reshape(-1)  # [c h w]
        return self._to_tiles(pixels, patch)

    def from_view(self, header: Header, payload: Bytes, view: str, patch: int) -> Sample:
        """The sample of a whole payload; ValueError where the header gives another length."""
        self.view_code(view)
        if view == FILE_VIEW:
            return raw_sample(self.name, header, payload.tobytes())
        height, width, channels = _shape(header)
        if payload.size != height * width * channels * self.view_value_bytes[view]:
            raise ValueError(
                f"an image payload of {payload.size} bytes where the header says "
                f"{width} x {height} x {channels}"
            )
        if view == "planar":
            payload = payload.reshape(channels, height, width).transpose(1, 2, 0)  # [h w c]
        elif view == "patch":
            payload = self._from_tiles(payload, _shape(header), patch)
        return Sample(self.name, header, payload.tobytes(), is_deep=view == "deep")

    def _to_tiles(self, pixels: Bytes, patch: int) -> Bytes:
        """[h w c] to [h w c] bytes: whole tiles, the strip right of them, the strip below."""
        height, width, channels = pixels.shape
        self.check_view("patch", channels, patch)
        a, b = tile_sides(channels, patch)
        rows, columns = height // a, width // b
        tiles = pixels[: rows * a, : columns * b].reshape(rows, a, columns, b, channels)
        return np.concatenate(
            [
                tiles.transpose(0, 2, 1, 3, 4).reshape(-1),  # [rows columns a b c]
                pixels[: rows * a, columns * b :].reshape(-1),
                pixels[rows * a :].reshape(-1),
            ]
        )

    def _from_tiles(self, payload: Bytes, shape: tuple[int, int, int], patch: int) -> Bytes:
        """The inverse of `_to_tiles`, to [h w c]."""
        height, width, channels = shape
        self.check_view("patch", channels, patch)
        a, b = tile_sides(channels, patch)
        rows, columns = height // a, width // b
        right = rows * a * columns * b * channels  # begin of the strip right of the tiles
        bottom = rows * a * width * channels
        pixels = np.empty(shape, np.uint8)
        tiles = payload[:right].reshape(rows, columns, a, b, channels)
        pixels[: rows * a, : columns * b] = tiles.transpose(0, 2, 1, 3, 4).reshape(
            rows * a, columns * b, channels
        )
        pixels[: rows * a, columns * b :] = payload[right:bottom].reshape(
            rows * a, width - columns * b, channels
        )
        pixels[rows * a :] = payload[bottom:].reshape(height - rows * a, width, channels)
        return pixels


def deep_pixels(sample: Sample) -> npt.NDArray[np.uint16]:
    """[h w c] values of a deep sample."""
    return np.frombuffer(sample.data, ">u2").reshape(_shape(sample.header)).astype(np.uint16)


def _shape(header: Header) -> tuple[int, int, int]:
    return header.height, header.width, header.channels

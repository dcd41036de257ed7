"""Sizes of codecs on the same bytes: gzip and xz on all, PNG and WebP on images, FLAC on sounds.

Each sample is compressed into a file of its own, and the container's overhead counts.
"""

from __future__ import annotations

import gzip
import io
import lzma
from collections import Counter

import PIL.Image
import soundfile

from bytelm.modalities.audio import fits_flac, frames
from bytelm.modalities.base import Bytes, Sample
from bytelm.modalities.image import deep_pixels
from bytelm.modalities.image_files.deep_png import deep_png

WEBP_MAX_SIDE = 16_383
"""Longest side in pixels that the format allows."""


class CodecSizes:
    """Sums over many samples of one modality: compressed bytes of each codec, payload bytes."""

    def __init__(self) -> None:
        self._compressed: Counter[str] = Counter()
        self._payload: Counter[str] = Counter()

    def add(self, sample: Sample, payload: Bytes) -> None:
        """Compress one sample with each codec that its modality has.

        PNG, lossless WebP and FLAC code the sample, and are counted only where the payload has as
        many bytes: not for a lossy view, and not for a file that is kept as it is.
        """
        raw = payload.tobytes()
        self._count("gzip", gzip.compress(raw, 9), raw)
        self._count("xz", lzma.compress(raw), raw)
        if sample.is_file or len(raw) != len(sample.data):
            return
        if sample.modality == "image":
            self._count("PNG", _image_file(sample, "PNG", optimize=True), raw)
            is_small = max(sample.header.width, sample.header.height) <= WEBP_MAX_SIDE
            if is_small and not sample.is_deep:
                self._count("WebP", _image_file(sample, "WEBP", lossless=True, method=6), raw)
        if sample.modality == "audio" and fits_flac(sample.header):
            self._count("FLAC", _flac(sample), raw)

    def _count(self, codec: str, compressed: bytes, raw: bytes) -> None:
        self._compressed[codec] += len(compressed)
        self._payload[codec] += len(raw)

    def bits_per_byte(self) -> dict[str, float]:
        """Compressed bits per payload byte, for each codec that compressed anything."""
        return {name: 8 * size / self._payload[name] for name, size in self._compressed.items()}


def _image_file(sample: Sample, format_: str, **options: object) -> bytes:
    header, file = sample.header, io.BytesIO()
    if sample.is_deep:
        return deep_png(deep_pixels(sample))
    mode = "L" if header.channels == 1 else "RGB"
    image = PIL.Image.frombytes(mode, (header.width, header.height), sample.data)
    image.save(file, format_, **options)
    return file.getvalue()


def _flac(sample: Sample) -> bytes:
    file = io.BytesIO()
    subtype = "PCM_24" if sample.is_deep else "PCM_16"
    soundfile.write(file, frames(sample), sample.header.rate, format="FLAC", subtype=subtype)
    return file.getvalue()

"""The codecs that a model is compared with: their settings, libraries and command-line tools.

Each size is that of a file which a decoder can read, with the overhead of its container. It is to
the byte the size that the codec's own tool gives on the same file with the same settings:

    gzip         gzip -9n
    xz           xz -9e -T1
    zstd         zstd --ultra -22 --no-check
    brotli       brotli -q 11 -w 24
    bzip2        bzip2 -9
    PPMd         7z a -m0=PPMd:o=6:mem=28, its "packed size", and 13 bytes of header
    PNG          (Pillow, optimised; 16 bits: `deep_png`)
    WebP         cwebp -lossless -m 6 -q 100
    JPEG XL e7   cjxl -d 0 -e 7
    JPEG XL e9   cjxl -d 0 -e 9
    FLAC         flac -8 --no-padding --no-seektable
    WavPack      wavpack -hhx6

The versions of xz, brotli, bzip2, PPMd and FLAC agree, and a library computes them. Those of gzip
(GNU's and zlib's), zstd, WebP and JPEG XL do not: their tools run where they are installed, and
libraries elsewhere. WavPack has a tool only.
"""

from __future__ import annotations

import bz2
import importlib.metadata
import io
import lzma
import platform
import zlib
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import TypeVar

import numpy as np
import numpy.typing as npt
import PIL.Image
import soundfile

from bytelm.modalities.audio import fits_flac, frames
from bytelm.modalities.base import Sample
from bytelm.modalities.image import deep_pixels
from bytelm.modalities.image_files.deep_png import deep_png
from bytelm.pipelines.evaluation.codec_tools import Tool
from bytelm.pipelines.runtime.optional_packages import can_import

EXTRA = "pip install 'bytelm[codecs]'"
WEBP_MAX_SIDE = 16_383
"""Longest side in pixels that WebP allows."""
WAVPACK_MAX_CHANNELS = 254
PPMD_ORDER = 6
PPMD_MEMORY_BITS = 28
PPMD_PIECE = 1 << 14
PPMD_HEADER_BYTES = 13
"""Order and memory in five bytes, as in archives of 7z, and the length in eight."""
XZ_MAX_DICTIONARY = 1 << 26


@dataclass(frozen=True)
class ByteCodec:
    """A codec of any bytes."""

    name: str
    library: Callable[[bytes], int]
    """Computes the size of a file of these bytes."""
    module: str = ""
    """The module of the library, and of the package that brings it; empty if the core has it."""
    package: str = ""
    """The core's package that has the library; empty where it is Python's own."""
    tool: Tool | None = None
    """Computes the size instead, where it is installed."""
    remedy: str = ""
    """The command that brings the codec where it cannot run."""


@dataclass(frozen=True)
class MediaCodec:
    """A codec of decoded images or sounds."""

    name: str
    modality: str
    fits: Callable[[Sample], bool]
    """Whether the codec's format can hold a sample."""
    library: Callable[[Sample], int] | None = None
    """Computes the size of a sample's file."""
    module: str = ""
    package: str = ""
    tool: Tool | None = None
    tool_input: Callable[[Sample], bytes] | None = None
    """Makes the file that the tool reads."""
    remedy: str = ""


Codec = ByteCodec | MediaCodec
AnyCodec = TypeVar("AnyCodec", ByteCodec, MediaCodec, Codec)


def uses_tool(codec: Codec) -> bool:
    """Whether the codec's command-line tool is installed, and runs in place of a library."""
    return codec.tool is not None and codec.tool.path is not None


def is_installed(codec: Codec) -> bool:
    """Whether a tool or a library can run the codec."""
    if uses_tool(codec):
        return True
    return codec.library is not None and (not codec.module or can_import(codec.module))


def version_of(codec: Codec) -> str:
    """The tool or library that computes the codec, with its version: `cjxl 0.7.0`."""
    if codec.tool is not None and uses_tool(codec):
        return codec.tool.version()
    package = codec.module or codec.package
    if not package:
        return f"Python {platform.python_version()}"
    try:
        return f"{package} {importlib.metadata.version(package)}"
    except importlib.metadata.PackageNotFoundError:  # a distribution calls its package otherwise
        return package


def installed(codecs: Iterable[AnyCodec]) -> list[AnyCodec]:
    """Those codecs that a tool or a library can run."""
    return [codec for codec in codecs if is_installed(codec)]


# --- any bytes ---


def _gzip_size(raw: bytes) -> int:
    compressor = zlib.compressobj(9, wbits=31)
    return len(compressor.compress(raw)) + len(compressor.flush())


def _xz_size(raw: bytes) -> int:
    """Size at -9e, whose dictionary of 64 MiB takes 30 ms to clear: one of the content's size finds
    the same matches."""
    dictionary = min(max(1 << (len(raw) - 1).bit_length(), 1 << 12), XZ_MAX_DICTIONARY)
    preset = 9 | lzma.PRESET_EXTREME
    filters = [{"id": lzma.FILTER_LZMA2, "preset": preset, "dict_size": dictionary}]
    return len(lzma.compress(raw, filters=filters))


def _zstd_size(raw: bytes) -> int:
    import zstandard

    return len(zstandard.ZstdCompressor(level=22, write_checksum=False).compress(raw))


def _brotli_size(raw: bytes) -> int:
    import brotli

    return len(brotli.compress(raw, quality=11, lgwin=24))


def _bzip2_size(raw: bytes) -> int:
    return len(bz2.compress(raw, 9))


def _ppmd_size(raw: bytes) -> int:
    """Size by PPMd variant H with the memory that 7z takes: 16 bytes for one of the content.

    The content goes in by pieces: where its output buffer grows, pyppmd 1.3.1 loses a byte.
    """
    import pyppmd

    bits = min(max((16 * len(raw) - 1).bit_length(), 16), PPMD_MEMORY_BITS)
    encoder = pyppmd.Ppmd7Encoder(PPMD_ORDER, 1 << bits)
    pieces = (raw[i : i + PPMD_PIECE] for i in range(0, len(raw), PPMD_PIECE))
    return PPMD_HEADER_BYTES + sum(len(encoder.encode(p)) for p in pieces) + len(encoder.flush())


# --- images ---


def netpbm(sample: Sample) -> bytes:
    """A decoded image as a PGM or PPM file of 8 or 16 bits."""
    header = sample.header
    kind, largest = 5 if header.channels == 1 else 6, 65535 if sample.is_deep else 255
    start = f"P{kind}\n{header.width} {header.height}\n{largest}\n"
    return start.encode() + sample.data


def _pillow_image(sample: Sample) -> PIL.Image.Image:
    header = sample.header
    mode = "L" if header.channels == 1 else "RGB"
    return PIL.Image.frombytes(mode, (header.width, header.height), sample.data)


def _png_size(sample: Sample) -> int:
    if sample.is_deep:
        return len(deep_png(deep_pixels(sample)))
    file = io.BytesIO()
    _pillow_image(sample).save(file, "PNG", optimize=True)
    return file.tell()


def _fits_webp(sample: Sample) -> bool:
    header = sample.header
    return not sample.is_deep and max(header.width, header.height) <= WEBP_MAX_SIDE


def _webp_size(sample: Sample) -> int:
    file = io.BytesIO()
    _pillow_image(sample).save(file, "WEBP", lossless=True, method=6, quality=100)
    return file.tell()


def _jpeg_xl(effort: int) -> MediaCodec:
    """The codec JPEG XL, lossless, at an effort from 1 to 9."""

    def library(sample: Sample) -> int:
        import imagecodecs

        encode = imagecodecs.jpegxl_encode
        return len(encode(_pixels(sample), lossless=True, effort=effort, numthreads=1))

    return MediaCodec(
        f"JPEG XL e{effort}",
        "image",
        fits=lambda sample: True,
        library=library,
        module="imagecodecs",
        tool=Tool(f"cjxl --quiet --num_threads=0 -d 0 -e {effort} {{in}} {{out}}", ".jxl", ".ppm"),
        tool_input=netpbm,
        remedy=f"{EXTRA}, or Debian's libjxl-tools",
    )


def _pixels(sample: Sample) -> npt.NDArray[np.unsignedinteger]:
    """[h w] or [h w 3] values of a decoded image."""
    if sample.is_deep:
        pixels: npt.NDArray[np.unsignedinteger] = deep_pixels(sample)
    else:
        shape = sample.header.height, sample.header.width, sample.header.channels
        pixels = np.frombuffer(sample.data, np.uint8).reshape(shape)
    return pixels[:, :, 0] if sample.header.channels == 1 else pixels


# --- sounds ---


def _sound_file(sample: Sample, kind: str, **options: float) -> io.BytesIO:
    """A decoded sound as a WAV or FLAC file of 16 or 24 bits."""
    file = io.BytesIO()
    subtype = "PCM_24" if sample.is_deep else "PCM_16"
    soundfile.write(file, frames(sample), sample.header.rate, subtype, format=kind, **options)
    return file


def _flac_size(sample: Sample) -> int:
    return len(_sound_file(sample, "FLAC", compression_level=1.0).getvalue())


def wav(sample: Sample) -> bytes:
    """A decoded sound as a WAV file of 16 or 24 bits."""
    return _sound_file(sample, "WAV").getvalue()


BYTE_CODECS = (
    ByteCodec("gzip", _gzip_size, tool=Tool("gzip -9n {in}...", ".gz")),
    ByteCodec("xz", _xz_size),
    ByteCodec(
        "zstd",
        _zstd_size,
        module="zstandard",
        tool=Tool("zstd -q --ultra -22 --no-check {in}...", ".zst"),
        remedy=f"{EXTRA}, or Debian's zstd",
    ),
    ByteCodec("brotli", _brotli_size, module="brotli", remedy=EXTRA),
    ByteCodec("bzip2", _bzip2_size),
    ByteCodec("PPMd", _ppmd_size, module="pyppmd", remedy=EXTRA),
)
MEDIA_CODECS = (
    MediaCodec("PNG", "image", fits=lambda sample: True, library=_png_size, package="pillow"),
    MediaCodec(
        "WebP",
        "image",
        fits=_fits_webp,
        library=_webp_size,
        package="pillow",
        tool=Tool("cwebp -quiet -lossless -m 6 -q 100 {in} -o {out}", ".webp", ".ppm", "-version"),
        tool_input=netpbm,
    ),
    _jpeg_xl(7),
    _jpeg_xl(9),
    MediaCodec(
        "FLAC",
        "audio",
        fits=lambda sample: fits_flac(sample.header),
        library=_flac_size,
        package="soundfile",
    ),
    MediaCodec(
        "WavPack",
        "audio",
        fits=lambda sample: sample.header.channels <= WAVPACK_MAX_CHANNELS,
        tool=Tool("wavpack -q -hhx6 {in} -o {out}", ".wv", ".wav"),
        tool_input=wav,
        remedy="apt install wavpack",
    ),
)
CODECS: tuple[Codec, ...] = (*BYTE_CODECS, *MEDIA_CODECS)

"""Small files of every kind that `prepare` reads, and damaged copies of them."""

from __future__ import annotations

import csv
import gzip
import io
import json
import tarfile
from pathlib import Path
from typing import Any

import numpy as np
import PIL.Image
import pillow_heif
import pyarrow
import pyarrow.parquet
import soundfile
import zstandard

from helpers.sound_files import media

IMAGE_KINDS: dict[str, tuple[str, dict[str, object]]] = {
    "rgb.png": ("RGB", {}),
    "rgba.png": ("RGBA", {}),
    "grey.png": ("L", {}),
    "palette.png": ("P", {}),
    "deep.png": ("I;16", {}),
    "plain.jpg": ("RGB", {"quality": 80}),
    "progressive.jpg": ("RGB", {"progressive": True}),
    "cmyk.jpg": ("CMYK", {}),
    "lossy.webp": ("RGB", {}),
    "lossless.webp": ("RGBA", {"lossless": True}),
    "palette.gif": ("P", {}),
    "rgb.bmp": ("RGB", {}),
    "rgb.ppm": ("RGB", {}),
    "rgb.tiff": ("RGB", {}),
    "lzw.tiff": ("RGBA", {"compression": "tiff_lzw"}),
    "jpeg.tiff": ("RGB", {"compression": "jpeg"}),
    "fax.tiff": ("1", {"compression": "group4"}),
    "deep.tiff": ("I;16", {"compression": "tiff_deflate"}),
    "rgb.avif": ("RGB", {"speed": 10}),
    "alpha.avif": ("RGBA", {"speed": 10}),
    "rgb.heic": ("RGB", {}),
}
SOUND_KINDS = {
    "a.wav": ("WAV", "PCM_16"),
    "b.wav": ("WAV", "FLOAT"),
    "c.wav": ("WAV", "IMA_ADPCM"),
    "d.wav": ("WAV", "ULAW"),
    "a.flac": ("FLAC", "PCM_16"),
    "b.flac": ("FLAC", "PCM_24"),
    "a.ogg": ("OGG", "VORBIS"),
    "b.ogg": ("OGG", "OPUS"),
    "a.mp3": ("MP3", "MPEG_LAYER_III"),
    "a.aiff": ("AIFF", "PCM_16"),
    "a.w64": ("W64", "PCM_16"),
    "a.rf64": ("RF64", "PCM_24"),
    "a.caf": ("CAF", "ALAC_16"),
    "a.au": ("AU", "FLOAT"),
}
MEDIA_KINDS = {
    "a.m4a": ("ipod", "aac"),
    "b.m4a": ("ipod", "alac"),
    "a.webm": ("webm", "libopus"),
    "a.mkv": ("matroska", "flac"),
    "a.wma": ("asf", "wmav2"),
    "a.aac": ("adts", "aac"),
    "a.mp2": ("mp2", "mp2"),
    "a.oga": ("ogg", "flac"),
}


def images(rng: np.random.Generator) -> list[tuple[str, bytes]]:
    """Name and bytes of a small image of each kind."""
    files = []
    for name, (mode, options) in IMAGE_KINDS.items():
        pixels = rng.integers(0, 256, (40, 50, 4), np.uint8)
        pixels[10:30] = pixels[10, 0]
        image = PIL.Image.fromarray(pixels).convert("L" if mode == "I;16" else mode)
        file = io.BytesIO()
        suffix = name.partition(".")[2]
        if suffix == "heic":
            pillow_heif.from_pillow(image).save(file)
        else:
            image.convert(mode).save(file, {"jpg": "JPEG"}.get(suffix, suffix), **options)
        files.append((name, file.getvalue()))
    return files


def sounds(rng: np.random.Generator) -> list[tuple[str, bytes]]:
    """Name and bytes of a short sound of each kind."""
    files = []
    for name, (format_, subtype) in SOUND_KINDS.items():
        samples = rng.integers(-9000, 9000, (2000, 2), np.int16)
        file = io.BytesIO()
        soundfile.write(file, samples, 24_000, format=format_, subtype=subtype)
        files.append((name, file.getvalue()))
    for name, (container, codec) in MEDIA_KINDS.items():
        tone = rng.normal(size=(3000, 1)) * 0.2
        rate = 44_100 if codec == "wmav2" else 48_000
        files.append((name, media(container, {codec: tone}, rate)))
    return files


TABLE_ROWS = 20


def row_tables(rng: np.random.Generator) -> list[tuple[str, bytes]]:
    """Name and bytes of TABLE_ROWS texts as lines of JSON, plain and compressed, and as CSV."""
    rows = _table_rows(rng)
    lines = b"".join(json.dumps(row).encode() + b"\n" for row in rows)
    records = io.StringIO()
    writer = csv.DictWriter(records, list(rows[0]))
    writer.writeheader()
    writer.writerows(rows)
    return [
        ("a.jsonl", lines),
        ("a.jsonl.gz", gzip.compress(lines)),
        ("a.jsonl.zst", zstandard.compress(lines)),
        ("a.csv", records.getvalue().encode()),
    ]


def parquet_tables(rng: np.random.Generator) -> list[tuple[str, bytes]]:
    """Name and bytes of a Parquet file of TABLE_ROWS texts for some ways to write one."""
    rows = _table_rows(rng)
    options: dict[str, dict[str, Any]] = {
        "snappy": {"compression": "snappy", "row_group_size": 7},
        "zstd": {"compression": "zstd", "data_page_version": "2.0"},
        "gzip": {"compression": "gzip", "use_dictionary": False},
        "plain": {"compression": "none", "write_page_checksum": True},
    }
    files = []
    for name, chosen in options.items():
        file = io.BytesIO()
        pyarrow.parquet.write_table(pyarrow.Table.from_pylist(rows), file, **chosen)
        files.append((f"{name}.parquet", file.getvalue()))
    return files


def _table_rows(rng: np.random.Generator) -> list[dict[str, object]]:
    """Rows with a text, each of which stands twice, and other columns."""
    texts = [rng.bytes(int(rng.integers(1, 60))).hex() for _ in range(TABLE_ROWS // 2)]
    return [{"id": i, "text": text, "url": "u" * (i % 9)} for i, text in enumerate(texts * 2)]


TAR_DOCUMENTS = 4


def tars(rng: np.random.Generator) -> list[tuple[str, bytes]]:
    """Name and bytes of a tar of TAR_DOCUMENTS texts in each format that tarfile writes."""
    files = []
    formats = {"ustar": tarfile.USTAR_FORMAT, "gnu": tarfile.GNU_FORMAT, "pax": tarfile.PAX_FORMAT}
    for name, format_ in formats.items():
        file = io.BytesIO()
        with tarfile.open(fileobj=file, mode="w", format=format_) as tar:
            for i in range(TAR_DOCUMENTS):
                info = tarfile.TarInfo("long/" * 40 * (i % 2) + f"{i}.txt")
                info.size = int(rng.integers(1, 900))
                tar.addfile(info, io.BytesIO(b"x" * info.size))
        files.append((f"{name}.tar", file.getvalue()))
    return files


def mutate(data: bytes, rng: np.random.Generator) -> bytes:
    """A damaged copy: flipped bits, extreme numbers near the start, zeros, a cut, noise."""
    mutant = bytearray(data)
    for _ in range(rng.integers(1, 4)):
        size = len(mutant)
        near_start = rng.integers(2)
        position = int(rng.integers(min(size, 200) if near_start else size))
        damage = rng.integers(5)
        if damage == 0:
            mutant[position] ^= 1 << int(rng.integers(8))
        elif damage == 1:
            extreme = [b"\xff\xff\xff\xff", b"\0\0\0\0", b"\x7f\xff\xff\xff", b"\0\0\0\x80"]
            width = int(rng.integers(1, 5))
            mutant[position : position + width] = extreme[rng.integers(4)][:width]
        elif damage == 2:
            length = int(rng.integers(1, 600))
            mutant[position : position + length] = bytes(min(length, size - position))
        elif damage == 3:
            del mutant[max(position, 1) :]
        else:
            length = min(int(rng.integers(1, 64)), size - position)
            mutant[position : position + length] = rng.bytes(length)
    return bytes(mutant)


def write_mutants(
    folder: Path, sound: list[tuple[str, bytes]], count: int, rng: np.random.Generator
) -> list[str]:
    """Write damaged copies of sound files, and one whole text; returns the copies' names."""
    folder.mkdir(parents=True)
    (folder / "whole.txt").write_text("a text")
    names = []
    for i in range(count):
        name, data = sound[i % len(sound)]
        names.append(f"{i:05d}-{name}")
        (folder / names[-1]).write_bytes(mutate(data, rng))
    return names

"""A folder as people have them: all formats, datasets, sidecars, links, damage, and odd names."""

from __future__ import annotations

import csv
import gzip
import io
import json
import os
import tarfile
import zipfile
from collections.abc import Mapping
from pathlib import Path

import numpy as np
import PIL.Image
import soundfile

from helpers.source_files import txt

IMAGE_FORMATS = ("PNG", "JPEG", "WEBP", "GIF", "BMP", "PPM", "TIFF")
SOUND_FORMATS = ("WAV", "FLAC", "OGG", "MP3", "AIFF", "AU", "CAF", "RF64", "W64")


def make_mixed_folder(folder: Path, copies: int = 1) -> None:
    """Write some 75 files of all kinds, and as many again for each further copy."""
    for copy in range(copies):
        rng = np.random.default_rng(copy)
        top = folder / f"part {copy}"
        _media(top / "media", rng)
        _datasets(top, rng)
        _texts(top / "texts", copy)
        _damaged(top / "damaged", rng)
        _containers(top / "containers")
        _odd_names(top / "odd names")
        _links(top / "links")


def image_bytes(rng: np.random.Generator, kind: str = "PNG") -> bytes:
    """A file of an image of noise."""
    file = io.BytesIO()
    pixels = rng.integers(0, 256, (9, 12, 3), np.uint8)
    PIL.Image.fromarray(pixels).save(file, kind)
    return file.getvalue()


def sound_bytes(rng: np.random.Generator, kind: str = "WAV") -> bytes:
    """A file of a sound of noise."""
    file = io.BytesIO()
    samples = rng.integers(-9000, 9000, (2000, 1), np.int16)
    soundfile.write(file, samples, 16_000, format=kind)
    return file.getvalue()


def tar_bytes(members: Mapping[str, bytes]) -> bytes:
    """A tar of regular members."""
    file = io.BytesIO()
    with tarfile.open(fileobj=file, mode="w") as tar:
        for name, data in members.items():
            info = tarfile.TarInfo(name)
            info.size = len(data)
            tar.addfile(info, io.BytesIO(data))
    return file.getvalue()


def _media(folder: Path, rng: np.random.Generator) -> None:
    for kind in IMAGE_FORMATS:
        txt(folder / f"image as {kind}.{kind.lower()}", image_bytes(rng, kind))
    for kind in SOUND_FORMATS:
        txt(folder / f"sound as {kind}.{kind.lower()}", sound_bytes(rng, kind))
    for stem in ("dog", "cat"):
        txt(folder / f"{stem}.jpg", image_bytes(rng, "JPEG"))
        txt(folder / f"{stem}.txt", f"a {stem}")
    txt(folder / "cat.json", '{"caption": "another cat", "width": 12}')
    txt(folder / "bird.png", image_bytes(rng))
    txt(folder / "bird.json", '{"text": ["a bird", "a crow"]}')
    txt(folder / "png named jpg.jpg", image_bytes(rng))


def _datasets(top: Path, rng: np.random.Generator) -> None:
    for i in range(2):
        key = f"{i:09d}"
        txt(top / "img2dataset" / "00000" / f"{key}.jpg", image_bytes(rng, "JPEG"))
        txt(top / "img2dataset" / "00000" / f"{key}.txt", f"a boat {i}")
        txt(top / "img2dataset" / "00000" / f"{key}.json", json.dumps({"caption": f"{i}"}))
        txt(top / "imagefolder" / f"{i}.png", image_bytes(rng))
        txt(top / "ljspeech" / "wavs" / f"LJ{i}.wav", sound_bytes(rng))
    lines = "".join(json.dumps({"file_name": f"{i}.png", "text": f"no {i}"}) + "\n" for i in (0, 1))
    txt(top / "imagefolder" / "metadata.jsonl", lines)
    txt(top / "ljspeech" / "metadata.csv", "LJ0|One.|One.\nLJ1|Two.|Two.\n")


def _texts(folder: Path, copy: int) -> None:
    for name in ("foo.c", "foo.h", "README", "README.md", "index.html", "index.js"):
        txt(folder / name, f"content of {name} {copy}")
    txt(folder / "utf16.txt", "ein Text".encode("utf-16"))
    txt(folder / "latin1.txt", "für alle".encode("latin-1"))
    txt(folder / "packed.txt.gz", gzip.compress(b"a text that was packed"))
    txt(folder / "__pycache__" / "foo.cpython-311.pyc", b"\xa7\r\r\n" + bytes(60))
    txt(folder / "sub" / "folder" / "deep.txt", "deep")
    txt(folder / ".hidden", "hidden")
    txt(folder / "Thumbs.db", b"\xd0\xcf\x11\xe0" + bytes(100))


def _damaged(folder: Path, rng: np.random.Generator) -> None:
    txt(folder / "cut.png", image_bytes(rng)[:-40])
    txt(folder / "cut.flac", sound_bytes(rng, "FLAC")[:900])
    txt(folder / "page.jpg", "<!DOCTYPE html><html>404</html>")
    txt(
        folder / "pointer.png", "version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 9\n"
    )
    txt(folder / "empty.txt", "")
    txt(folder / "noise.dat", b"\0" + rng.bytes(300))
    txt(folder / "program.txt", b"\x7fELF" + bytes(500))
    txt(folder / "paper.pdf", b"%PDF-1.4\n" + bytes(80))
    archive = io.BytesIO()
    with zipfile.ZipFile(archive, "w") as writer:
        writer.writestr("a.txt", "a")
    txt(folder / "archive.zip", archive.getvalue())
    os.mkfifo(folder / "pipe")


def _containers(folder: Path) -> None:
    members = {f"{i}.txt": b"member %d" % i for i in range(5)}
    whole = tar_bytes({**members, "._0.txt": b"\0\5\26\7", "README": b"read me"})
    txt(folder / "whole.tar", whole)
    txt(folder / "cut.tar", tar_bytes(members)[:2600])
    txt(folder / "joined.tar", tar_bytes({"a.txt": b"a"}) + tar_bytes({"b.txt": b"b"}))
    txt(folder / "packed.tar.gz", gzip.compress(whole))
    rows = "".join(json.dumps({"text": f"row {i}"}) + "\n" for i in range(4))
    txt(folder / "rows.jsonl", rows + "{broken\n")
    table = io.StringIO()
    csv.writer(table).writerows([["id", "text"], [1, "of a table"]])
    txt(folder / "rows.csv", table.getvalue())
    txt(folder / "no columns.csv", "1,2\n3,4\n")


def _odd_names(folder: Path) -> None:
    for name in (
        *(
            "with [brackets].txt",
            "with {braces}.txt",
            "a.b.c.txt",
            "no suffix",
            "trailing.",
            "-dash",
        ),
        *("猫.txt", "line\nbreak.txt", "UPPER.TXT", "x" * 251 + ".txt"),
    ):
        txt(folder / name, f"named {name!a}")
    txt(folder / os.fsdecode(b"not utf-8 \xff.txt"), "named by bytes")


def _links(folder: Path) -> None:
    txt(folder / "file.txt", "linked to")
    os.link(folder / "file.txt", folder / "hard.txt")
    (folder / "soft.txt").symlink_to("file.txt")
    (folder / "nowhere.txt").symlink_to("gone.txt")
    (folder / "loop.txt").symlink_to("loop.txt")
    (folder / "to folder").symlink_to("../texts")

"""Detection by content, and the check of names against it."""

from __future__ import annotations

import gzip
import io

import numpy as np
import PIL.Image
import pytest
import soundfile

from bytelm.modalities.base import MediaError
from bytelm.modalities.binary_kinds import binary_kind
from bytelm.modalities.detect import detect_modality


def image_bytes(kind: str) -> bytes:
    file = io.BytesIO()
    PIL.Image.new("RGB", (4, 3)).save(file, kind)
    return file.getvalue()


def sound_bytes() -> bytes:
    file = io.BytesIO()
    soundfile.write(file, np.zeros(100, np.int16), 8000, format="WAV")
    return file.getvalue()


POINTER = b"version https://git-lfs.github.com/spec/v1\noid sha256:0f\nsize 12345\n"


@pytest.mark.parametrize(
    ("name", "data", "modality"),
    [
        ("a.png", image_bytes("PNG"), "image"),
        ("a.jpg", image_bytes("PNG"), "image"),
        ("a.txt", image_bytes("PNG"), "image"),
        ("a", sound_bytes(), "audio"),
        ("a.mp3", sound_bytes(), "audio"),
        ("folder.wav/README", b"a text", "text"),
        ("symbols/au", b"a text", "text"),
        ("a.svg", b"<svg/>", "text"),
        ("a.ts", b"let x = 1", "text"),
        ("a.gz", gzip.compress(b"a text", mtime=0), "text"),
        ("lfs.md", b"A pointer begins: version https://git-lfs.github.com/spec/v1", "text"),
    ],
)
def test_content_decides(name: str, data: bytes, modality: str) -> None:
    assert detect_modality(name, data) == modality


@pytest.mark.parametrize(
    ("name", "data", "reason", "detail"),
    [
        ("a.JPG", b" <!DOCTYPE html><html>", "disagree", "named .jpg, holds text (HTML)"),
        ("a.jpg", b"error code: 502", "disagree", "named .jpg, holds text"),
        ("a.wav", b'{"error": 404}', "disagree", "named .wav, holds text (JSON)"),
        ("a.mp4", b"<?xml version='1.0'?>", "disagree", "named .mp4, holds text (XML)"),
        ("a.png", sound_bytes(), "disagree", "named .png, holds a sound"),
        ("a.flac", image_bytes("PNG"), "disagree", "named .flac, holds an image"),
        ("a.png", b"%PDF-1.4\n", "disagree", "named .png, holds a PDF"),
        ("a.bin", b"%PDF-1.4\n", "unknown kind", "a PDF"),
        ("a.jp2", b"\0\0\0\x0cjP  \r\n", "unknown kind", "a JPEG 2000 image"),
        ("a.png", bytes(64), "unknown kind", "no image, no sound, no text"),
        ("a.xz", b"\xfd7zXZ\0\0\4", "compressed", "an xz file: decompress it first"),
        (
            "a.gz",
            gzip.compress(bytes(99), mtime=0),
            "compressed",
            "a gzip file: decompress it first",
        ),
        ("a.png", POINTER, "git-lfs pointer", "run `git lfs pull`"),
        ("a.txt", POINTER, "git-lfs pointer", "run `git lfs pull`"),
        ("a.flac", b"/annex/objects/SHA256E-s9--0f.flac\n", "git-annex pointer", "`git annex get`"),
    ],
)
def test_a_file_is_refused_with_its_true_reason(
    name: str, data: bytes, reason: str, detail: str
) -> None:
    with pytest.raises(MediaError) as error:
        detect_modality(name, data)
    assert reason in error.value.reason
    assert detail in error.value.detail


@pytest.mark.parametrize(
    "text", [b"BZh is bzip2", b"PAR1 = 3", b"GGUF models", b"MZ", b"Rar!", b"wOFF", b"\x80"]
)
def test_a_text_that_begins_like_a_signature_is_no_binary(text: bytes) -> None:
    assert binary_kind(text) is None
    assert detect_modality("a", text) == "text"

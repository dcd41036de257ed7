"""Compression keeps the bytes of files that `prepare` would convert or refuse."""

from __future__ import annotations

import gzip

import pytest

from bytelm.pipelines.compression.documents import decode_sample, encode_file

VIEWS = {"text": "utf8", "image": "raster", "audio": "s16le"}


@pytest.mark.parametrize(
    "data",
    [
        "ein Text\r\n".encode("utf-16"),
        "第一章".encode("utf-32"),
        gzip.compress(b"a text", mtime=0),
        b"version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 1\n",
        b"%PDF-1.7 \xe2\xe3",
        b"\0" * 50,
        bytes(range(1, 32)) * 9,
    ],
)
def test_a_file_comes_back_byte_for_byte(data: bytes) -> None:
    document = encode_file("a.png", data, VIEWS, keep_files=False, patch=8)
    assert document.payload.tobytes() == data
    assert decode_sample(document, patch=8).data == data

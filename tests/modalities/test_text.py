"""Text: bytes unchanged, refusals, views, files, and the score."""

from __future__ import annotations

import codecs
import contextlib
import gzip
import io
import math
from pathlib import Path

import numpy as np
import pytest
from helpers.scored_segments import scored
from hypothesis import given
from hypothesis import strategies as st

from bytelm.modalities import MODALITIES
from bytelm.modalities.base import DecodeOptions, Header, Limits, MediaError, Sample

TEXT = MODALITIES["text"]


def decoded(data: bytes) -> Sample:
    return TEXT.decode_file(io.BytesIO(data), DecodeOptions())


@given(st.text(min_size=1, max_size=2000))
def test_a_text_in_utf8_stays_unchanged(text: str) -> None:
    data = text.replace("\0", "").translate(dict.fromkeys(range(1, 32))).encode() + b"."
    assert decoded(data) == Sample("text", Header(), data)
    assert decoded(codecs.BOM_UTF8 + data).data == codecs.BOM_UTF8 + data


@given(st.binary(min_size=1, max_size=2000))
def test_any_bytes_come_back_from_a_payload(data: bytes) -> None:
    sample = Sample("text", Header(), data)
    payload = TEXT.to_view(sample, "utf8", 8)
    assert payload.size == TEXT.payload_size(len(data), "utf8")
    assert TEXT.from_view(sample.header, payload, "utf8", 8) == sample


@given(st.binary(max_size=2000))
def test_any_bytes_are_a_text_or_refused(data: bytes) -> None:
    with contextlib.suppress(MediaError):
        assert b"\0" not in decoded(data).data


@pytest.mark.parametrize(
    ("text", "encoding"),
    [
        ("Grüße aus Köln, ça va? " * 9, "latin-1"),
        ("これは日本語の文章です。" * 9, "shift_jis"),
        ("これは日本語の文章です。" * 9, "iso2022_jp"),
        ("Съешь ещё этих мягких булок" * 9, "koi8-r"),
        ("我们的故事从这里开始。" * 9, "gb18030"),
        ("a line\nand another\n" * 9, "cp037"),
        ("NAME\b\b\b\bNAME \x1b[1mbold\x1b[0m\x1a", "ascii"),
        ("one\x01two\x01three\n" * 9, "ascii"),
    ],
)
def test_a_text_in_any_encoding_without_zeros_stays_unchanged(text: str, encoding: str) -> None:
    data = text.encode(encoding)
    assert TEXT.recognises(data[:4096])
    assert decoded(data) == Sample("text", Header(), data)
    assert not decoded(data).notes


@pytest.mark.parametrize("text", ["ein Text\r\n", "Приве́т, мир", "第一章 😀", "é"])
@pytest.mark.parametrize("encoding", ["utf-16-le", "utf-16-be", "utf-32-le", "utf-32-be"])
def test_utf16_and_utf32_are_converted_to_utf8(text: str, encoding: str) -> None:
    data = f"\ufeff{text}".encode(encoding)
    sample = decoded(data)
    assert TEXT.recognises(data)
    assert sample.data == text.encode()
    assert sample.notes == (f"converted from {encoding[:6].upper()}",)


def test_utf16_without_a_mark_shows_by_its_zeros() -> None:
    for encoding in ("utf-16-le", "utf-16-be"):
        assert decoded("Windows Registry Editor".encode(encoding)).data.startswith(b"Windows")
    numbers = np.arange(1, 200, dtype="<u2").tobytes()
    assert not TEXT.recognises(numbers)


def test_a_long_text_in_utf16_is_converted_in_chunks_without_a_seam() -> None:
    text = "a😀" * 400_000 + "b"
    assert decoded(text.encode("utf-16")).data == text.encode()
    with pytest.raises(MediaError, match="damaged: no valid UTF-16 after"):
        decoded(text.encode("utf-16")[:-1])


def test_the_limit_holds_for_a_text_that_grows() -> None:
    options = DecodeOptions(limits=Limits(max_bytes=300))
    for data in ("\ufeff" + "第" * 140).encode("utf-16-le"), gzip.compress(b"x" * 301):
        with pytest.raises(MediaError, match="over the limit"):
            TEXT.decode_file(io.BytesIO(data), options)


def test_a_text_in_gzip_is_decompressed() -> None:
    data = gzip.compress(b"one ") + gzip.compress(b"two")
    assert TEXT.recognises(data)
    assert decoded(data).data == b"one two"
    assert decoded(data).notes == ("decompressed from gzip",)
    assert not TEXT.recognises(gzip.compress(bytes(100)))
    for cut, reason in ((data[:-9], "truncated"), (data[:-6] + bytes(6), "damaged")):
        with pytest.raises(MediaError, match=reason):
            decoded(cut)


@pytest.mark.parametrize(
    "data",
    [
        b"text " * 2000 + b"\0",
        b"%PDF-1.7 \xe2\xe3",
        b"PK\x03\x04\x14",
        bytes(range(1, 32)) * 9,
    ],
)
def test_binary_content_is_no_text(data: bytes) -> None:
    if TEXT.recognises(data[:4096]):
        with pytest.raises(MediaError, match="binary: a zero byte at byte 10000"):
            decoded(data)


def test_bytes_without_zeros_and_signatures_are_text() -> None:
    assert TEXT.recognises("Привет, мир".encode())
    assert TEXT.recognises(b"\xff\xfe broken")
    assert decoded(b"\xff\xfe broken").data == b"\xff\xfe broken"
    assert TEXT.recognises(b"%PDF is a format, PK a mark")


def test_a_kept_file_has_its_own_bytes() -> None:
    data = "ein Text".encode("utf-16")
    sample = TEXT.decode_file(io.BytesIO(data), DecodeOptions(keep_files=True))
    assert sample.is_file
    assert sample.data == data


@pytest.mark.parametrize(
    ("data", "limit", "reason"), [(b"", 9, "empty"), (b"x" * 10, 9, "over the limit")]
)
def test_bad_texts_are_refused(data: bytes, limit: int, reason: str) -> None:
    with pytest.raises(MediaError) as error:
        TEXT.decode_file(io.BytesIO(data), DecodeOptions(limits=Limits(max_bytes=limit)))
    assert error.value.reason == reason


@pytest.mark.parametrize("keep_files", [False, True])
def test_a_text_is_written_as_txt(tmp_path: Path, keep_files: bool) -> None:
    data = b"call me \xff Ishmael"
    sample = TEXT.decode_file(io.BytesIO(data), DecodeOptions(keep_files=keep_files))
    assert sample.is_file == keep_files
    assert TEXT.member_suffix(sample) == ("bin" if keep_files else "txt")
    path = TEXT.write_file(sample, tmp_path / "a.b")
    assert path.name == "a.b.txt"
    assert path.read_bytes() == data


def test_a_view_that_does_not_fit_the_sample_is_an_error() -> None:
    with pytest.raises(ValueError, match="choose another view"):
        TEXT.to_view(Sample("text", Header(), b"x"), "file", 8)
    with pytest.raises(ValueError, match="choose the view 'file'"):
        TEXT.to_view(Sample("text", Header(), b"x", is_file=True), "utf8", 8)
    with pytest.raises(ValueError, match="no view 'raster'"):
        TEXT.payload_size(1, "raster")


def test_bits_per_character_count_characters_over_pieces() -> None:
    data = "жук a".encode()  # 8 bytes, 5 characters, 2 words
    head = TEXT.head(patch=8)
    for part, offset in ((data[:3], 0), (data[3:], 3)):
        is_last = offset > 0
        frame_nats = np.full(1, math.log(4))
        head.update(scored(part, "utf8", offset=offset, is_last=is_last, frame_nats=frame_nats))
    assert head.counted("segments") == 1
    assert head.figures() == {
        "bits_per_byte": 1.0,
        "coded_bits_per_byte": 12 / 8,
        "bits_per_character": 8 / 5,
        "bits_per_word": 8 / 2,
    }
    assert math.isnan(TEXT.head(patch=8).figures()["bits_per_character"])

"""Text: bytes unchanged, refusals, views, files, and the score."""

from __future__ import annotations

import io
import math
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from bytelm.modalities import MODALITIES
from bytelm.modalities.base import DecodeOptions, Header, Limits, MediaError, Sample, ScoredSegment

TEXT = MODALITIES["text"]


@given(st.binary(min_size=1, max_size=2000))
def test_any_bytes_stay_unchanged(data: bytes) -> None:
    sample = TEXT.decode_file(io.BytesIO(data), DecodeOptions())
    assert sample == Sample("text", Header(), data)
    payload = TEXT.to_view(sample, "utf8", 8)
    assert payload.size == TEXT.payload_size(len(data), "utf8")
    assert TEXT.from_view(sample.header, payload, "utf8", 8) == sample


def test_bytes_without_nul_are_text() -> None:
    assert TEXT.recognises("Привет, мир".encode())
    assert TEXT.recognises(b"\xff\xfe broken")
    assert not TEXT.recognises("UTF-16".encode("utf-16"))


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
    data = np.frombuffer("жук a".encode(), np.uint8)  # 8 bytes, 5 characters
    head = TEXT.head()
    for part, offset in ((data[:3], 0), (data[3:], 3)):
        nats = np.full(part.size, math.log(2))
        head.update(ScoredSegment(Header(), "utf8", offset, part, nats, np.full(1, math.log(4))))
    assert head.counts["segments"] == 1
    assert head.metrics() == pytest.approx(
        {"bits_per_byte": 1.0, "coded_bits_per_byte": 12 / 8, "bits_per_character": 8 / 5}
    )
    assert math.isnan(TEXT.head().metrics()["bits_per_character"])

"""FLAC: the checksum of the samples, unknown lengths, tags around it, and cuts."""

from __future__ import annotations

import numpy as np
import pytest
from helpers.sound_files import decode, encoded, pcm, refusal, tone

from bytelm.modalities.base import DecodeOptions

ID3 = b"ID3\4\0\0" + bytes([0, 0, 1, 100]) + bytes(228)
ID3V1 = b"TAG" + b"x" * 125


def flac(subtype: str = "PCM_16", channels: int = 2, frames: int = 20_001) -> bytes:
    return encoded(tone(frames, channels), "FLAC", subtype)


def without_length(data: bytes) -> bytes:
    return data[:21] + bytes([data[21] & 0xF0, 0, 0, 0, 0]) + data[26:]


def without_checksum(data: bytes) -> bytes:
    return data[:26] + bytes(16) + data[42:]


@pytest.mark.parametrize("channels", [1, 2, 3])
@pytest.mark.parametrize("subtype", ["PCM_S8", "PCM_16", "PCM_24"])
def test_the_checksum_of_the_samples_is_checked(subtype: str, channels: int) -> None:
    data = flac(subtype, channels)
    assert len(pcm(decode(data))) == 20_001
    assert decode(without_checksum(data)) == decode(data)
    wrong = data[:30] + bytes([data[30] ^ 1]) + data[31:]
    assert refusal(wrong).reason == "damaged"
    assert "MD5" in refusal(wrong).detail


@pytest.mark.parametrize("subtype", ["PCM_16", "PCM_24"])
def test_a_flac_without_a_length_is_read_to_its_end(subtype: str) -> None:
    data = flac(subtype, frames=150_000)
    assert decode(without_length(data)) == decode(data)


def test_tags_around_a_flac_are_passed_over() -> None:
    data = flac()
    for tagged in (ID3 + data, data + ID3V1, ID3 + without_length(data) + ID3V1):
        assert decode(tagged) == decode(data)


@pytest.mark.parametrize("share", [0.3, 0.9, 0.999])
def test_a_cut_flac_is_refused_with_a_length_and_without(share: float) -> None:
    for data in (flac(), without_length(flac()), without_length(without_checksum(flac()))):
        assert refusal(data[: int(len(data) * share)]).reason == "truncated"


def test_twenty_four_bits_are_kept_where_asked_and_lost_with_a_word_where_not() -> None:
    wide = np.random.default_rng(0).integers(-(1 << 23), 1 << 23, (500, 2)).astype(np.int32)
    data = encoded(wide << 8, "FLAC", "PCM_24")
    sample = decode(data)
    assert np.array_equal(pcm(sample), (wide >> 8).astype(np.int16))
    assert sample.notes == ("24 bits kept as 16",)
    deep = decode(data, DecodeOptions(keep_depth=True))
    assert deep.is_deep
    assert deep.data == wide.astype(">i4").view(np.uint8).reshape(-1, 4)[:, 1:].tobytes()
    assert deep.notes == ()
    narrow = encoded((wide >> 8 << 16).astype(np.int32), "FLAC", "PCM_24")
    assert not decode(narrow, DecodeOptions(keep_depth=True)).is_deep
    assert decode(narrow).notes == ()


@pytest.mark.parametrize("subtype", ["PCM_16", "PCM_24"])
def test_joined_flacs_have_the_samples_of_all(subtype: str) -> None:
    first, second = flac(subtype), flac(subtype, frames=70_003)
    sample = decode(ID3 + first + without_length(second) + first + ID3V1)
    expected = [pcm(decode(data)) for data in (first, second, first)]
    assert np.array_equal(pcm(sample), np.concatenate(expected))
    assert sample.notes[0] == "several FLAC files joined"
    wrong = second[:30] + bytes([second[30] ^ 1]) + second[31:]
    assert refusal(first + wrong).reason == "damaged"


def test_joined_flacs_of_two_forms_are_refused_with_the_byte() -> None:
    first = flac()
    for second in (flac("PCM_24"), flac(channels=1)):
        assert f"from byte {len(first)} on" in refusal(first + second).detail

"""MP3: lengths that no header or a wrong one states, joined files, tags and cuts."""

from __future__ import annotations

import struct

import numpy as np
import pytest
from helpers.sound_files import decode, encoded, media, pcm, refusal, tone

from bytelm.modalities.audio_files.mp3 import read_parts

ID3 = b"ID3\4\0\0" + bytes([0, 0, 1, 100]) + bytes(228)
ID3V1 = b"TAG" + b"x" * 125
APE = b"".join(
    b"APETAGEX" + struct.pack("<IIII", 2000, 52, 1, flags) + bytes(8) + item
    for flags, item in ((0xA0000000, bytes(20)), (0x80000000, b""))
)
LYRICS = b"LYRICSBEGIN" + b"x" * 40 + b"000051LYRICS200"
ENCODER_DELAY = 576
"""Frames of silence at the start, which only a header tells a decoder to drop."""
JOINED = "several MP3 files joined"


def variable(frames: int = 60_000, channels: int = 1, rate: int = 44_100) -> bytes:
    """An MP3 that begins with noise and ends softly, so that its frames differ in size."""
    noise = np.random.default_rng(0).normal(size=(frames // 2, channels)) * 0.2
    samples = np.concatenate([noise, tone(frames - frames // 2, channels, 0.01)])
    options = {"bitrate_mode": "VARIABLE", "compression_level": 0.5}
    return encoded(samples, "MP3", "MPEG_LAYER_III", rate, **options)


def without_header(data: bytes) -> bytes:
    """The frames with sound of an MP3 alone."""
    part = read_parts(data).parts[0]
    return data[part.start : part.end]


def with_frames_stated(data: bytes, frames: int) -> bytes:
    position = max(data.find(b"Info"), data.find(b"Xing")) + 8
    return data[:position] + struct.pack(">I", frames) + data[position + 4 :]


@pytest.mark.parametrize("channels", [1, 2])
@pytest.mark.parametrize("rate", [44_100, 48_000, 22_050, 16_000, 8000])
def test_an_mp3_of_variable_bitrate_without_a_header_is_whole(rate: int, channels: int) -> None:
    # Only the header tells the encoder's delay and padding, 576 to some 2,000 samples that differ
    # from encoder to encoder. Without it they stay, so this file has more samples, and never fewer.
    data = variable(60_000, channels, rate)
    expected = pcm(decode(data))
    assert len(expected) == 60_000
    samples = pcm(decode(without_header(data)))
    assert ENCODER_DELAY + 60_000 <= len(samples) < 60_000 + 3 * 1152
    wrong = samples[ENCODER_DELAY:][:60_000].astype(int) - expected
    assert np.abs(wrong[2000:]).max() <= 1


def test_joined_mp3s_have_the_samples_of_all() -> None:
    first, second = variable(), encoded(tone(9000, 1), "MP3", "MPEG_LAYER_III", 44_100)
    expected = np.concatenate([pcm(decode(first)), pcm(decode(second))])
    for joined in (first + second, ID3 + first + ID3V1 + ID3 + second + APE + ID3V1):
        sample = decode(joined)
        assert np.array_equal(pcm(sample), expected)
        assert sample.notes == (JOINED,)


def test_joined_mp3s_of_two_rates_are_refused_with_the_byte() -> None:
    first, second = variable(rate=16_000), variable(rate=44_100)
    assert f"from byte {len(first) + 417} on" in refusal(first + second).detail


@pytest.mark.parametrize("tags", [ID3V1, APE, APE + ID3V1, LYRICS + ID3V1, bytes(500)])
def test_tags_at_the_end_are_no_sound(tags: bytes) -> None:
    data = variable()
    for whole in (data, without_header(data)):
        assert decode(whole + tags) == decode(whole)
        assert decode(whole + tags).notes == ()


def test_a_header_that_states_too_few_frames_is_mended() -> None:
    data = variable()
    frames = read_parts(data).parts[0].frames
    sample = decode(with_frames_stated(data, frames - 20))
    assert sample == decode(data)
    assert sample.notes == ("length in the header was wrong",)
    assert refusal(with_frames_stated(data, frames + 20)).reason == "truncated"


@pytest.mark.parametrize("cut", [5, 1000, 4000])
def test_a_cut_mp3_is_refused_with_a_header_and_without(cut: int) -> None:
    data = variable()
    assert refusal(data[:-cut]).reason == "truncated"
    assert refusal(without_header(data)[:-5]).reason == "truncated"


def test_bytes_that_are_no_frame_are_noted_at_the_ends_and_refused_between() -> None:
    data, junk = variable(), b"no frame " * 40
    assert decode(ID3 + junk + data).notes == ("bytes before the first frame left out",)
    assert decode(data + junk).notes == ("bytes after the end left out",)
    assert pcm(decode(ID3 + junk + data)).tolist() == pcm(decode(data)).tolist()
    assert refusal(data + junk + data).reason == "damaged"
    middle = read_parts(data).parts[0].start
    broken = bytearray(data)
    broken[middle] = 0
    assert refusal(bytes(broken)).reason == "damaged"


def test_zeros_before_the_first_frame_are_padding() -> None:
    assert decode(bytes(40) + variable()) == decode(variable())


def test_layer_two_is_read() -> None:
    data = media("mp2", {"mp2": tone(20_000, 2)})
    assert len(pcm(decode(data))) == pytest.approx(20_000, abs=1152)
    assert refusal(data[:-20]).reason == "truncated"


def test_free_format_frames_are_counted() -> None:
    frame = b"\xff\xfb\x04\xc0" + bytes(496)
    assert read_parts(frame * 10).parts[0].frames == 10
    assert len(pcm(decode(frame * 10))) == pytest.approx(10 * 1152, abs=1152)

"""Floats out of range, bits that 16 cannot hold, and channels that cancel out."""

from __future__ import annotations

import tracemalloc

import numpy as np
import pytest
from helpers.sound_files import decode, encoded, pcm, refusal, tone

from bytelm.modalities.audio_files import resampling
from bytelm.modalities.base import DecodeOptions

FLOAT_NOTE = "floating point kept as 16 bits"
CANCEL_NOTE = "channels cancel out: the first is kept"
MONO = DecodeOptions(audio_channels=1)


def floats(samples: np.ndarray, subtype: str = "FLOAT") -> bytes:
    return encoded(samples, "WAV", subtype)


@pytest.mark.parametrize("subtype", ["FLOAT", "DOUBLE"])
@pytest.mark.parametrize("bits", [16, 24, 32])
def test_floats_in_the_range_of_integers_are_scaled(bits: int, subtype: str) -> None:
    samples = tone().astype(np.float64) * (2 ** (bits - 1) - 1)
    sample = decode(floats(samples, subtype))
    assert np.abs(pcm(sample) - tone() * 32768).max() <= 1.5
    assert sample.notes == (f"scaled from +-{2 ** (bits - 1) - 1}", FLOAT_NOTE)


def test_whole_numbers_of_sixteen_bits_stay_as_they_are() -> None:
    whole = np.random.default_rng(0).integers(-32768, 32768, (900, 2))
    sample = decode(floats(whole.astype(np.float32)))
    assert np.array_equal(pcm(sample), whole)
    assert sample.notes == ("scaled from +-32767",)
    assert decode(floats((whole / 32768).astype(np.float32))).notes == ()


@pytest.mark.parametrize("loudness", [30.0, 1e12])
def test_floats_that_are_neither_are_refused(loudness: float) -> None:
    error = refusal(floats(tone() * loudness))
    assert error.reason == "unreadable"
    assert "full scale is 1" in error.detail


def test_a_few_samples_out_of_range_do_not_make_a_sound_integers() -> None:
    samples = tone()
    samples[100] = 1000
    assert refusal(floats(samples)).reason == "unreadable"


def test_floats_a_little_above_full_scale_are_clipped_with_a_word() -> None:
    sample = decode(floats(tone(loudness=1.5)))
    assert pcm(sample).max() == 32767
    assert sample.notes == ("clipped at full scale", FLOAT_NOTE)


def test_lost_bits_are_noted_by_what_the_samples_hold() -> None:
    assert decode(encoded(tone(), "WAV", "PCM_32")).notes == ("32 bits kept as 16",)
    assert decode(encoded(tone(), "WAV", "PCM_24")).notes == ("24 bits kept as 16",)
    whole = np.round(tone() * 20_000).astype(np.int32) << 16
    assert decode(encoded(whole, "WAV", "PCM_32")).notes == ()


def test_floats_keep_twenty_four_bits_where_asked() -> None:
    samples = tone()
    deep = decode(floats(samples), DecodeOptions(keep_depth=True))
    assert deep.is_deep
    values = np.frombuffer(deep.data, np.uint8).reshape(-1, 3).astype(np.int64)
    whole = (values[:, 0] << 16 | values[:, 1] << 8 | values[:, 2]).reshape(-1, 2)
    whole = np.where(whole >= 1 << 23, whole - (1 << 24), whole)
    assert np.abs(whole / (1 << 23) - samples).max() < 1e-7
    mono = decode(floats(samples), DecodeOptions(keep_depth=True, audio_channels=1))
    assert mono.is_deep
    assert len(mono.data) == len(deep.data) // 2


@pytest.mark.parametrize("noise", [0, 3])
def test_channels_that_cancel_out_keep_the_first(noise: int) -> None:
    left = (tone(16_000, 1) * 20_000).astype(np.int16)
    right = -left + np.random.default_rng(0).integers(-noise, noise + 1, left.shape, np.int16)
    sample = decode(encoded(np.concatenate([left, right], 1)), MONO)
    assert np.array_equal(pcm(sample), left)
    assert sample.notes == (CANCEL_NOTE,)


def test_silence_and_channels_that_differ_are_mixed_as_ever() -> None:
    silence = encoded(np.zeros((100, 2), np.int16))
    assert decode(silence, MONO).notes == ()
    left = (tone(16_000, 1) * 20_000).astype(np.int16)
    half = decode(encoded(np.concatenate([left, -left // 2], 1)), MONO)
    assert np.abs(pcm(half) - left / 4).max() <= 1
    assert half.notes == ()


@pytest.mark.parametrize("rates", [(44_100, 16_000), (16_000, 22_050), (8000, 8000)])
def test_chunks_are_resampled_as_the_whole(
    rates: tuple[int, int], monkeypatch: pytest.MonkeyPatch
) -> None:
    samples = tone(300_001, 2)
    data = encoded(samples, "WAV", "PCM_24", rates[0])
    for options in (
        DecodeOptions(audio_rate=rates[1]),
        DecodeOptions(audio_rate=rates[1], audio_channels=1, keep_depth=True),
    ):
        whole = decode(data, options)
        assert whole.header.rate == rates[1]
        monkeypatch.setattr(resampling, "CHUNK_FRAMES", 1 << 15)
        assert decode(data, options) == whole
        monkeypatch.undo()


def test_a_long_sound_needs_little_more_memory_than_its_samples() -> None:
    samples = np.zeros((8_000_000, 2), np.int16)
    data = encoded(samples, "WAV", "PCM_16", 44_100)
    options = DecodeOptions(audio_rate=16_000, audio_channels=1)
    decode(encoded(tone(100), "WAV", "PCM_16", 44_100), options)  # imports
    tracemalloc.start()
    decode(data, options)
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert peak < 2.5 * samples.nbytes, f"{peak} bytes"

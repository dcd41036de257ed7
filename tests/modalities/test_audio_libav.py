"""Sounds that PyAV reads: MP4, WebM, WMA, AAC, AMR; cuts, other streams, and a missing PyAV."""

from __future__ import annotations

import io
import sys
from pathlib import Path

import numpy as np
import pytest
from helpers.sound_files import (
    AUDIO,
    chunk,
    decode,
    media,
    pcm,
    refusal,
    riff,
    tone,
    wave_format,
)

from bytelm.modalities.audio import frames
from bytelm.modalities.base import DecodeOptions, Limits

pytest.importorskip("av")

RATE = 48_000
FRAMES = 30_000
KINDS: dict[str, tuple[str, str, int, dict[str, str]]] = {
    "m4a": ("ipod", "aac", 2, {}),
    "alac.m4a": ("ipod", "alac", 2, {}),
    "mp4": ("mp4", "aac", 1, {}),
    "opus.mp4": ("mp4", "libopus", 2, {}),
    "fragments.mp4": ("mp4", "aac", 2, {"movflags": "frag_keyframe+empty_moov"}),
    "mov": ("mov", "pcm_s16le", 2, {}),
    "webm": ("webm", "libopus", 2, {}),
    "live.webm": ("webm", "libopus", 2, {"live": "1"}),
    "aac.mkv": ("matroska", "aac", 2, {}),
    "flac.mkv": ("matroska", "flac", 2, {}),
    "wma": ("asf", "wmav2", 2, {}),
    "aac": ("adts", "aac", 2, {}),
}
EXACT = ("m4a", "alac.m4a", "mp4", "opus.mp4", "mov", "webm", "live.webm", "flac.mkv")
LOSSLESS = ("alac.m4a", "mov", "flac.mkv")


def sound(kind: str) -> bytes:
    container, codec, channels, options = KINDS[kind]
    rate = 44_100 if codec.startswith("wma") else RATE
    return media(container, {codec: tone(FRAMES, channels)}, rate, options)


@pytest.mark.parametrize("kind", KINDS)
def test_every_kind_has_its_samples(kind: str) -> None:
    samples = pcm(decode(sound(kind))) / 32768
    expected = tone(FRAMES, KINDS[kind][2])
    assert samples.shape[1] == expected.shape[1]
    extra = len(samples) - FRAMES
    assert extra == 0 if kind in EXACT else abs(extra) < 4096
    spectra = [np.abs(np.fft.rfft(x[:28_000, 0])).argmax() for x in (samples, expected)]
    assert spectra[0] == spectra[1]
    if kind in LOSSLESS:
        assert np.abs(samples - expected).max() < 1e-4
    elif kind in EXACT:
        apart = np.sqrt(np.mean((samples - expected) ** 2))
        assert apart < 0.06  # the noise of 0.05, which codecs do not keep


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("share", [0.3, 0.7, 0.999])
def test_cut_files_are_refused(kind: str, share: float) -> None:
    data = sound(kind)
    assert refusal(data[: int(len(data) * share)]).reason == "truncated"


@pytest.mark.parametrize("kind", ["m4a", "webm", "aac"])
def test_bytes_after_the_end_are_noted(kind: str) -> None:
    data = sound(kind)
    sample = decode(data + b"junk" * 20)
    assert sample == decode(data)
    assert sample.notes == ("bytes after the end left out",)


def test_the_first_sound_is_read_and_other_streams_are_noted() -> None:
    first, second = tone(FRAMES, 2), tone(FRAMES, 2) * 0.1
    alone = decode(media("mov", {"pcm_s16le": first}))
    beside = decode(media("mov", {"mpeg4": first, "pcm_s16le": first, "alac": second}))
    assert beside == alone
    assert beside.notes == ("other streams left out",)
    silent = refusal(media("mp4", {"mpeg4": first}))
    assert silent.reason == "no sound"


def test_a_sound_over_the_limit_is_refused_before_and_while_it_is_read() -> None:
    options = DecodeOptions(limits=Limits(max_bytes=50_000))
    assert refusal(sound("m4a"), options).reason == "over the limit"
    assert refusal(sound("live.webm"), options).reason == "over the limit"


def test_another_rate_and_mono_are_as_for_other_files() -> None:
    sample = decode(sound("alac.m4a"), DecodeOptions(audio_rate=16_000, audio_channels=1))
    assert sample.header.rate == 16_000
    assert pcm(sample).shape == (FRAMES // 3, 1)


def test_codecs_in_wav_that_libsndfile_lacks_are_read() -> None:
    data = media("wav", {"libmp3lame": tone(FRAMES, 2)})
    assert len(pcm(decode(data))) == pytest.approx(FRAMES, abs=2 * 1152)


def test_a_missing_pyav_is_a_refusal_that_says_what_to_install(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    data = sound("m4a")
    monkeypatch.setitem(sys.modules, "av", None)
    error = refusal(data)
    assert error.reason == "needs bytelm[media]"
    assert "pip install 'bytelm[media]'" in error.detail


@pytest.mark.parametrize(
    ("brand", "is_sound"),
    [(b"M4A ", True), (b"isom", True), (b"avif", False), (b"mif1", False), (b"heic", False)],
)
def test_pictures_in_the_same_container_are_no_sounds(brand: bytes, is_sound: bool) -> None:
    assert AUDIO.recognises(b"\0\0\0\x20ftyp" + brand + bytes(20)) == is_sound


def test_raw_files_keep_their_bytes(tmp_path: Path) -> None:
    data = sound("webm")
    sample = AUDIO.decode_file(io.BytesIO(data), DecodeOptions(keep_files=True))
    path = AUDIO.write_file(sample, tmp_path / "a")
    assert path.name == "a.webm"
    assert path.read_bytes() == data


def test_a_caf_whose_packet_table_follows_its_samples_is_read() -> None:
    samples = tone(30_000)
    data = media("caf", {"alac": samples})
    assert data.find(b"pakt") > data.find(b"data")
    decoded = frames(decode(data, DecodeOptions(keep_depth=True)))
    assert np.abs(decoded / 2**31 - samples).max() < 2**-22
    assert refusal(data[: data.find(b"pakt")]).reason in ("truncated", "unreadable")


def test_integers_of_64_bits_are_refused() -> None:
    data = riff(wave_format(bits=64) + chunk(b"data", bytes(800)))
    assert "64 bits" in refusal(data).detail

"""Sounds: decoding, refusals, views and their inverses, files."""

from __future__ import annotations

import io
import struct
import tracemalloc
from pathlib import Path

import numpy as np
import pytest
import soundfile
from helpers.scored_segments import scored
from helpers.sets import audio
from hypothesis import given, settings
from hypothesis import strategies as st

from bytelm.modalities import MODALITIES
from bytelm.modalities.base import DecodeOptions, Header, Limits, MediaError, Sample

AUDIO = MODALITIES["audio"]
DEFAULTS = DecodeOptions()
KINDS = {
    "wav": ("WAV", "PCM_16"),
    "flac": ("FLAC", "PCM_16"),
    "ogg": ("OGG", "VORBIS"),
    "mp3": ("MP3", "MPEG_LAYER_III"),
    "aiff": ("AIFF", "PCM_16"),
}
LOSSLESS = ["wav", "flac", "aiff"]


def tone(frames: int = 20_000, channels: int = 2, loudness: float = 0.5) -> np.ndarray:
    """[n c] samples of a tone with a little noise."""
    time = np.arange(frames)[:, None] / 16_000
    noise = np.random.default_rng(0).normal(size=(frames, channels)) * 0.05
    return (loudness * np.sin(2 * np.pi * 440 * time) + noise).astype(np.float32)


def encoded(
    samples: np.ndarray, kind: str = "WAV", subtype: str = "PCM_16", rate: int = 16_000
) -> bytes:
    file = io.BytesIO()
    soundfile.write(file, samples, rate, format=kind, subtype=subtype)
    return file.getvalue()


def decode(data: bytes, options: DecodeOptions = DEFAULTS) -> Sample:
    return AUDIO.decode_file(io.BytesIO(data), options)


def pcm(sample: Sample) -> np.ndarray:
    return np.frombuffer(sample.data, "<i2").reshape(-1, sample.header.channels)


def reason(data: bytes, options: DecodeOptions = DEFAULTS) -> str:
    with pytest.raises(MediaError) as error:
        decode(data, options)
    return error.value.reason


def wav(claimed_bytes: int, present: bytes) -> bytes:
    """A WAV of 8 bits, mono, whose header claims other sample bytes than are present."""
    form = struct.pack("<IHHIIHH", 16, 1, 1, 16_000, 16_000, 1, 8)
    body = b"WAVEfmt " + form + b"data" + struct.pack("<I", claimed_bytes) + present
    return b"RIFF" + struct.pack("<I", min(claimed_bytes + 36, 0xFFFFFFFF)) + body


# --- decoding ---


@pytest.mark.parametrize("kind", KINDS)
def test_every_format_is_decoded_as_soundfile_does(kind: str) -> None:
    data = encoded(tone(), *KINDS[kind])
    assert AUDIO.recognises(data[:4096])
    expected, rate = soundfile.read(io.BytesIO(data), dtype="int16", always_2d=True)
    sample = decode(data)
    assert sample.header == Header(rate=rate, channels=2)
    wrong = np.abs(pcm(sample).astype(int) - expected)
    assert wrong.max() <= (kind == "ogg")  # there libsndfile rounds after another float step
    assert (wrong > 0).mean() < 0.01


@pytest.mark.parametrize(
    "subtype", ["PCM_U8", "PCM_24", "PCM_32", "FLOAT", "DOUBLE", "ULAW", "ALAW"]
)
def test_every_width_becomes_sixteen_bits(subtype: str) -> None:
    samples = tone()
    error = pcm(decode(encoded(samples, "WAV", subtype))) / 32768 - samples
    assert np.abs(error).max() < {"PCM_U8": 0.01, "ULAW": 0.03, "ALAW": 0.03}.get(subtype, 1e-4)


@pytest.mark.parametrize("kind", [("OGG", "VORBIS"), ("WAV", "FLOAT"), ("MP3", "MPEG_LAYER_III")])
def test_samples_over_full_scale_are_clipped_and_do_not_wrap(kind: tuple[str, str]) -> None:
    data = encoded(tone(loudness=3.0), *kind)
    unclipped, _ = soundfile.read(io.BytesIO(data), always_2d=True)
    assert np.abs(unclipped).max() > 1.05
    error = pcm(decode(data)) / 32768 - unclipped.clip(-1, 1)
    assert np.abs(error).max() < 1e-3


def test_blocks_join_to_the_whole_sound(monkeypatch: pytest.MonkeyPatch) -> None:
    data = encoded(tone(5000), "WAV", "FLOAT")
    whole = decode(data)
    monkeypatch.setattr("bytelm.modalities.audio_files.reduction.BLOCK_FRAMES", 999)
    monkeypatch.setattr("bytelm.modalities.audio_files.libsndfile.BLOCK_FRAMES", 777)
    assert decode(data) == whole


def test_channels_are_mixed_down_to_mono() -> None:
    samples = np.array([[100, 300], [-5, -6], [32767, 32767], [-32768, -32768]], np.int16)
    sample = decode(encoded(samples), DecodeOptions(audio_channels=1))
    assert sample.header.channels == 1
    assert pcm(sample).ravel().tolist() == pytest.approx([200, -5.5, 32767, -32768], abs=0.5)
    assert decode(encoded(samples)).header.channels == 2
    with pytest.raises(ValueError, match="choose 1"):
        decode(encoded(samples), DecodeOptions(audio_channels=2))


def test_another_rate_is_resampled() -> None:
    sample = decode(encoded(tone(16_000, 2)), DecodeOptions(audio_rate=8000))
    assert sample.header == Header(rate=8000, channels=2)
    assert pcm(sample).shape == (8000, 2)
    spectrum = np.abs(np.fft.rfft(pcm(sample)[:, 0]))
    assert spectrum.argmax() == 440
    same = encoded(tone())
    assert decode(same, DecodeOptions(audio_rate=16_000)) == decode(same)


# --- refusals ---


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("share", [0.02, 0.5, 0.999])
def test_truncated_files_are_refused(kind: str, share: float) -> None:
    data = encoded(tone(60_000), *KINDS[kind])
    expected = {"truncated", "unreadable"} if share < 0.1 else {"truncated"}
    assert reason(data[: int(len(data) * share)]) in expected


def test_a_header_that_claims_too_much_is_refused_from_the_header() -> None:
    tracemalloc.start()
    assert reason(wav(3 << 30, bytes(100))) == "over the limit"
    assert reason(wav(1 << 20, bytes(100))) == "truncated"
    assert tracemalloc.get_traced_memory()[1] < 1_000_000
    tracemalloc.stop()
    assert len(decode(wav(100, bytes(100))).data) == 200


def test_limits_hold() -> None:
    data = encoded(tone(1000, 1), "FLAC")
    assert reason(data, DecodeOptions(limits=Limits(max_bytes=1999))) == "over the limit"
    assert decode(data, DecodeOptions(limits=Limits(max_bytes=2000)))
    larger = DecodeOptions(limits=Limits(max_bytes=2000), audio_rate=32_000)
    assert reason(data, larger) == "over the limit"


def test_rates_without_a_common_measure_are_refused_before_a_filter_is_made() -> None:
    data = encoded(tone(1000, 1), rate=44_101)
    assert reason(data, DecodeOptions(audio_rate=16_000)) == "over the limit"


@pytest.mark.parametrize("kind", LOSSLESS)
def test_a_sound_of_no_frames_is_refused(kind: str) -> None:
    assert reason(encoded(np.zeros((0, 1), np.int16), *KINDS[kind])) in ("empty", "unreadable")


def test_other_formats_and_garbage_are_refused() -> None:
    assert reason(encoded(tone(), "NIST")) == "unknown kind"
    assert reason(b"fLaC\0\0\0\x22" + bytes(100)) == "unreadable"
    not_finite = np.array([[0.0], [np.inf]], np.float32)
    assert reason(encoded(not_finite, "WAV", "FLOAT")) == "unreadable"


@pytest.mark.parametrize(
    "start", [b"ID3 is a tag", b"OggSilence", b"\xff\xd8\xff\xe0", b"RIFF of a guitar"]
)
def test_files_that_only_begin_like_a_sound_are_none(start: bytes) -> None:
    assert not AUDIO.recognises(start)


@settings(max_examples=150, deadline=None)
@given(st.sampled_from(sorted(KINDS)), st.lists(st.tuples(st.floats(0, 1), st.integers(0, 255))))
def test_mutated_files_are_decoded_or_refused(kind: str, changes: list[tuple[float, int]]) -> None:
    data = bytearray(encoded(tone(300, 1), *KINDS[kind]))
    for share, value in changes:
        data[int(share * (len(data) - 1))] = value
    try:
        sample = decode(bytes(data), DecodeOptions(limits=Limits(max_bytes=1 << 20)))
    except MediaError:
        return
    assert len(sample.data) == pcm(sample).size * 2 > 0


# --- views ---


@settings(max_examples=100, deadline=None)
@given(
    frames=st.integers(0, 2000) | st.integers(0, 650_000),
    channels=st.integers(1, 3),
    seed=st.integers(0, 1000),
)
def test_views_of_sixteen_bits_can_be_turned_back(frames: int, channels: int, seed: int) -> None:
    sample = audio(frames // channels, channels, seed=seed)
    for view in ("s16le", "s16be"):
        payload = AUDIO.to_view(sample, view, 8)
        assert payload.dtype == np.uint8
        assert payload.shape == (AUDIO.payload_size(len(sample.data), view),)
        assert AUDIO.from_view(sample.header, payload, view, 8) == sample


@pytest.mark.parametrize(("view", "largest"), [("u8", 255), ("mulaw", 1100)])
def test_narrow_views_lose_little_and_no_more_the_second_time(view: str, largest: int) -> None:
    samples = np.arange(-32768, 32768).astype("<i2")
    sample = Sample("audio", Header(rate=16_000, channels=2), samples.tobytes())
    payload = AUDIO.to_view(sample, view, 8)
    assert payload.shape == (AUDIO.payload_size(len(sample.data), view),) == (65_536,)
    assert (np.diff(payload.astype(int)) >= 0).all()
    assert len(np.unique(payload)) == 256
    back = AUDIO.from_view(sample.header, payload, view, 8)
    assert np.abs(pcm(back).ravel().astype(int) - samples).max() <= largest
    assert np.array_equal(AUDIO.to_view(back, view, 8), payload)


def test_views_have_the_bytes_that_their_names_say() -> None:
    samples = np.array([0x0102, -1, -32768], "<i2")
    sample = Sample("audio", Header(rate=8000, channels=1), samples.tobytes())
    assert AUDIO.to_view(sample, "s16be", 8).tolist() == [1, 2, 255, 255, 128, 0]
    assert AUDIO.to_view(sample, "s16le", 8).tolist() == [2, 1, 255, 255, 0, 128]
    assert AUDIO.to_view(sample, "u8", 8).tolist() == [129, 127, 0]


def test_mulaw_is_torchaudios() -> None:
    import torch
    from torchaudio.functional import mu_law_encoding

    sample = audio(5000)
    expected = mu_law_encoding(torch.from_numpy(pcm(sample).ravel() / 32768), 256)
    assert AUDIO.to_view(sample, "mulaw", 8).tolist() == expected.tolist()


def test_payload_sizes_of_arrays() -> None:
    sizes = np.array([0, 2, 10])
    assert AUDIO.payload_size(sizes, "u8").tolist() == [0, 1, 5]
    assert AUDIO.payload_size(sizes, "s16be").tolist() == [0, 2, 10]


@pytest.mark.parametrize(("view", "size"), [("s16be", 6), ("u8", 3)])
def test_a_payload_that_ends_inside_a_frame_is_an_error(view: str, size: int) -> None:
    with pytest.raises(ValueError, match="whole number of frames"):
        AUDIO.from_view(Header(rate=8000, channels=2), np.zeros(size, np.uint8), view, 8)


# --- files ---


@pytest.mark.parametrize("channels", [1, 2])
def test_a_sample_is_written_as_wav(tmp_path: Path, channels: int) -> None:
    sample = audio(1000, channels, rate=22_050)
    path = AUDIO.write_file(sample, tmp_path / "sound")
    assert path.name == "sound.wav"
    assert soundfile.info(path).subtype == "PCM_16"
    assert decode(path.read_bytes()) == sample


@pytest.mark.parametrize("kind", KINDS)
def test_raw_files_keep_their_bytes(tmp_path: Path, kind: str) -> None:
    data = encoded(tone(), *KINDS[kind])
    sample = decode(data, DecodeOptions(keep_files=True))
    assert sample == Sample("audio", Header(rate=16_000, channels=2), data, is_file=True)
    payload = AUDIO.to_view(sample, "file", 8)
    assert payload.tobytes() == data
    assert AUDIO.from_view(sample.header, payload, "file", 8) == sample
    path = AUDIO.write_file(sample, tmp_path / "x")
    assert path.name == f"x.{kind}"
    assert path.read_bytes() == data
    with pytest.raises(ValueError, match="choose the view 'file'"):
        AUDIO.to_view(sample, "s16le", 8)


def test_bits_per_sample_count_wide_and_narrow_views_alike() -> None:
    head = AUDIO.head(patch=8)
    for view, size in (("s16be", 8), ("u8", 4), ("s24be", 12)):  # four samples each
        head.update(scored(size, view, Header(channels=1, rate=8000)))
    assert head.figures()["bits_per_sample"] == 24 / 12
    assert head.figures()["bits_per_byte"] == 1.0

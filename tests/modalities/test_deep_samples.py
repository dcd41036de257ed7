"""Samples of more bits than usual: 16-bit images and 24-bit sounds."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import PIL.Image
import pytest
import soundfile
from hypothesis import given
from hypothesis import strategies as st

from bytelm.modalities import MODALITIES
from bytelm.modalities.base import Header, Sample
from bytelm.modalities.image_files.deep_png import deep_png

IMAGE, AUDIO = MODALITIES["image"], MODALITIES["audio"]


def deep_image(width: int = 5, height: int = 4, channels: int = 3, seed: int = 0) -> Sample:
    values = np.random.default_rng(seed).integers(0, 1 << 16, (height, width, channels))
    header = Header(width=width, height=height, channels=channels)
    return Sample("image", header, values.astype(">u2").tobytes(), is_deep=True)


def deep_sound(frames: int = 50, channels: int = 2, seed: int = 0) -> tuple[Sample, np.ndarray]:
    """A sound of 24 bits, and its samples [n c]."""
    values = np.random.default_rng(seed).integers(-(1 << 23), 1 << 23, (frames, channels))
    data = values.astype(">i4").tobytes()
    deep = np.frombuffer(data, np.uint8).reshape(-1, 4)[:, 1:].tobytes()
    return Sample("audio", Header(rate=16_000, channels=channels), deep, is_deep=True), values


def test_the_deep_view_of_an_image_can_be_turned_back() -> None:
    sample = deep_image()
    payload = IMAGE.to_view(sample, "deep", 6)
    assert payload.size == IMAGE.payload_size(len(sample.data), "deep", True) == 5 * 4 * 3 * 2
    assert IMAGE.from_view(sample.header, payload, "deep", 6) == sample


def test_the_deep_view_of_a_sound_can_be_turned_back() -> None:
    sample, _ = deep_sound()
    payload = AUDIO.to_view(sample, "s24be", 6)
    assert payload.size == AUDIO.payload_size(len(sample.data), "s24be", True) == 50 * 2 * 3
    assert AUDIO.from_view(sample.header, payload, "s24be", 6) == sample


@pytest.mark.parametrize("view", ["raster", "planar", "patch"])
def test_other_views_of_a_deep_image_have_its_high_bytes(view: str) -> None:
    sample = deep_image()
    high = np.frombuffer(sample.data, ">u2") >> 8
    usual = Sample("image", sample.header, high.astype(np.uint8).tobytes())
    payload = IMAGE.to_view(sample, view, 6)
    assert payload.tolist() == IMAGE.to_view(usual, view, 6).tolist()
    assert payload.size == IMAGE.payload_size(len(sample.data), view, True)


@pytest.mark.parametrize("view", ["s16le", "s16be", "u8", "mulaw"])
def test_other_views_of_a_deep_sound_have_its_upper_bits(view: str) -> None:
    sample, values = deep_sound()
    usual = Sample("audio", sample.header, (values >> 8).astype("<i2").tobytes())
    payload = AUDIO.to_view(sample, view, 6)
    assert payload.tolist() == AUDIO.to_view(usual, view, 6).tolist()
    assert payload.size == AUDIO.payload_size(len(sample.data), view, True)


def test_deep_views_of_usual_samples_have_the_same_values() -> None:
    image = Sample("image", Header(width=3, height=1, channels=1), bytes([0, 128, 255]))
    deep = IMAGE.to_view(image, "deep", 6).view(">u2")
    assert deep.tolist() == [0, 257 * 128, 65535]
    pcm = np.array([-32768, -1, 0, 1, 32767], "<i2")
    sound = Sample("audio", Header(rate=8000, channels=1), pcm.tobytes())
    bytes_ = AUDIO.to_view(sound, "s24be", 6).reshape(-1, 3)
    wide = [int.from_bytes(b.tobytes(), "big", signed=True) for b in bytes_]
    assert wide == [256 * v for v in pcm.tolist()]


@given(st.data(), st.booleans())
def test_parts_of_payloads_need_only_their_part_of_the_sample(
    data: st.DataObject, is_deep: bool
) -> None:
    image, (sound, values) = deep_image(), deep_sound()
    if not is_deep:
        image = Sample("image", image.header, image.data[::2])
        sound = Sample("audio", sound.header, (values >> 8).astype("<i2").tobytes())
    for modality, sample in ((IMAGE, image), (AUDIO, sound)):
        for view in modality.views:
            payload = modality.to_view(sample, view, 6)
            start = data.draw(st.integers(0, payload.size))
            stop = data.draw(st.integers(start, payload.size))
            stored = modality.stored_range(view, start, stop, is_deep)
            if stored is None:
                assert view in ("planar", "patch")
                continue
            first, last, skip = stored
            part = Sample(
                sample.modality, sample.header, sample.data[first:last], is_deep=sample.is_deep
            )
            cut = modality.to_view(part, view, 6)[skip : skip + stop - start]
            assert cut.tolist() == payload[start:stop].tolist()


@pytest.mark.parametrize("channels", [1, 3])
def test_a_deep_image_is_written_as_a_png_of_sixteen_bits(tmp_path: Path, channels: int) -> None:
    sample = deep_image(7, 9, channels)
    path = IMAGE.write_file(sample, tmp_path / "a")
    data = path.read_bytes()
    assert data[24] == 16  # bits of a channel
    with PIL.Image.open(path) as image:
        image.load()
        if channels == 1:
            expected = np.frombuffer(sample.data, ">u2").reshape(9, 7)
            assert np.array_equal(np.asarray(image), expected)
        else:  # Pillow gives the high bytes of colours
            assert image.tobytes() == sample.data[::2]


def test_deep_pngs_use_filters_that_suit_the_lines() -> None:
    ramp = (np.arange(64)[:, None] * 900 + np.arange(64) * 100).astype(np.uint16)[:, :, None]
    assert len(deep_png(ramp)) < ramp.nbytes / 8


@pytest.mark.parametrize("suffix", ["wav", "flac"])
def test_a_deep_sound_is_written_with_twenty_four_bits(tmp_path: Path, suffix: str) -> None:
    sample, values = deep_sound()
    path = AUDIO.write_file(sample, tmp_path / "a", suffix)
    assert soundfile.info(path).subtype == "PCM_24"
    read, rate = soundfile.read(path, dtype="int32")
    assert rate == 16_000
    assert np.array_equal(read >> 8, values)

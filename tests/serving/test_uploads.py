"""Uploads of the playground: hostile files cost nothing, images and sounds get a learned form."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import PIL.Image
import pytest
import soundfile
from helpers import sets
from helpers.served import png_bomb

from bytelm.modalities.base import DecodeOptions, Header, Sample
from bytelm.pipelines.serving import uploads
from bytelm.pipelines.serving.uploads import (
    decode_upload,
    first_bytes,
    first_seconds,
    fit_image,
    fitting_sound_options,
    sample_file,
    shrink_image,
)


def decode(path: Path, modality: str = "image") -> Sample:
    return decode_upload(path, modality, DecodeOptions())


def test_an_image_comes_back_as_its_pixels_whatever_its_name(tmp_path: Path) -> None:
    image = sets.image(9, 5)
    path = tmp_path / "<b>picture.wav"
    path.write_bytes(sample_file(image))
    assert decode(path) == image


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"plain words", "picture.png is a text, and an image is needed here"),
        (b"\0\1\2\3" * 9, "picture.png is no image, no sound and no text"),
        (png_bomb(), "picture.png cannot be read: over the limit"),
        (sample_file(sets.image(99, 99))[:-999], "picture.png cannot be read: truncated"),
    ],
    ids=["text", "unknown", "bomb", "truncated"],
)
def test_other_files_are_refused_with_the_cause(
    content: bytes, message: str, tmp_path: Path
) -> None:
    path = tmp_path / "picture.png"
    path.write_bytes(content)
    with pytest.raises(ValueError, match=message):
        decode(path)


def test_a_file_above_the_limit_is_refused_unread(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(uploads, "MAX_UPLOAD_BYTES", 10)
    path = tmp_path / "long.txt"
    path.write_bytes(b"eleven long")
    with pytest.raises(ValueError, match=r"long\.txt has 11 bytes, and the server takes 10"):
        decode(path, "text")


def test_an_image_of_a_learned_size_stays_as_it_is() -> None:
    image = sets.image(9, 5)
    assert fit_image(image, [Header(8, 8, 3), Header(9, 5, 3)]) == image


def test_a_photograph_is_cropped_around_its_middle_to_a_learned_shape() -> None:
    pixels = np.zeros((40, 100, 3), np.uint8)
    pixels[:, 30:70] = 200  # the middle square
    picture = PIL.Image.fromarray(pixels)
    photograph = Sample("image", Header(100, 40, 3), picture.tobytes())
    fitted = fit_image(photograph, [Header(8, 8, 1), Header(8, 80, 1), Header(8, 9, 1)])
    assert fitted.header == Header(8, 8, 1)
    assert min(fitted.data) > 180


def test_without_learned_sizes_an_image_is_scaled_down() -> None:
    assert fit_image(sets.image(640, 320), []).header == Header(64, 32, 3)
    assert fit_image(sets.image(9, 5), []).header == Header(9, 5, 3)


def test_only_a_sound_of_another_form_is_resampled() -> None:
    sound = sets.audio(100, rate=8000)
    assert fitting_sound_options(sound, [Header(channels=1, rate=8000)]) is None
    assert fitting_sound_options(sound, []) is None
    options = fitting_sound_options(sound, [Header(channels=2, rate=16000)])
    assert options
    assert (options.audio_rate, options.audio_channels) == (16000, 2)


def test_long_samples_are_shortened_and_short_ones_kept() -> None:
    image, sound, text = sets.image(60, 40), sets.audio(100, channels=2), sets.text(b"abcdef")
    assert shrink_image(image, 7200) is image
    assert shrink_image(image, 1800).header == Header(30, 20, 3)
    assert first_seconds(sound, 400) is sound
    assert first_seconds(sound, 399).data == sound.data[:396]
    assert first_bytes(text, 6) is text
    assert first_bytes(text, 3).data == b"abc"


def test_a_sound_is_given_to_the_model_as_a_wav_of_the_same_samples(tmp_path: Path) -> None:
    sound = sets.audio(100, channels=2, rate=8000)
    path = tmp_path / "sound.wav"
    path.write_bytes(sample_file(sound))
    pcm, rate = soundfile.read(path, dtype="int16")
    assert pcm.tobytes() == sound.data
    assert rate == 8000

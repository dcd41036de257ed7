"""A known tone is where it should be in a spectrogram, and the numbers beside a sound are right."""

from __future__ import annotations

import base64
import io
import re

import numpy as np
import numpy.typing as npt
import PIL.Image
import pytest
import soundfile

from bytelm.pipelines.reporting.sound_pictures import (
    FLOOR_DB,
    MAX_COLUMNS,
    PLAYER_BYTES,
    ROWS,
    sound_player,
    spectrogram,
    spectrogram_png,
    waveform_svg,
)


def tone(
    hertz: float, rate: int, seconds: float = 0.5, level: float = 0.5
) -> npt.NDArray[np.int16]:
    """[n 1] a sine."""
    time = np.arange(round(seconds * rate)) / rate
    wave = 32767 * level * np.sin(2 * np.pi * hertz * time)
    return wave.round().astype(np.int16)[:, None]


@pytest.mark.parametrize("rate", [8000, 16000, 44100, 48000])
@pytest.mark.parametrize("hertz", [220, 1000, 3500])
def test_a_tone_has_its_peak_at_its_frequency_and_its_level(hertz: int, rate: int) -> None:
    sound = spectrogram(tone(hertz, rate), rate)
    middle = sound.levels[:, sound.levels.shape[1] // 2]
    peak = sound.frequencies[middle.argmax()]
    assert abs(np.log2(peak / hertz)) < max(0.1, 31.25 / hertz)  # a row, or the width of a bin
    assert middle.max() == pytest.approx(-6.0, abs=1.6)  # between two bins, a sine loses 1.4 dB
    assert sound.seconds == 0.5


def test_silence_has_the_floor_everywhere() -> None:
    assert (spectrogram(np.zeros((4000, 2), np.int16), 16000).levels == FLOOR_DB).all()


def test_a_sound_that_begins_late_is_dark_before() -> None:
    pcm = tone(1000, 16000, seconds=1)
    pcm[:8000] = 0
    columns = spectrogram(pcm, 16000).levels.max(0)
    share = np.arange(len(columns)) / len(columns)
    assert columns[share < 0.45].max() == FLOOR_DB
    assert columns[share > 0.55].min() > -10


def test_the_picture_has_low_frequencies_at_the_bottom_and_bounded_size() -> None:
    png = spectrogram_png(tone(100, 16000, seconds=60), 16000)
    picture = PIL.Image.open(io.BytesIO(png))
    assert picture.height == ROWS
    assert picture.width <= MAX_COLUMNS
    rows = np.array(picture).sum((1, 2), dtype=np.int64)
    assert rows.argmax() > ROWS * 0.6


@pytest.mark.parametrize("frames", [1, 2, 100])
@pytest.mark.parametrize("rate", [1, 50, 16000])
def test_the_shortest_sounds_have_pictures_too(frames: int, rate: int) -> None:
    pcm = tone(rate / 4, rate, seconds=frames / rate)
    assert 'class="wave"' in sound_player(pcm, rate)


def played(html: str) -> tuple[npt.NDArray[np.int16], int]:
    (data,) = re.findall(r'src="data:audio/wav;base64,([^"]+)"', html)
    samples, rate = soundfile.read(
        io.BytesIO(base64.b64decode(data)), dtype="int16", always_2d=True
    )
    return samples, rate


def test_a_player_has_the_sound_its_length_and_its_level() -> None:
    pcm = tone(440, 22050, seconds=0.25)
    html = sound_player(pcm, 22050, "<b>a tone</b>")
    samples, rate = played(html)
    np.testing.assert_array_equal(samples, pcm)
    assert rate == 22050
    assert "0.25 s · 22,050 Hz · 1 channel · peak −6.0 dB · RMS −9.0 dB" in html
    assert "&lt;b&gt;a tone&lt;/b&gt;" in html
    assert "peak −∞ dB" in sound_player(np.zeros((10, 1), np.int16), 8000)


def test_a_player_of_a_long_sound_has_its_beginning_and_says_so() -> None:
    pcm = np.zeros((PLAYER_BYTES, 3), np.int16)
    html = sound_player(pcm, 16000)
    assert len(played(html)[0]) == PLAYER_BYTES // 2
    assert "played as one channel · the player has the first 16.4 s" in html


def test_a_waveform_has_the_extremes_of_all_channels() -> None:
    pcm = np.zeros((100, 2), np.int16)
    pcm[10, 0], pcm[10, 1] = 16384, -8192
    html = waveform_svg(pcm, 100)
    (points,) = re.findall(r'points="([^"]+)"', html)
    assert "10,0 " in points
    assert "10,750 " in points
    assert ">0.5</text>" in html

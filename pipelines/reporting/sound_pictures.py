"""Waveforms, spectrograms and players of sounds.

n frames    c channels    R rows of a spectrogram, by frequency    T columns, by time
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import PIL.Image
from markupsafe import Markup

from bytelm.pipelines.reporting.bit_colours import scale_colour
from bytelm.pipelines.reporting.media_files import Pcm, data_uri, png_bytes, wav_bytes
from bytelm.pipelines.reporting.plots import Axis, plot, time_axis

Floats = npt.NDArray[np.float64]

FULL_SCALE = 32768
WINDOW_SECONDS = 0.032
MAX_COLUMNS = 600
ROWS = 120
FLOOR_DB = -90.0
"""Level of the darkest colour, in dB below a sine of full scale."""
PLAYER_BYTES = 1 << 19
"""Most bytes of 16-bit samples in a player; the rest of a longer sound is left out."""
_HEIGHT = 120


@dataclass(frozen=True)
class Spectrogram:
    """Levels of a sound by frequency and time."""

    levels: Floats
    """[R T] dB below a sine of full scale, lowest frequency first."""
    frequencies: Floats
    """[R] Hz in the middle of each row; rows are equally far apart in octaves."""
    seconds: float
    """Length of the sound."""


def spectrogram(pcm: Pcm, rate: int) -> Spectrogram:
    """Levels of 16-bit samples [n c], the mean of the channels, by a Fourier transform.

    Args:
        rate: frames a second.
    """
    signal = pcm.mean(1) / FULL_SCALE
    size = max(16, 1 << round(math.log2(max(1, WINDOW_SECONDS * rate))))
    hop = max(size // 8, -(-len(signal) // MAX_COLUMNS))
    starts = np.arange(0, max(1, len(signal)), hop)
    padded = np.pad(signal, (size // 2, size))  # a column is in the middle of its window
    window = np.hanning(size + 1)[:-1]
    spectra = np.fft.rfft(padded[starts[:, None] + np.arange(size)] * window)  # [T size/2+1]
    amplitude = np.abs(spectra).T * 2 / window.sum()
    edges = np.geomspace(1, size / 2, ROWS + 1)  # in bins: from rate / size to rate / 2
    rows = np.stack([_band(amplitude, *edges[row : row + 2]) for row in range(ROWS)])
    levels = 20 * np.log10(np.maximum(rows, 10 ** (FLOOR_DB / 20)))
    middles = np.sqrt(edges[1:] * edges[:-1]) * rate / size
    return Spectrogram(levels, middles, len(signal) / rate)


def spectrogram_png(pcm: Pcm, rate: int) -> bytes:
    """A PNG [R T] of `spectrogram`, highest frequency on top, bright where it is loud."""
    return _spectrogram_png(spectrogram(pcm, rate))


def spectrogram_plot(pcm: Pcm, rate: int) -> Markup:
    """The spectrogram of 16-bit samples [n c] with axes in Hz and seconds."""
    sound = spectrogram(pcm, rate)
    low, high = (math.log2(sound.frequencies[i]) for i in (0, -1))
    ticks = [
        ((math.log2(hertz) - low) / (high - low), _hertz(hertz))
        for hertz in (m * 10.0**power for power in range(-2, 6) for m in (1, 2, 5))
        if low <= math.log2(hertz) <= high
    ]
    picture = Markup(
        '<img class="stretched" height="{}" alt="Spectrogram, from {} to {} Hz and {:.3g} s" '
        'src="{}">'
    ).format(
        _HEIGHT,
        f"{sound.frequencies[0]:,.0f}",
        f"{sound.frequencies[-1]:,.0f}",
        sound.seconds,
        data_uri("image/png", _spectrogram_png(sound)),
    )
    name = f"frequency in Hz, level from −{-FLOOR_DB:g} (dark) to 0 dB"
    return plot(picture, time_axis(sound.seconds), Axis(name, ticks), _HEIGHT)


def waveform_svg(pcm: Pcm, rate: int, given_frames: int = 0) -> Markup:
    """The lowest and highest of 16-bit samples [n c] over time, over all channels, with axes.

    Args:
        rate: frames a second.
        given_frames: frames at the beginning that are shaded.
    """
    bounds = np.linspace(0, len(pcm), min(MAX_COLUMNS, len(pcm)) + 1).astype(int)[:-1]
    lowest = np.minimum.reduceat(pcm.min(1), bounds) / FULL_SCALE
    highest = np.maximum.reduceat(pcm.max(1), bounds) / FULL_SCALE
    limit = _limit(max(-lowest.min(), highest.max()))
    # In thousandths of the height, at least one of them thick.
    top = (500 - 500 * highest / limit).round().astype(int)
    bottom = np.maximum(top + 4, (500 - 500 * lowest / limit).round().astype(int))
    forth = [f"{x},{y}" for x, y in enumerate(top.tolist())]
    back = [f"{x},{y}" for x, y in enumerate(bottom.tolist())]
    outline = " ".join([*forth, f"{len(top)},{top[-1]}", f"{len(top)},{bottom[-1]}", *back[::-1]])
    shade = Markup('<rect class="given-area" width="{:.2f}" height="1004"/>').format(
        given_frames / len(pcm) * len(top)
    )
    drawing = Markup(
        '<svg class="stretched" height="{}" viewBox="0 0 {} 1004" preserveAspectRatio="none" '
        'role="img" aria-label="Waveform of {:.3g} s">{}<line class="plot-line" x1="0" x2="{}" '
        'y1="500" y2="500"/><polygon class="wave" points="{}"/></svg>'
    ).format(
        *(_HEIGHT, len(top), len(pcm) / rate),
        *(shade if given_frames else "", len(top), outline),
    )
    ticks = [(0.0, f"−{limit:g}"), (0.5, "0"), (1.0, f"{limit:g}")]
    return plot(drawing, time_axis(len(pcm) / rate), Axis("amplitude", ticks), _HEIGHT)


def sound_player(pcm: Pcm, rate: int, title: str = "", given_frames: int = 0) -> Markup:
    """Controls to play 16-bit samples [n c], with waveform, spectrogram, length and peak.

    Args:
        rate: frames a second.
        title: heading above the controls, plain text.
        given_frames: frames at the beginning that are shaded in the waveform.
    """
    return Markup('<figure class="sound">{}{}{}{}</figure>').format(
        Markup("<figcaption>{}</figcaption>").format(title) if title else "",
        audio_element(pcm, rate),
        waveform_svg(pcm, rate, given_frames),
        spectrogram_plot(pcm, rate),
    )


def audio_element(pcm: Pcm, rate: int) -> Markup:
    """Controls to play 16-bit samples [n c], and a line with length, rate and level."""
    playable = pcm if pcm.shape[1] <= 2 else pcm.mean(1, keepdims=True).round().astype(np.int16)
    played = playable[: PLAYER_BYTES // (2 * playable.shape[1])]
    facts = [
        f"{len(pcm) / rate:.3g} s",
        f"{rate:,} Hz",
        "1 channel" if pcm.shape[1] == 1 else f"{pcm.shape[1]} channels",
        f"peak {_decibels(int(np.abs(pcm.astype(np.int32)).max()))}",
        f"RMS {_decibels(float(np.sqrt(np.mean(pcm.astype(np.float64) ** 2))))}",
    ]
    if pcm.shape[1] > 2:
        facts.append("played as one channel")
    if len(played) < len(pcm):
        facts.append(f"the player has the first {len(played) / rate:.3g} s")
    uri = data_uri("audio/wav", wav_bytes(played, rate))
    return Markup(
        '<audio controls preload="metadata" src="{}"></audio><p class="media-facts">{}</p>'
    ).format(uri, " · ".join(facts))


def _band(amplitude: Floats, low: float, high: float) -> Floats:
    """[T] the loudest of the bins from `low` to `high`, or between its two neighbours' levels."""
    first, last = math.ceil(low), math.floor(high)
    if first <= last:
        return np.asarray(amplitude[first : last + 1].max(0))
    middle = math.sqrt(low * high)
    below, share = math.floor(middle), middle % 1
    return np.asarray((1 - share) * amplitude[below] + share * amplitude[below + 1])


def _spectrogram_png(sound: Spectrogram) -> bytes:
    return png_bytes(PIL.Image.fromarray(scale_colour(1 - sound.levels[::-1] / FLOOR_DB)))


def _limit(peak: float) -> float:
    """The next of 1, 0.5, 0.2, 0.1, ... above a peak, so that a quiet sound fills its plot."""
    limits = (m * 10.0**power for power in range(-4, 1) for m in (1, 2, 5))
    return next((limit for limit in limits if limit >= min(peak, 1.0)), 1.0)


def _hertz(hertz: float) -> str:
    return f"{hertz / 1000:g}k" if hertz >= 1000 else f"{hertz:g}"


def _decibels(amplitude: float) -> str:
    """An amplitude of 16-bit samples in dB of full scale."""
    if not amplitude:
        return "−∞ dB"
    return f"{20 * math.log10(amplitude / FULL_SCALE):.1f} dB".replace("-", "−")

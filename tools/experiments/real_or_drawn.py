"""How well drawn images and sounds can be told from real ones, without a network.

A classifier sees a few statistics of each file: of an image its colours and edges, of a sound its
levels, pitch and silence. It is a logistic regression, trained on real and drawn files alike and
asked about files that it was not trained on. Of files that nobody could tell apart it takes half
for real.

    n files    f statistics of a file    h, w height and width in pixels    c channels
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

Floats = npt.NDArray[np.float64]

FOLDS = 8
RIDGE = 1.0
"""Weight of the squared coefficients, of statistics with unit variance."""
STEPS = 25
"""Newton steps; a dozen are enough."""
FRAME_SECONDS = 0.02
SILENCE = 1e-2
"""Level of a frame, RMS of full scale, below which it is silent: -40 dB."""
PITCH_HZ = (60, 400)
VOICED = 0.5
"""Autocorrelation at the pitch's period, of that at 0, from which a frame is voiced."""


def image_statistics(pixels: npt.NDArray[np.uint8]) -> Floats:
    """Statistics [f] of the colours and edges of an image [h, w, c], h and w at least 3, in grey or
    in colour."""
    values = np.broadcast_to(pixels, (*pixels.shape[:2], 3)) / 255.0
    grey = values.mean(axis=2)
    spread = values.max(axis=2) - values.min(axis=2)
    colours = len(np.unique(pixels.reshape(-1, pixels.shape[2]), axis=0)) / grey.size
    colour = [
        *values.mean(axis=(0, 1)),
        *values.std(axis=(0, 1)),
        *(np.histogram(grey, bins=6, range=(0.0, 1.0))[0] / grey.size),
        spread.mean(),
        spread.std(),
        np.log(colours),
    ]
    edges: list[float] = []
    for axis in (0, 1):
        steps = np.abs(np.diff(values, axis=axis)).mean(axis=2)
        edges += [steps.mean(), steps.std(), (steps == 0.0).mean()]
        edges += [*np.quantile(steps, [0.75, 0.9, 0.97]), (steps > 0.2).mean()]
    curvature = (
        np.abs(np.diff(grey, n=2, axis=0)).mean() + np.abs(np.diff(grey, n=2, axis=1)).mean()
    )
    return np.array([*colour, *edges, curvature])


def sound_statistics(wave: Floats, rate: int) -> Floats:
    """Statistics [f] of the levels, the pitch and the silence of a sound in [-1, 1]."""
    length = max(2, round(FRAME_SECONDS * rate))
    frames = wave[: len(wave) // length * length].reshape(-1, length)
    level = np.sqrt(np.mean(frames**2, axis=1))
    crossings = (np.diff(np.sign(frames), axis=1) != 0).mean(axis=1)
    pitch, strength = _pitch(wave, rate)
    is_voiced = strength > VOICED
    voiced = pitch[is_voiced] if is_voiced.any() else np.zeros(1)
    decibels = 20.0 * np.log10(np.maximum(level, 1e-5))
    silence = level < SILENCE
    steps = np.abs(np.diff(wave))
    return np.array(
        [
            *(decibels.mean(), decibels.std(), decibels.max(), np.abs(np.diff(decibels)).mean()),
            *(silence.mean(), np.abs(np.diff(silence.astype(float))).mean()),
            *(crossings.mean(), crossings.std()),
            *(is_voiced.mean(), strength.mean(), np.median(voiced), voiced.std()),
            *(np.log10(steps.mean() + 1e-5), steps.max(), np.abs(wave).max()),
        ]
    )


def taken_for_real(real: Floats, drawn: Floats, prompts: int) -> tuple[float, float]:
    """Shares of real and of drawn files that a classifier takes for real, cross-validated.

    Args:
        real, drawn: [n, f] statistics. Drawn file i has the beginning of real file i % prompts,
            and neither is seen in training where the other is asked about.
    """
    fold_of_real = np.arange(len(real)) % FOLDS
    fold_of_drawn = np.arange(len(drawn)) % prompts % FOLDS
    is_real = np.zeros(len(real), np.bool_), np.zeros(len(drawn), np.bool_)
    for fold in range(FOLDS):
        asked = fold_of_real == fold, fold_of_drawn == fold
        classifier = _Classifier(real[~asked[0]], drawn[~asked[1]])
        is_real[0][asked[0]] = classifier.scores(real[asked[0]]) > 0.0
        is_real[1][asked[1]] = classifier.scores(drawn[asked[1]]) > 0.0
    return float(is_real[0].mean()), float(is_real[1].mean())


class _Classifier:
    """Logistic regression of real against drawn statistics, both classes with the same weight."""

    def __init__(self, real: Floats, drawn: Floats) -> None:
        both = np.concatenate([real, drawn])
        self._mean, self._scale = both.mean(axis=0), both.std(axis=0) + 1e-9
        inputs = self._inputs(both)
        is_real = np.arange(len(both)) < len(real)
        weight = np.where(is_real, 0.5 / len(real), 0.5 / len(drawn)) * len(both)
        ridge = RIDGE * np.eye(inputs.shape[1])
        ridge[-1, -1] = 1e-6
        self._coefficients = np.zeros(inputs.shape[1])
        for _ in range(STEPS):
            share = 1.0 / (1.0 + np.exp(-np.clip(inputs @ self._coefficients, -30.0, 30.0)))
            slope = inputs.T @ (weight * (is_real - share)) - ridge @ self._coefficients
            bend = (inputs * (weight * share * (1.0 - share))[:, None]).T @ inputs + ridge
            self._coefficients += np.linalg.solve(bend, slope)

    def scores(self, statistics: Floats) -> Floats:
        """[n], above 0 where a file is taken for real."""
        return np.asarray(self._inputs(statistics) @ self._coefficients)

    def _inputs(self, statistics: Floats) -> Floats:
        scaled = (statistics - self._mean) / self._scale
        return np.concatenate([scaled, np.ones((len(scaled), 1))], axis=1)


def nearest_distance(image: npt.NDArray[np.uint8], others: npt.NDArray[np.uint8]) -> float:
    """Root mean square difference of sub-pixels, 0 to 255, to the nearest of other images.

    Args:
        image: [h, w, c].
        others: [n, h, w, c], at least one.
    """
    square = [np.mean((image.astype(np.int32) - other) ** 2) for other in others]
    return float(np.sqrt(min(square)))


def _pitch(wave: Floats, rate: int) -> tuple[Floats, Floats]:
    """Pitch in Hz and its strength, 0 to 1, of frames of two of the longest periods."""
    longest, shortest = rate // PITCH_HZ[0], max(2, rate // PITCH_HZ[1])
    size = 2 * longest
    starts = range(0, len(wave) - size + 1, longest)
    pitches, strengths = [0.0], [0.0]
    for start in starts:
        frame = wave[start : start + size] - wave[start : start + size].mean()
        spectrum = np.fft.rfft(frame, 2 * size)
        correlation = np.fft.irfft(np.abs(spectrum) ** 2)[: longest + 1]
        lag = shortest + int(np.argmax(correlation[shortest:]))
        pitches.append(rate / lag)
        strengths.append(float(correlation[lag] / max(correlation[0], 1e-9)))
    return np.array(pitches), np.array(strengths)

"""Predictions of samples: those of a naive reference, and better than a line."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
import pytest

from bytelm.model.codec_features.layout import IS_LOW, KIND, PLACE, PLACES, SIZE, UNIT
from bytelm.model.codec_features.state import SAMPLES
from bytelm.model.output_mixing import predictors, sample_predictors
from bytelm.model.output_mixing.state import FACTORS, PREDICTION, TAPS, new_predictors

Doubles = npt.NDArray[np.float64]


def sound(count: int, channels: int, seed: int = 3) -> npt.NDArray[np.int64]:
    """Samples [count, channels] of tones and noise."""
    noise = np.random.default_rng(seed).normal(0, 40, (count, channels))
    time = np.arange(count)[:, None]
    wave = 5000 * np.sin(time / 9 + np.arange(channels)) + 2000 * np.sin(time / 2.3)
    return np.round(wave + noise).astype(np.int64)


def predictions_of(samples: npt.NDArray[np.int64]) -> npt.NDArray[np.void]:
    """Predictions of all bytes of samples [count, channels], big-endian and interleaved."""
    data = samples.astype(">i2").tobytes()
    ids = np.frombuffer(data, np.uint8).astype(np.int64)
    index, unit = np.arange(len(ids)), 2 * samples.shape[1]
    places = np.zeros((len(ids), PLACES), np.int32)
    places[:, KIND], places[:, UNIT], places[:, SIZE] = SAMPLES, unit, index
    places[:, PLACE], places[:, IS_LOW] = index % unit, index % 2
    predictions = np.zeros(len(ids), PREDICTION)
    predictors.compile_kernels()
    state, rows = new_predictors(1, len(ids)), np.zeros_like(ids)
    predictors.predict_ids(state, rows, ids, places, predictions)
    return predictions


def regression(samples: Doubles, count: int, memory: float, period: int) -> Doubles:
    """Predictions of samples [T] by ridge regression on `count` before, solved each `period`."""
    padded = np.concatenate([np.zeros(count), samples])
    around = np.stack([padded[t : t + count][::-1] for t in range(len(samples))])
    factors, predicted = np.zeros(count), np.zeros(len(samples))
    for t in range(len(samples)):
        predicted[t] = np.clip(factors @ around[t], -32768, 32767)
        if (t + 1) % period == 0:
            fade = memory ** np.arange(t, -1, -1)[:, None]
            products = around[: t + 1].T @ (fade * around[: t + 1])
            moments = around[: t + 1].T @ (fade[:, 0] * samples[: t + 1])
            ridge = sample_predictors.RIDGE * np.eye(count)
            factors = np.linalg.solve(products + ridge, moments)
    return predicted


def filtered(values: Doubles, taps: int, step: float) -> Doubles:
    """Predictions of values [T] by a filter of normalised steps on those before."""
    padded = np.concatenate([np.zeros(taps), values])
    factors, predicted = np.zeros(taps), np.zeros(len(values))
    for t in range(len(values)):
        before = padded[t : t + taps]
        predicted[t] = factors @ before
        power = 1 + before @ before / taps
        factors += step * (values[t] - predicted[t]) / power * before
    return predicted


def test_predictions_are_those_of_a_naive_reference() -> None:
    samples = sound(300, 1)
    memories, periods = sample_predictors.MEMORIES, sample_predictors.PERIODS
    expected = np.zeros((300, 5))
    values = samples[:, 0].astype(np.float64)
    expected[:, 0] = regression(values, FACTORS, memories[0], periods[0])
    taps, sums = sample_predictors.STAGE_TAPS, [expected[:, 0]]
    for count, step in zip(taps, sample_predictors.STEPS, strict=True):
        rests = values - sums[-1]
        rests[: sample_predictors.FIRST_FIT] = 0
        sums.append(sums[-1] + filtered(rests, count, step))
    expected[:, 1] = expected[:, 4] = sums[2].clip(-32768, 32767)
    expected[:, 3] = sums[3].clip(-32768, 32767)
    short = sample_predictors.SHORT_FACTORS
    expected[:, 2] = regression(values, short, memories[1], periods[1])
    means = predictions_of(samples)["means"]
    np.testing.assert_allclose(means[::2], expected, rtol=1e-6, atol=1e-4)
    assert np.array_equal(means[::2], means[1::2])  # one prediction of both bytes


@pytest.mark.parametrize("channels", [1, 2, 8])
def test_tones_are_predicted_to_their_noise(channels: int) -> None:
    samples = sound(2 * TAPS, channels)
    means = predictions_of(samples)["means"][::2].reshape(*samples.shape, 5)
    errors = np.abs(samples[..., None] - means)[TAPS:].mean(axis=(0, 1))
    assert errors.max() < 70, errors  # 32 is what the noise leaves to a perfect prediction


def test_a_second_channel_is_predicted_from_the_first() -> None:
    noise = np.random.default_rng(5).normal(0, 3000, 800).round().astype(np.int64)
    copied = predictions_of(np.stack([noise, noise // 2], axis=1))["means"][2::4, 0]
    assert np.abs(copied - noise // 2)[200:].mean() < 30

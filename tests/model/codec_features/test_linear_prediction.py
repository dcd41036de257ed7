"""Linear prediction of samples: against the normal equations, and on tones."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from bytelm.model.codec_features.linear_prediction import (
    NOISE_FLOOR,
    ORDER,
    PREDICTION_BLOCK,
    TAPER,
    WINDOW,
    predict_samples,
)


def solved(samples: np.ndarray) -> np.ndarray:
    """Predictions with the coefficients of each block from a general solver."""
    padded = np.concatenate([np.zeros(WINDOW), samples.astype(np.float64)])
    predictions = []
    for index in range(len(samples) + 1):
        block = index // PREDICTION_BLOCK * PREDICTION_BLOCK
        window = padded[block : block + WINDOW] * TAPER.numpy()
        r = np.array([window[lag:] @ window[: WINDOW - lag] for lag in range(ORDER + 1)])
        r[0] = r[0] * (1 + NOISE_FLOOR) + 1
        lags = np.abs(np.subtract.outer(np.arange(ORDER), np.arange(ORDER)))
        factors = np.linalg.solve(r[lags], r[1:])
        predictions.append(factors @ padded[WINDOW + index - ORDER : WINDOW + index][::-1])
    return np.array(predictions)


def sound(kind: str, count: int) -> np.ndarray:
    generator, time = np.random.default_rng(3), np.arange(count)
    if kind == "noise":
        return generator.integers(-32768, 32768, count)
    if kind == "silence":
        return np.zeros(count, np.int64)
    if kind == "loudest":
        return np.where(time % 7 < 3, 32767, -32768)
    tones = 9000 * np.sin(0.05 * time) + 5000 * np.sin(0.31 * time + 1)
    return (tones + generator.normal(0, 20, count)).round().astype(np.int64)


@pytest.mark.parametrize("kind", ["noise", "silence", "loudest", "tones"])
def test_equals_the_normal_equations(kind: str) -> None:
    samples = sound(kind, 1500)
    predicted = predict_samples(torch.from_numpy(samples)[None])[0].numpy()
    expected = solved(samples).clip(-32768, 32767)
    # Coefficients have 14 bits behind the point, and ORDER products are summed.
    assert np.abs(predicted - expected).max() <= 0.5 + ORDER * 32768 / 2**15


def test_tones_are_predicted_to_their_noise() -> None:
    samples = sound("tones", 4000)
    predicted = predict_samples(torch.from_numpy(samples)[None])[0, :-1].numpy()
    assert np.abs(samples - predicted)[1000:].mean() < 40
    assert np.abs(np.diff(samples))[1000:].mean() > 500


@pytest.mark.parametrize(
    "count", [0, 1, PREDICTION_BLOCK - 1, PREDICTION_BLOCK, PREDICTION_BLOCK + 1, 700]
)
def test_a_prediction_does_not_depend_on_what_follows(count: int) -> None:
    samples = torch.from_numpy(sound("tones", 900))[None]
    alone = predict_samples(samples[:, :count])
    both = predict_samples(torch.cat([samples, -samples]))
    assert torch.equal(both[:1, : count + 1], alone)

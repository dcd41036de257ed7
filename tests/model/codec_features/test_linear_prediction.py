"""Linear prediction of samples: against the normal equations, and on tones."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from bytelm.model.codec_features.state import ORDER, WINDOW
from bytelm.model.codec_features.tables import NOISE_FLOOR, PREDICTION_BLOCK, TAPER
from bytelm.model.codec_features.vectorized import compute_codec_features

MONO = [261, 0, 0, 31, 64, 1, 1, 0, 0, 0, 0]
"""The opening of a sound of one channel, 16 bits, big-endian."""


def predicted(samples: np.ndarray) -> np.ndarray:
    """The prediction of each sample [n] from those before it, and of one more: [n + 1]."""
    ids = torch.tensor([[*MONO, *samples.astype(">i2").tobytes(), 0]])
    features = compute_codec_features(ids, torch.zeros(1, 1), 1)[0, len(MONO) :: 2].numpy()
    # Before a high byte the first two features are the bytes of the prediction.
    return (256 * features[:, 0] + features[:, 1]).astype(np.int16)


def solved(samples: np.ndarray) -> np.ndarray:
    """Predictions with the coefficients of each block from a general solver."""
    padded = np.concatenate([np.zeros(WINDOW), samples.astype(np.float64)])
    predictions = []
    for index in range(len(samples) + 1):
        block = index // PREDICTION_BLOCK * PREDICTION_BLOCK
        window = padded[block : block + WINDOW] * TAPER
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
    expected = solved(samples).clip(-32768, 32767)
    # Coefficients have 14 bits behind the point, and ORDER products are summed.
    assert np.abs(predicted(samples) - expected).max() <= 0.5 + ORDER * 32768 / 2**15


def test_tones_are_predicted_to_their_noise() -> None:
    samples = sound("tones", 4000)
    errors = np.abs(samples - predicted(samples)[:-1])
    assert errors[1000:].mean() < 40
    assert np.abs(np.diff(samples))[1000:].mean() > 500


@pytest.mark.parametrize(
    "count", [0, 1, PREDICTION_BLOCK - 1, PREDICTION_BLOCK, PREDICTION_BLOCK + 1, 700]
)
def test_a_prediction_does_not_depend_on_what_follows(count: int) -> None:
    samples = sound("tones", 900)
    alone = predicted(samples[:count])
    assert np.array_equal(predicted(samples)[: count + 1], alone)

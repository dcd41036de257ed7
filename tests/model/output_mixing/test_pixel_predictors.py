"""Predictions of pixels: those of a naive reference, and better than a median."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
import pytest

from bytelm.model.codec_features.layout import KIND, LINE, PLACE, PLACES, SIZE, UNIT
from bytelm.model.codec_features.state import PIXELS
from bytelm.model.output_mixing import pixel_predictors as pixels
from bytelm.model.output_mixing import predictors
from bytelm.model.output_mixing.state import BLOCKS, PREDICTION, new_predictors

Doubles = npt.NDArray[np.float64]
Pixels = npt.NDArray[np.uint8]


def picture(height: int, width: int, channels: int, seed: int = 4) -> Pixels:
    """Waves and noise, [height, width, channels]."""
    noise = np.random.default_rng(seed).normal(0, 5, (height, width, channels))
    y, x, channel = np.mgrid[:height, :width, :channels]
    waves = 60 * np.sin(x / 4 + channel) + 50 * np.sin(y / 3 + x / 7)
    return np.clip(np.round(128 + waves + noise), 0, 255).astype(np.uint8)


def predictions_of(image: Pixels) -> npt.NDArray[np.void]:
    """Predictions of all bytes of an image [height, width, channels], in its shape."""
    _, width, unit = image.shape
    ids, index = image.reshape(-1).astype(np.int64), np.arange(image.size)
    places = np.zeros((len(ids), PLACES), np.int32)
    places[:, KIND], places[:, UNIT], places[:, LINE] = PIXELS, unit, width * unit
    places[:, SIZE], places[:, PLACE] = index, index % unit
    predictions = np.zeros(len(ids), PREDICTION)
    predictors.compile_kernels()
    state, rows = new_predictors(1, len(ids)), np.zeros_like(ids)
    predictors.predict_ids(state, rows, ids, places, predictions)
    return predictions.reshape(image.shape)


class Reference:
    """The regression of pixels in plain NumPy, each fit from the pixels themselves.

    Args:
        plain: predictions of the first bytes, which have none by regression.
    """

    def __init__(self, image: Pixels, plain: Doubles) -> None:
        self._flat, (_, self._width, self._unit) = image.reshape(-1).astype(float), image.shape
        columns = max(pixels.LEAST_BLOCK, -(-self._width // BLOCKS))
        self._columns = columns
        self.errors, self.spreads = np.zeros(image.size), np.zeros(image.size)
        self.means = np.zeros(image.size)
        self._around: list[Doubles] = []
        factors: dict[int, Doubles] = {}
        for size in range(image.size):
            pixel, channel = divmod(size, self._unit)
            self._around.append(self._neighbours(size, channel))
            if pixel % self._width % columns == 0:
                factors[channel] = self._fit(pixel, channel)
            self.spreads[size] = self._spread(size, channel)
            self.means[size] = np.clip(factors[channel] @ self._around[size], 0, 255)
            if size < len(plain):
                self.means[size] = plain[size]
            self.errors[size] = abs(self._flat[size] - self.means[size])

    def _near(self, values: Doubles, size: int, distance: int, otherwise: float) -> float:
        return float(values[size - distance]) if 0 < distance <= size else otherwise

    def _neighbours(self, size: int, channel: int) -> Doubles:
        unit, line = self._unit, self._unit * self._width
        left = self._near(self._flat, size, unit, 0)
        above = self._near(self._flat, size, line, left)
        own = pixels.OWN if channel == 0 else pixels.OWN[: pixels.MOST_OWN]
        around = [pixels.CONSTANT]
        around += [
            self._near(self._flat, size, x * unit + y * line, above if y else left) for x, y in own
        ]
        for back, others in enumerate((pixels.BEFORE, pixels.BEFORE_THAT), 1):
            if channel >= back:
                distances = [x * unit + y * line + back for x, y in others]
                around += [self._near(self._flat, size, d, 0) for d in distances]
        return np.array(around)

    def _fit(self, pixel: int, channel: int) -> Doubles:
        """Factors from all pixels before, whose weights follow from where they lie."""
        line, column = divmod(pixel, self._width)
        block, count = column // self._columns, len(self._around[channel])
        products, moments = pixels.RIDGE * np.eye(count), np.zeros(count)
        for other in range(pixel):
            of_line, of_column = divmod(other, self._width)
            of_block = of_column // self._columns
            if abs(of_block - block) > 1:
                continue
            fades = line - of_line - (of_block >= block)
            index = other * self._unit + channel
            weight = pixels.BLOCK_MEMORY**fades / (1 + self.spreads[index])
            around = self._around[index]
            products += weight * np.outer(around, around)
            moments += weight * around * self._flat[index]
        return np.linalg.solve(products, moments)

    def _spread(self, size: int, channel: int) -> float:
        unit, line = self._unit, self._unit * self._width
        left = self._near(self.errors, size, unit, 0)
        above = self._near(self.errors, size, line, left)
        corner = self._near(self.errors, size, line + unit, above)
        right = self._near(self.errors, size, line - unit, above)
        far = self._near(self.errors, size, 2 * unit, left)
        far += self._near(self.errors, size, 2 * line, above)
        spread = (2 * left + 2 * above + corner + right + 0.5 * far) / 7
        if channel:
            spread = 0.6 * spread + 0.4 * self._near(self.errors, size, 1, left)
        return spread


@pytest.mark.parametrize("channels", [1, 3])
def test_predictions_are_those_of_a_naive_reference(channels: int) -> None:
    image = picture(9, 28, channels)
    means = predictions_of(image)["means"].reshape(image.size, -1)
    plain = means[: pixels.FIRST_FIT * channels, pixels.PLAIN]
    np.testing.assert_allclose(means[:, pixels.FITTED], Reference(image, plain).means, atol=1e-3)
    assert np.array_equal(means[:, pixels.FITTED], means[:, pixels.SPREAD])


@pytest.mark.parametrize("channels", [1, 3, 8])
def test_waves_are_predicted_to_their_noise(channels: int) -> None:
    image = picture(40, 40, channels)
    means = predictions_of(image)["means"]
    errors = np.abs(image[..., None] - means[..., :2])[10:].mean(axis=(0, 1, 2))
    assert errors[0] < 6 < errors[1], errors  # 4 is what the noise leaves to a perfect prediction

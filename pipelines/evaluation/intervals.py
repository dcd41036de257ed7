"""Bootstrap intervals of figures that are ratios of sums over documents.

Documents are drawn with replacement, as many as there are, and the ratio of their sums is taken
(Efron, Bootstrap methods, Ann. Statist. 1979; percentile interval). The bytes of one document are
not independent of each other, so documents and not bytes are drawn.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

RESAMPLES = 1000
SEED = 20240101
LEVEL = 0.95
_DRAWS_AT_ONCE = 1 << 22


def bootstrap_interval(
    numerators: npt.ArrayLike, denominators: npt.ArrayLike
) -> tuple[float, float] | None:
    """The 95 % interval of Σ numerators / Σ denominators over documents.

    The difference of two models is the ratio of the differences of their bits to the bytes.

    Args:
        numerators: [n] bits of each document, or their differences.
        denominators: [n] payload bytes of each document.
    Returns:
        low and high end; None with fewer than two documents that have bytes. The same values give
        the same interval.
    """
    above, below = np.asarray(numerators, np.float64), np.asarray(denominators, np.float64)
    above, below = above[below > 0], below[below > 0]
    if len(below) < 2:
        return None
    ratios = _resampled_ratios(above, below)
    low, high = np.quantile(ratios, [(1 - LEVEL) / 2, (1 + LEVEL) / 2])
    return float(low), float(high)


def _resampled_ratios(
    above: npt.NDArray[np.float64], below: npt.NDArray[np.float64]
) -> npt.NDArray[np.float64]:
    """[RESAMPLES] the ratio of sums in each resample; some resamples at once, to bound memory."""
    count = len(below)
    generator = np.random.default_rng(SEED)
    at_once = max(1, _DRAWS_AT_ONCE // count)
    ratios: Sequence[npt.NDArray[np.float64]] = [
        above[drawn].sum(1) / below[drawn].sum(1)
        for first in range(0, RESAMPLES, at_once)
        for size in [min(at_once, RESAMPLES - first)]
        for drawn in [generator.integers(0, count, (size, count))]
    ]
    return np.concatenate(ratios)

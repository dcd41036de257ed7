"""Least squares with exponential forgetting: predictions from what stood around.

Shapes:
    f neighbours, at most F    F factors of a regression: see `state`
"""

from __future__ import annotations

import math
from functools import partial

import numpy as np
import numpy.typing as npt

from bytelm.model.numba_kernels import kernel_part

Doubles = npt.NDArray[np.float64]

_sum_kernel = partial(kernel_part, fastmath={"contract", "reassoc", "nsz"})
"""For sums of products, which the compiler may add up in lanes."""


@_sum_kernel
def dot(a: Doubles, b: Doubles) -> float:
    """The sum of products of two vectors of one length."""
    total = 0.0
    for i in range(len(a)):
        total += a[i] * b[i]
    return total


@_sum_kernel
def add_scaled(total: Doubles, values: Doubles, factor: float) -> None:
    """Add `factor` times a vector to another one."""
    for i in range(len(total)):
        total[i] += factor * values[i]


@kernel_part
def add_products(
    moments: Doubles, around: Doubles, value: float, memory: float, weight: float
) -> None:
    """Let the sums of products [F, F + 1] fade, and add those of new neighbours [f] and what came
    there.

    Args:
        memory: share of the sums that stays.
        weight: how often the new ones count.
    """
    last = moments.shape[1] - 1
    for i in range(len(around)):
        of_row, factor = moments[i], weight * around[i]
        for j in range(i + 1):
            of_row[j] = memory * of_row[j] + factor * around[j]
        of_row[last] = memory * of_row[last] + factor * value


@kernel_part
def solve(moments: Doubles, factors: Doubles, lower: Doubles, ridge: float) -> None:
    """Fit factors [f] to sums of products [F, F + 1] by Cholesky's decomposition; those before stay
    where it fails.

    Args:
        lower: [F, F + 1] scratch.
        ridge: what is added to the diagonal.
    """
    count, last = len(factors), moments.shape[1] - 1
    for i in range(count):
        for j in range(i + 1):
            value = moments[i, j] - dot(lower[i, :j], lower[j, :j])
            if i == j:
                value += ridge
                if value <= 1e-9:
                    return
                lower[i, i] = math.sqrt(value)
            else:
                lower[i, j] = value / lower[j, j]
    for i in range(count):
        rest = moments[i, last] - dot(lower[i, :i], lower[:i, last])
        lower[i, last] = rest / lower[i, i]
    for i in range(count - 1, -1, -1):
        value = lower[i, last]
        for k in range(i + 1, count):
            value -= lower[k, i] * factors[k]
        factors[i] = value / lower[i, i]

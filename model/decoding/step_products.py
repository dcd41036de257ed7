"""Products of a few rows with a matrix, the parts of `step_kernel.py` that take most of its time.

A row alone has to read every weight for one multiplication, so that it waits for the weights. They
are bf16 numbers where a matrix has no others, as that of an exported model whose weights are
stored so: half of the bytes, which fit the second-level cache, and the same products.

Shapes:
    R   rows of a product        V   outputs of a panel
"""

from functools import partial
from typing import Any

import numba
import numpy as np
from numba.extending import overload

from bytelm.model.decoding.step_records import Floats, Halves, Record, Step
from bytelm.model.numba_kernels import kernel_part

PANEL = 128
"""Most outputs of a panel of a matrix, [inputs, outputs]. The sums of four rows of a panel and its
current rows stay in the first-level cache."""
Weights = Floats | Halves

_kernel = partial(kernel_part, fastmath={"contract"})


@_kernel
def copy(source: Floats, target: Floats) -> None:
    """Fill the target with the first numbers of the source."""
    for k in range(len(target)):
        target[k] = source[k]


@_kernel
def clear(target: Floats) -> None:
    """Fill the target with zeros."""
    for k in range(len(target)):
        target[k] = 0.0


@_kernel
def linear_product(
    step: Step, linear: Record, x: Floats, x_stride: int, y: Floats, y_stride: int, rows: int
) -> None:
    """y = W x for rows that begin every `x_stride` numbers of x and every `y_stride` of y."""
    if linear.is_bf16:
        _panels(step.bf16_weights, linear, x, x_stride, y, y_stride, rows)
    else:
        _panels(step.weights, linear, x, x_stride, y, y_stride, rows)


def _number(weight: Any) -> np.float32:
    """The number that a stored weight stands for. Kernels alone call it."""
    raise NotImplementedError  # numba has the code below in its place


@overload(_number)
def _number_of_type(weight):  # type: ignore[no-untyped-def]  # as numba compares signatures
    """The code that kernels have for `_number` of a weight of this type of numba."""
    if weight == numba.uint16:  # bf16, the upper half of a float32
        return lambda weight: np.uint32(np.uint32(weight) << np.uint32(16)).view(np.float32)
    return lambda weight: weight


@_kernel
def _panels(
    weights: Weights,
    linear: Record,
    x: Floats,
    x_stride: int,
    y: Floats,
    y_stride: int,
    rows: int,
) -> None:
    """The product with all panels of a matrix, whose weights have one type."""
    inputs, outputs = linear.inputs, linear.outputs
    for first in range(0, outputs, PANEL):
        width = min(PANEL, outputs - first)
        start = linear.offset + first * inputs
        panel = weights[start : start + width * inputs]
        row = 0
        while row + 4 <= rows:
            of_x, of_y = x[row * x_stride :], y[row * y_stride + first :]
            _four_rows(panel, width, inputs, of_x, x_stride, of_y, y_stride)
            row += 4
        while row < rows:
            of_x, of_y = x[row * x_stride :], y[row * y_stride + first :]
            _one_row(panel, width, inputs, of_x, of_y)
            row += 1


@_kernel
def _one_row(w: Weights, n: int, inputs: int, x: Floats, y: Floats) -> None:
    """A panel w [inputs, n] times one row. Eight inputs for each pass over the sums."""
    y = y[:n]
    clear(y)
    whole = inputs // 8 * 8
    for i in range(0, whole, 8):
        x0, x1, x2, x3 = x[i], x[i + 1], x[i + 2], x[i + 3]
        x4, x5, x6, x7 = x[i + 4], x[i + 5], x[i + 6], x[i + 7]
        at = i * n
        w0, w1 = w[at : at + n], w[at + n : at + 2 * n]
        w2, w3 = w[at + 2 * n : at + 3 * n], w[at + 3 * n : at + 4 * n]
        w4, w5 = w[at + 4 * n : at + 5 * n], w[at + 5 * n : at + 6 * n]
        w6, w7 = w[at + 6 * n : at + 7 * n], w[at + 7 * n : at + 8 * n]
        for k in range(n):
            total = y[k] + x0 * _number(w0[k]) + x1 * _number(w1[k])
            total = total + x2 * _number(w2[k]) + x3 * _number(w3[k])
            total = total + x4 * _number(w4[k]) + x5 * _number(w5[k])
            y[k] = total + x6 * _number(w6[k]) + x7 * _number(w7[k])
    for i in range(whole, inputs):
        for k in range(n):
            y[k] = y[k] + x[i] * _number(w[i * n + k])


@_kernel
def _four_rows(
    w: Weights,
    n: int,
    inputs: int,
    x: Floats,
    x_stride: int,
    y: Floats,
    y_stride: int,
) -> None:
    """A panel w [inputs, n] times four rows: the sums of `_one_row`, for a quarter of the loads."""
    y0, y1 = y[:n], y[y_stride : y_stride + n]
    y2, y3 = y[2 * y_stride : 2 * y_stride + n], y[3 * y_stride : 3 * y_stride + n]
    for y_row in (y0, y1, y2, y3):
        clear(y_row)
    b, c, d = x[x_stride:], x[2 * x_stride :], x[3 * x_stride :]
    whole = inputs // 4 * 4
    for i in range(0, whole, 4):
        a0, a1, a2, a3 = x[i], x[i + 1], x[i + 2], x[i + 3]
        b0, b1, b2, b3 = b[i], b[i + 1], b[i + 2], b[i + 3]
        c0, c1, c2, c3 = c[i], c[i + 1], c[i + 2], c[i + 3]
        d0, d1, d2, d3 = d[i], d[i + 1], d[i + 2], d[i + 3]
        at = i * n
        w0, w1 = w[at : at + n], w[at + n : at + 2 * n]
        w2, w3 = w[at + 2 * n : at + 3 * n], w[at + 3 * n : at + 4 * n]
        for k in range(n):
            # Loaded once: for all that the compiler knows, a store could change them.
            v0, v1, v2, v3 = _number(w0[k]), _number(w1[k]), _number(w2[k]), _number(w3[k])
            total_0 = y0[k] + a0 * v0 + a1 * v1 + a2 * v2 + a3 * v3
            total_1 = y1[k] + b0 * v0 + b1 * v1 + b2 * v2 + b3 * v3
            total_2 = y2[k] + c0 * v0 + c1 * v1 + c2 * v2 + c3 * v3
            total_3 = y3[k] + d0 * v0 + d1 * v1 + d2 * v2 + d3 * v3
            y0[k], y1[k], y2[k], y3[k] = total_0, total_1, total_2, total_3
    for i in range(whole, inputs):
        for k in range(n):
            v = _number(w[i * n + k])
            y0[k] = y0[k] + x[i] * v
            y1[k] = y1[k] + b[i] * v
            y2[k] = y2[k] + c[i] * v
            y3[k] = y3[k] + d[i] * v

"""Drawing ids on a CPU: what `sampling.sample` computes, in one pass over each row.

Shapes:
    B   rows                     V   vocabulary
    S   states of a guide        A   bytes of room that a guide tells apart: 0 to A - 1
"""

from functools import partial

import numpy as np
import numpy.typing as npt

from bytelm.model.numba_kernels import kernel, kernel_part

Doubles = npt.NDArray[np.float64]
Flags = npt.NDArray[np.bool_]
Ints = npt.NDArray[np.int64]


@kernel
def draw_rows(
    values: Doubles,
    allowed: Flags,
    state: Ints,
    room: Ints,
    noise: Doubles,
    temperature: float,
    top_k: int,
    top_p: float,
    min_p: float,
    is_taken: Flags,
    ids: Ints,
) -> None:
    """Draw an id for each row; the arguments after `noise` are the fields of `Sampling`.

    Args:
        values: [B, V], logits; overwritten.
        allowed: [S, A, V], the ids that may be drawn in a state and with room for so many bytes.
        state, room: [B], of each row; more room than A - 1 allows what A - 1 does.
        noise: [B].
        is_taken: [V], whatever it holds.
        ids: [B], written.
    """
    for row in range(len(values)):
        of_row = values[row]
        may_come = allowed[state[row], min(room[row], allowed.shape[1] - 1)]
        for i in range(len(of_row)):
            if not may_come[i]:
                of_row[i] = -np.inf
        highest = _highest(of_row)
        if temperature == 0.0:
            ids[row] = _first(of_row, highest)
            continue
        if 0 < top_k < len(of_row):
            _keep_largest(of_row, top_k, is_taken)
        for i in range(len(of_row)):
            of_row[i] = np.exp((of_row[i] - highest) / temperature)
        _divide(of_row, _total(of_row))
        if top_p < 1.0:
            _keep_mass(of_row, top_p, is_taken)
        if min_p > 0.0:
            least = min_p * _highest(of_row)
            for i in range(len(of_row)):
                if of_row[i] < least:
                    of_row[i] = 0.0
        ids[row] = _pick(of_row, noise[row])


@kernel
def follow_guide(next_state: Ints, ids: Ints, state: Ints, room: Ints, drawn: Ints) -> None:
    """Take the ids [B] that were drawn: a byte moves on in the guide, any other id ends its row.

    Args:
        next_state: [S, 256], the state after a byte.
        ids: any byte stands for an end afterwards.
        state, room, drawn: [B], of each row, written; `drawn` counts bytes.
    """
    most = next_state.shape[1] - 1
    for row in range(len(ids)):
        if ids[row] <= most:
            drawn[row] += 1
            room[row] -= 1
        else:
            ids[row] = most
            room[row] = 0
        state[row] = next_state[state[row], ids[row]]


@kernel_part
def _pick(probabilities: Doubles, noise: float) -> int:
    """The first id at which the sum of probabilities is above `noise` times that of all."""
    point = noise * _total(probabilities)
    total = 0.0
    for i in range(len(probabilities)):
        total += probabilities[i]
        if probabilities[i] > 0.0 and total > point:
            return i
    return _first(probabilities, _highest(probabilities))  # logits that are no numbers


@kernel_part
def _keep_largest(logits: Doubles, count: int, is_taken: Flags) -> None:
    """Mask all but the `count` largest logits."""
    is_taken[:] = False
    for _ in range(count):
        is_taken[_largest_left(logits, is_taken)] = True
    for i in range(len(logits)):
        if not is_taken[i]:
            logits[i] = -np.inf


@kernel_part
def _keep_mass(probabilities: Doubles, mass: float, is_taken: Flags) -> None:
    """Clear all but the fewest likeliest ids whose probabilities add up to at least `mass`."""
    is_taken[:] = False
    taken, count = 0.0, 0
    while taken < mass and count < len(probabilities):
        largest = _largest_left(probabilities, is_taken)
        is_taken[largest] = True
        taken += probabilities[largest]
        count += 1
    for i in range(len(probabilities)):
        if not is_taken[i]:
            probabilities[i] = 0.0


@kernel_part
def _largest_left(values: Doubles, is_taken: Flags) -> int:
    """Index of the first of the largest values that are not yet taken."""
    largest = -1
    for i in range(len(values)):
        if not is_taken[i] and (largest < 0 or values[i] > values[largest]):
            largest = i
    return largest


@kernel_part
def _first(values: Doubles, value: float) -> int:
    """Index of the first element that equals `value`; 0 if none does."""
    for i in range(len(values)):
        if values[i] == value:
            return i
    return 0


@partial(kernel_part, fastmath={"nnan", "nsz"})
def _highest(values: Doubles) -> float:
    highest = -np.inf
    for i in range(len(values)):
        highest = max(highest, values[i])
    return highest


@kernel_part
def _total(values: Doubles) -> float:
    total = 0.0
    for i in range(len(values)):
        total += values[i]
    return total


@kernel_part
def _divide(values: Doubles, divisor: float) -> None:
    for i in range(len(values)):
        values[i] /= divisor

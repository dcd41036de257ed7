"""Logits of the next bit by every predictor, as a part of kernels.

Of a context there are counts of the bits that followed it. An adaptive map makes them a
probability: how often a one came after such counts.
"""

from __future__ import annotations

from functools import partial
from typing import Any

import numpy as np
import numpy.typing as npt

from bytelm.model.codec_features.state import BYTES, PIXELS, SAMPLES
from bytelm.model.float_kernel import clip, exp, log
from bytelm.model.numba_kernels import kernel_part
from bytelm.model.output_mixing.state import (
    BYTE_SET,
    CONFIDENCE_LEVELS,
    CONFIDENCE_SET,
    CONTEXTS,
    EDGES,
    MATCH,
    MATCH_SET,
    MOST_COUNT,
    NETWORK,
    NODE_SET,
    NODES,
    REGRESSION,
    REGRESSIONS,
    WIDTH,
    WORD_SET,
    MixerState,
)

Floats = npt.NDArray[np.float32]
Prediction = Any
"""A record of `state.PREDICTION`."""

LEAST, MOST = np.float32(2.0**-20), np.float32(1 - 2.0**-20)
"""Bounds of a probability."""
MOST_INPUT = np.float32(np.log(2.0**20))
COUNT_WORTH, MOST_SEEN = np.float32(8.0), np.float32(1000.0)
"""Adaptive maps: observations that a first probability is worth, memory."""
ZERO, ONE, HALF = np.float32(0.0), np.float32(1.0), np.float32(0.5)
_FACTOR = np.uint64(0x9E3779B97F4A7C15)  # 2^64 / golden ratio

_part = partial(kernel_part, is_inlined=True)
_lane_kernel = partial(kernel_part, fastmath={"contract"})


@_part
def fill_inputs(state: MixerState, row: int, node: int, depth: int, prediction: Prediction) -> None:
    """Set the logits of all predictors for the bit after a node's bits, and choose the weights."""
    r, network, sets = state.rows[row], state.network[row], state.rows[row].sets
    r.zeros[NETWORK], r.ones[NETWORK] = network[2 * node], network[2 * node + 1]
    seen = _fill_contexts(state, row, node, depth, prediction)
    expected = expected_bit(prediction, node, depth)
    level = prediction.level if expected >= 0 else 0
    r.zeros[MATCH] = r.ones[MATCH] = HALF
    if expected >= 0:
        hit = np.float32(state.hits[row, level, 0])
        r.ones[MATCH] = hit if expected else ONE - hit
        r.zeros[MATCH] = ONE - r.ones[MATCH]
    if prediction.kind != BYTES:
        _fill_regressions(state, row, node, depth, prediction)
    _fill_logits(r.zeros, r.ones, r.tails, r.inputs)
    confidence = int(np.float32(0.75) * abs(r.inputs[NETWORK]))
    confidence = max(0, min(confidence, CONFIDENCE_LEVELS - 1))
    of_byte, of_bit = 8 * r.byte + depth, depth + 8 * prediction.is_low
    sets[0] = MATCH_SET + level
    sets[1] = CONFIDENCE_SET + confidence * (CONTEXTS + 1) + seen
    sets[2] = of_bit
    if prediction.kind == BYTES:
        sets[2], sets[3] = NODE_SET + node, BYTE_SET + of_byte
        sets[4] = WORD_SET + 8 * prediction.letters + depth
    r.final_sets[0] = of_bit if prediction.kind == SAMPLES else node
    r.final_sets[1] = NODES + of_byte


@_lane_kernel
def _fill_logits(zeros: Floats, ones: Floats, tails: Floats, logits: Floats) -> None:
    """Logits [I] of odds; none where they are even."""
    for i in range(WIDTH):
        logits[i] = clip(tails[i] + log(ones[i] / zeros[i]), -MOST_INPUT, MOST_INPUT)


@_part
def _node_of_half(node: int, depth: int) -> int:
    """The node of its half of a byte, 1 to 15."""
    first = 1 << (depth & 3)
    return first | (node & (first - 1))


@_part
def find_slots(
    state: MixerState, row: int, node: int, prediction: Prediction, is_learned: bool
) -> None:
    """Find the counts of the contexts for the half of a byte that begins after a node's bits.

    A context has one of two slots, side by side in a line of the caches. A new one takes that which
    was used less, if something is to be learned, and otherwise has none (-1).
    """
    r, last = state.rows[row], state.counts.shape[2] - 1
    for i in range(prediction.contexts):
        key = (prediction.hashes[i] ^ np.uint64(node)) * _FACTOR
        key ^= key >> np.uint64(29)
        slot = np.int64(key >> np.uint64(40)) & last
        low, high = np.uint8(key & np.uint64(255)), np.uint8(key >> np.uint64(8) & np.uint64(255))
        count, other = state.counts[row, i, slot], state.counts[row, i, slot ^ 1]
        if count[0] != low or count[1] != high:
            is_other = other[0] == low and other[1] == high
            if is_other or other[2] + other[3] < count[2] + count[3]:
                slot ^= 1
            if not is_other and not is_learned:
                slot = -1
            elif not is_other:
                count = state.counts[row, i, slot]
                count[:] = 0
                count[0], count[1] = low, high
        r.slots[i] = slot


@_part
def _fill_contexts(
    state: MixerState, row: int, node: int, depth: int, prediction: Prediction
) -> int:
    """Set the odds by the contexts; returns how many of them were seen before."""
    r, at, seen = state.rows[row], 2 * _node_of_half(node, depth), 0
    for i in range(CONTEXTS):
        r.zeros[1 + i] = r.ones[1 + i] = HALF
    for i in range(prediction.contexts):
        if r.slots[i] < 0:
            continue
        count = state.counts[row, i, r.slots[i]]
        if count[at] + count[at + 1]:
            seen += 1
            one = state.likelihoods[row, prediction.kind, i, count[at], count[at + 1], 0]
            r.zeros[1 + i], r.ones[1 + i] = ONE - one, one
    return seen


@_part
def learn_counts(
    state: MixerState, row: int, node: int, depth: int, bit: int, prediction: Prediction
) -> None:
    """Count the bit after a node's bits in every context, and how right the counts were."""
    r, at = state.rows[row], 2 * _node_of_half(node, depth)
    for i in range(prediction.contexts):
        count = state.counts[row, i, r.slots[i]]
        if count[at] + count[at + 1]:
            entry = state.likelihoods[row, prediction.kind, i, count[at], count[at + 1]]
            entry[1] = min(entry[1] + ONE, MOST_SEEN)
            one = entry[0] + (np.float32(bit) - entry[0]) / (entry[1] + COUNT_WORTH)
            entry[0] = clip(one, np.float32(0.0005), np.float32(0.9995))
        same, other = at + bit, at + 1 - bit
        count[same] = min(count[same] + 1, MOST_COUNT)
        if count[other] > 2:  # the newest bits tell more
            count[other] = min((count[other] + 3) // 2, 14)


@_part
def expected_bit(prediction: Prediction, node: int, depth: int) -> int:
    """The bit after a node's `depth` bits in the byte that the match predicts; -1 if they differ
    or there is no match."""
    byte = prediction.expected | 256
    if prediction.expected < 0 or byte >> (8 - depth) != node:
        return -1
    return byte >> (7 - depth) & 1


@_part
def _fill_regressions(
    state: MixerState, row: int, node: int, depth: int, prediction: Prediction
) -> None:
    """Set the odds by logistic distributions around the predictions.

    A node's bytes are an interval [begin, end), in widths of the distribution around its mean, and
    a one is the upper half; of a sample's first bit the lower. The odds of the upper half are
    e^half (1 + e^begin) / (1 + e^end), here without large exponentials.
    """
    r, size, is_negative = state.rows[row], 256 >> depth, False
    low = (node << (8 - depth)) - 256.5
    if prediction.kind != PIXELS:
        if prediction.is_low:
            low += 256.0 * prediction.high
        elif depth == 0:
            low, size, is_negative = -32768.5, 65536, True
        else:
            low = 256.0 * (low - 255.5 if low > 127.0 else low + 0.5) - 0.5
            size *= 256
    for i in range(REGRESSIONS):
        r.zeros[REGRESSION + i] = r.ones[REGRESSION + i] = ONE
        r.tails[REGRESSION + i] = ZERO
    for i in range(prediction.regressions):
        scale = 1.0 / prediction.widths[i]
        begin, half = (low - prediction.means[i]) * scale, 0.5 * size * scale
        end = begin + 2.0 * half
        tail = half + max(begin, 0.0) - max(end, 0.0)
        r.tails[REGRESSION + i] = -tail if is_negative else tail
        r.edges[2 * i], r.edges[2 * i + 1] = abs(begin), abs(end)
    _fill_sums(r.edges)
    for i in range(prediction.regressions):
        begin, end = r.edges[2 * i], r.edges[2 * i + 1]
        r.zeros[REGRESSION + i] = begin if is_negative else end
        r.ones[REGRESSION + i] = end if is_negative else begin


@_lane_kernel
def _fill_sums(edges: Floats) -> None:
    for i in range(EDGES):
        edges[i] = ONE + exp(-edges[i])

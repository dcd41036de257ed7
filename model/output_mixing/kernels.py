"""Output mixing: a binary decision at a time, with weights that are learned in the document.

A byte is coded as eight binary decisions, from its highest bit on. For each, every predictor gives
a probability; their logits are added up with weights that were learned by gradient within the
document (logistic mixing, as in PAQ; Mahoney, "Adaptive weighing of context models", 2005). So the
weights follow how each predictor did lately, and the network is one of them. Products of eight
probabilities are a distribution over bytes, whatever the predictors say.

Predictors:
    network     its own softmax
    contexts    counts of the bits after a hashed context, made a probability by how often such
                counts were right (an adaptive map)
    match       the byte that followed an earlier occurrence of the last bytes
    regression  logistic distributions around three predictions of a pixel or a sample

`predictors` finds contexts, matches and predictions. Where a byte's first bits have a probability
below LEAST_MASS, the network alone decides the rest, so that a whole distribution takes few of its
255 decisions.

The kernels of this file and of `bit_coder_kernel` are compiled together: see `numba_kernels`.

Shapes:
    B rows    n ids of a part of a row    V ids    other letters: see `state`
"""

from __future__ import annotations

import functools
import math
from functools import partial
from typing import Any

import numpy as np
import numpy.typing as npt

from bytelm.model.codec_features.state import BYTES, NO_PAYLOAD, PIXELS
from bytelm.model.numba_kernels import compiling, kernel, kernel_part
from bytelm.model.output_mixing import bit_coder_kernel
from bytelm.model.output_mixing.bit_coder_kernel import code_bit
from bytelm.model.output_mixing.state import (
    BIAS,
    BIT_SETS,
    CHOSEN,
    CONFIDENCE_LEVELS,
    CONTEXTS,
    FIRST_WEIGHTS,
    IDLE,
    INPUTS,
    KINDS,
    MATCH,
    MATCH_LEVELS,
    MOST_COUNT,
    NETWORK,
    PREDICTION,
    REGRESSION,
    REGRESSIONS,
    CoderState,
    MixerState,
    new_coder,
    new_mixers,
)

Floats = npt.NDArray[np.float32]
Doubles = npt.NDArray[np.float64]
Ints = npt.NDArray[np.int64]
Predictions = npt.NDArray[np.void]
Row = Any
"""A record of `state.MIXER_ROW`."""
Prediction = Any
"""A record of `state.PREDICTION`."""

LEAST_MASS = 2.0**-10
LEAST, MOST = 2.0**-20, 1 - 2.0**-20
"""Bounds of a probability."""
MOST_LOGIT = 16.0
TINY = 1e-300
BIAS_INPUT = 0.3
RATE, FIRST_RATE, RATE_BYTES = 0.003, 0.02, 2000.0
"""Learning rate of the weights, and what is added at first, half of it after so many bytes."""
COUNT_PRIOR, COUNT_WORTH, MOST_SEEN = 0.4, 8.0, 250.0
"""Adaptive maps: a count that stands for nothing seen, observations that it is worth, memory."""
_FACTOR = np.uint64(0x9E3779B97F4A7C15)  # 2^64 / golden ratio

_kernel = partial(kernel, parts=[bit_coder_kernel])
_sum_kernel = partial(kernel_part, fastmath={"contract", "reassoc", "nsz"})
"""For sums of products, which the compiler may add up in lanes."""

# --- what Python calls ---


@functools.cache
def compile_kernels() -> None:
    """Compile the kernels, or load them where they were compiled before."""
    with compiling():
        state, predictions = new_mixers(1, 16), np.zeros(1, PREDICTION)
        logits, ids = np.zeros((1, 264), np.float32), np.zeros(1, np.int64)
        idle = new_coder(IDLE, np.zeros(0, np.uint32))
        read_ids(state, 0, idle, logits, ids, predictions, np.ones(1, np.bool_), np.empty(1))
        code_ids(state, idle, ids, ids, logits, predictions)
        mix_rows(state, logits, predictions)
        push_ids(state, idle, ids, predictions)


@_kernel
def read_ids(
    state: MixerState,
    row: int,
    idle: CoderState,
    logits: Floats,
    ids: Ints,
    predictions: Predictions,
    opens_document: npt.NDArray[np.bool_],
    nats: Doubles,
) -> None:
    """Take a row's next ids, and write the nats of each.

    Args:
        idle: a coder.
        logits: [n, V] of the network.
        ids: [n].
        predictions: [n] of PREDICTION.
        opens_document: [n] whether a document begins with the id.
        nats: [n], written.
    """
    for index in range(len(ids)):
        if opens_document[index]:
            state.rows[row].is_used = 0
        id_, of_id = ids[index], logits[index]
        highest = _highest(of_id)
        total = _read_network(state, row, of_id, highest)
        nats[index] = math.log(total) + highest - of_id[id_]
        if predictions[index].kind != NO_PAYLOAD and id_ < 256:
            _, mass = _code_byte(state, row, idle, id_, predictions[index])
            nats[index] = -math.log(mass) - math.log(max(state.network[row, 1], TINY))


@_kernel
def code_ids(
    state: MixerState,
    coder: CoderState,
    rows: Ints,
    ids: Ints,
    logits: Floats,
    predictions: Predictions,
) -> None:
    """Code the next ids of some rows, and take them; a decoder writes them.

    Args:
        rows, ids: [R].
        logits: [B, V] of the network.
        predictions: [B] of PREDICTION.
    """
    for index in range(len(rows)):
        row = rows[index]
        of_row, id_ = logits[row], ids[index]
        highest = _highest(of_row)
        _read_network(state, row, of_row, highest)
        if not code_bit(coder, 1 if id_ < 256 else 0, state.network[row, 1]):
            ids[index] = _code_other_id(coder, of_row, highest, id_)
        elif predictions[row].kind == NO_PAYLOAD:
            ids[index] = _code_network_byte(state, row, coder, id_)
        else:
            ids[index], _ = _code_byte(state, row, coder, id_, predictions[row])


@_kernel
def mix_rows(state: MixerState, logits: Floats, predictions: Predictions) -> None:
    """Replace every row's logits of the next id [B, V] by mixed ones.

    Args:
        predictions: [B] of PREDICTION, of the next ids.
    """
    for row in range(len(logits)):
        of_row, tree = logits[row], state.tree[row]
        highest = _highest(of_row)
        total = _read_network(state, row, of_row, highest)
        if predictions[row].kind == NO_PAYLOAD:
            continue
        _begin_byte(state, row)
        tree[1] = 1.0
        for depth in range(8):
            for node in range(1 << depth, 2 << depth):
                one = _probability(state, row, node, depth, tree[node], predictions[row])
                tree[2 * node + 1] = tree[node] * one
                tree[2 * node] = tree[node] * (1.0 - one)
        total *= state.network[row, 1]  # that of bytes: other ids keep their probabilities
        for i in range(256):
            of_row[i] = math.log(max(tree[256 + i] * total, TINY)) + highest


@_kernel
def push_ids(state: MixerState, idle: CoderState, ids: Ints, predictions: Predictions) -> None:
    """Take the next id of every row, [B], after `mix_rows` with the same predictions."""
    for row in range(len(ids)):
        if predictions[row].kind != NO_PAYLOAD and ids[row] < 256:
            _code_byte(state, row, idle, ids[row], predictions[row])


# --- documents and the network ---


@kernel_part
def _begin_byte(state: MixerState, row: int) -> None:
    """Set counts, maps and weights to their first values at the first byte of a document."""
    if state.rows[row].is_used:
        return
    state.rows[row].is_used = 1
    state.counts[row] = 0
    for kind in range(KINDS):
        for i in range(INPUTS):
            state.weights[row, kind, :, i] = FIRST_WEIGHTS[kind, i]
    likelihoods = state.likelihoods[row]
    for zeros in range(MOST_COUNT + 1):
        for ones in range(MOST_COUNT + 1):
            one = (ones + COUNT_PRIOR) / (zeros + ones + 2 * COUNT_PRIOR)
            likelihoods[:, :, zeros, ones, 0] = one
            likelihoods[:, :, zeros, ones, 1] = _logit(one)
            likelihoods[:, :, zeros, ones, 2] = 0.0
    for level in range(MATCH_LEVELS):
        state.hits[row, level, 0] = min(0.75 + 0.02 * level, 0.99)
        state.hits[row, level, 1] = 0.0


@kernel_part
def _read_network(state: MixerState, row: int, logits: Floats, highest: float) -> float:
    """Fill a row's tree of the network's probabilities; returns the sum over all ids of the
    exponentials of their logits less the highest."""
    network, total = state.network[row], 0.0
    for i in range(len(logits)):
        exponential = math.exp(logits[i] - highest)
        total += exponential
        if i < 256:
            network[256 + i] = exponential
    for i in range(256, 512):
        network[i] /= total
    for node in range(255, 0, -1):
        network[node] = network[2 * node] + network[2 * node + 1]
    return total


@kernel_part
def _highest(logits: Floats) -> float:
    highest = -np.inf
    for i in range(len(logits)):
        highest = max(highest, logits[i])
    return highest


# --- mixing of a bit ---


@kernel_part
def _logit(probability: float) -> float:
    return math.log(probability / (1.0 - probability))


@kernel_part
def _clip(value: float, low: float, high: float) -> float:
    """The nearest value in [low, high]."""
    return min(max(value, low), high)


@kernel_part
def _probability(
    state: MixerState, row: int, node: int, depth: int, mass: float, prediction: Prediction
) -> float:
    """Probability that the bit after a node's bits is one.

    Args:
        depth: how many bits the node has.
        mass: probability of the node's bits.
    """
    of_network = _network_probability(state, row, node)
    if mass < LEAST_MASS:
        return of_network
    _fill_inputs(state, row, node, depth, _logit(of_network), prediction)
    r, total = state.rows[row], 0.0
    for i in range(CHOSEN):
        weights = state.weights[row, prediction.kind, r.sets[depth, i]]
        logit = _clip(_dot(weights, r.inputs[depth]), -MOST_LOGIT, MOST_LOGIT)
        r.mixed[depth, i] = 1.0 / (1.0 + math.exp(-logit))
        total += logit
    return _clip(1.0 / (1.0 + math.exp(-total / CHOSEN)), LEAST, MOST)


@kernel_part
def _network_probability(state: MixerState, row: int, node: int) -> float:
    """The same by the network alone."""
    zero, one = state.network[row, 2 * node], state.network[row, 2 * node + 1]
    return _clip(one / (zero + one), LEAST, MOST) if zero + one > 0.0 else 0.5


@_sum_kernel
def _dot(a: Doubles, b: Doubles) -> float:
    total = 0.0
    for i in range(len(a)):
        total += a[i] * b[i]
    return total


@kernel_part
def _fill_inputs(
    state: MixerState, row: int, node: int, depth: int, of_network: float, prediction: Prediction
) -> None:
    """Set the logits of all predictors for the bit after a node's bits, and choose the weights."""
    r, kind = state.rows[row], prediction.kind
    inputs, sets = r.inputs[depth], r.sets[depth]
    inputs[NETWORK], inputs[BIAS] = of_network, BIAS_INPUT
    seen = _fill_contexts(state, row, node, depth, prediction)
    expected = _expected_bit(prediction, node, depth)
    level = prediction.level if expected >= 0 else 0
    inputs[MATCH] = 0.0
    if expected >= 0:
        sure = _logit(state.hits[row, level, 0])
        inputs[MATCH] = sure if expected else -sure
    for i in range(REGRESSIONS):
        inputs[REGRESSION + i] = 0.0
        if kind != BYTES:
            inputs[REGRESSION + i] = _logit(_regression(prediction, i, node, depth))
    confidence = min(int(0.75 * abs(of_network)), CONFIDENCE_LEVELS - 1)
    sets[0] = depth + 8 * prediction.is_low
    sets[1] = BIT_SETS + level
    sets[2] = BIT_SETS + MATCH_LEVELS + confidence * (CONTEXTS + 1) + seen


@kernel_part
def _fill_contexts(
    state: MixerState, row: int, node: int, depth: int, prediction: Prediction
) -> int:
    """Set the logits of the contexts; returns how many of them were seen before."""
    keys, inputs = state.rows[row].keys[depth], state.rows[row].inputs[depth]
    last, seen = state.counts.shape[2] - 1, 0
    for i in range(prediction.contexts):
        key = (prediction.hashes[i] ^ np.uint64(node)) * _FACTOR
        key ^= key >> np.uint64(29)
        count = state.counts[row, i, _slot(key, last)]
        keys[i], inputs[1 + i] = key, 0.0
        if count[2] == _check(key):
            seen += 1
            inputs[1 + i] = state.likelihoods[row, prediction.kind, i, count[0], count[1], 1]
    for i in range(prediction.contexts, CONTEXTS):
        inputs[1 + i] = 0.0
    return seen


@kernel_part
def _slot(key: np.uint64, last: int) -> int:
    """Where the counts of a hashed context and bits stand, from 0 to `last`."""
    return int(np.int64(key >> np.uint64(40))) & last


@kernel_part
def _check(key: np.uint64) -> int:
    """A number above 0 by which most other keys of the same slot are told apart."""
    return int(np.int64(key & np.uint64(255))) | 1


@kernel_part
def _expected_bit(prediction: Prediction, node: int, depth: int) -> int:
    """The bit after a node's `depth` bits in the byte that the match predicts; -1 if they differ
    or there is no match."""
    byte = prediction.expected | 256
    if prediction.expected < 0 or byte >> (8 - depth) != node:
        return -1
    return byte >> (7 - depth) & 1


@kernel_part
def _regression(prediction: Prediction, index: int, node: int, depth: int) -> float:
    """Probability of a one after a node's bits, by a logistic distribution around a prediction."""
    size = 256 >> depth  # of the node's bytes
    low = (node << (8 - depth)) - 256
    mean, width = prediction.means[index], prediction.widths[index]
    if prediction.kind == PIXELS:
        return _upper_half(low - 0.5, size, mean, width)
    if prediction.is_low:
        return _upper_half(256.0 * prediction.high + low - 0.5, size, mean, width)
    if depth == 0:  # the sign: a one is the lower half
        return 1.0 - _upper_half(-32768.5, 65536, mean, width)
    signed = low - 256 if low > 127 else low
    return _upper_half(256.0 * signed - 0.5, 256 * size, mean, width)


@kernel_part
def _upper_half(low: float, size: int, mean: float, width: float) -> float:
    """Share of the upper half in the mass that a logistic distribution has in [low, low + size]."""
    begin, end = (low - mean) / width, (low + size - mean) / width
    middle = 0.5 * (begin + end)
    if begin > 0.0:  # by the upper tails, whose differences are exact there
        upper = _sigmoid(-middle) - _sigmoid(-end)
        total = _sigmoid(-begin) - _sigmoid(-end)
    else:
        upper = _sigmoid(end) - _sigmoid(middle)
        total = _sigmoid(end) - _sigmoid(begin)
    if total < TINY:
        return LEAST if begin > 0.0 else MOST
    return _clip(upper / total, LEAST, MOST)


@kernel_part
def _sigmoid(logit: float) -> float:
    if logit >= 0.0:
        return 1.0 / (1.0 + math.exp(-logit))
    exponential = math.exp(logit)
    return exponential / (1.0 + exponential)


@kernel_part
def _code_byte(
    state: MixerState, row: int, coder: CoderState, byte: int, prediction: Prediction
) -> tuple[int, float]:
    """Code the next byte and learn from its bits, all at once; returns it and its probability.

    What a byte's first bits teach does not change the odds of its last ones, so that the whole
    distribution over bytes can be made before any of them is known.
    """
    _begin_byte(state, row)
    mass, mixed, node = 1.0, 0, 1
    for depth in range(8):
        if mass >= LEAST_MASS:
            mixed += 1
        one = _probability(state, row, node, depth, mass, prediction)
        bit = code_bit(coder, byte >> (7 - depth) & 1, one)
        mass *= one if bit else 1.0 - one
        node = 2 * node + bit
    for depth in range(8):
        before, bit = node >> (8 - depth), node >> (7 - depth) & 1
        if depth < mixed:
            _learn_weights(state, row, depth, bit, prediction)
        else:
            _fill_contexts(state, row, before, depth, prediction)
        _learn_counts(state, row, depth, bit, prediction)
        expected = _expected_bit(prediction, before, depth)
        if expected >= 0:
            hits = state.hits[row, prediction.level]
            hits[1] = min(hits[1] + 1.0, MOST_SEEN)
            hits[0] += ((1.0 if expected == bit else 0.0) - hits[0]) / (hits[1] + 1.5)
            hits[0] = _clip(hits[0], 0.002, 0.9998)
    return node - 256, mass


@kernel_part
def _learn_weights(
    state: MixerState, row: int, depth: int, bit: int, prediction: Prediction
) -> None:
    """Move the weights of a bit along the gradient of its nats."""
    r = state.rows[row]
    rate = RATE + FIRST_RATE / (1.0 + prediction.size / RATE_BYTES)
    for i in range(CHOSEN):
        weights = state.weights[row, prediction.kind, r.sets[depth, i]]
        step = rate * (bit - r.mixed[depth, i])
        for j in range(INPUTS):
            weights[j] += step * r.inputs[depth, j]


@kernel_part
def _learn_counts(
    state: MixerState, row: int, depth: int, bit: int, prediction: Prediction
) -> None:
    """Count a bit in every context, and how right the counts before it were."""
    keys, last = state.rows[row].keys[depth], state.counts.shape[2] - 1
    for i in range(prediction.contexts):
        count = state.counts[row, i, _slot(keys[i], last)]
        if count[2] == _check(keys[i]):
            entry = state.likelihoods[row, prediction.kind, i, count[0], count[1]]
            entry[2] = min(entry[2] + 1.0, MOST_SEEN)
            entry[0] += (bit - entry[0]) / (entry[2] + COUNT_WORTH)
            entry[0] = _clip(entry[0], 0.0005, 0.9995)
            entry[1] = _logit(entry[0])
        else:
            count[0], count[1], count[2] = 0, 0, _check(keys[i])
        count[bit] = min(count[bit] + 1, MOST_COUNT)
        if count[1 - bit] > 2:  # the newest bits tell more
            count[1 - bit] = min((count[1 - bit] + 3) // 2, 14)


# --- without mixing ---


@kernel_part
def _code_network_byte(state: MixerState, row: int, coder: CoderState, byte: int) -> int:
    """Code a byte under the network's own distribution; returns it."""
    node = 1
    for depth in range(8):
        one = _network_probability(state, row, node)
        node = 2 * node + code_bit(coder, byte >> (7 - depth) & 1, one)
    return node - 256


@kernel_part
def _code_other_id(coder: CoderState, logits: Floats, highest: float, id_: int) -> int:
    """Code an id that is no byte under the network's own distribution; returns it."""
    for other in range(256, len(logits) - 1):
        rest = 0.0
        for i in range(other, len(logits)):
            rest += math.exp(logits[i] - highest)
        own = math.exp(logits[other] - highest)
        if code_bit(coder, 1 if id_ == other else 0, own / rest if rest > 0.0 else 0.5):
            return other
    return len(logits) - 1

"""Output mixing: a binary decision at a time, with weights that are learned in the document.

A byte is coded as eight binary decisions, from its highest bit on. For each, every predictor gives
a probability; their logits are added up with weights that were learned by gradient within the
document (logistic mixing, as in PAQ; Mahoney, "Adaptive weighing of context models", 2005). So the
weights follow how each predictor did lately, and the network is one of them. Several sets of
weights do so side by side, and a final mixer adds up their logits with weights that it learns, too.
Of texts an adaptive map refines the sum: how often a one came at such a logit after these bytes.
Products of eight probabilities are a distribution over bytes, whatever the predictors say.

Predictors:
    network     its own softmax
    contexts    counts of the bits after a hashed context, made a probability by how often such
                counts were right (an adaptive map)
    match       the byte that followed an earlier occurrence of the last bytes
    regression  logistic distributions around some predictions of a pixel or a sample

`predictors` finds contexts, matches and predictions, `bit_inputs_kernel` makes them logits of a
bit. Every bit is learned before the next one is predicted.

Numbers are float32, and sums over them run in lanes, in the same order wherever the same kernel
runs. The kernels here are compiled with the parts in other files: see `numba_kernels`.

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

from bytelm.model import float_kernel
from bytelm.model.codec_features.state import BYTES, NO_PAYLOAD
from bytelm.model.float_kernel import clip, exp, log, sigmoid
from bytelm.model.numba_kernels import compiling, kernel, kernel_part
from bytelm.model.output_mixing import bit_coder_kernel, bit_inputs_kernel, state
from bytelm.model.output_mixing.bit_coder_kernel import code_bit
from bytelm.model.output_mixing.bit_inputs_kernel import (
    LEAST,
    MOST,
    expected_bit,
    fill_inputs,
    find_slots,
    learn_counts,
)
from bytelm.model.output_mixing.state import (
    BIAS,
    CHOSEN,
    CHOSEN_SETS,
    ENDED,
    FIRST_WEIGHTS,
    FRESH,
    IDLE,
    INPUTS,
    KINDS,
    MATCH_LEVELS,
    MIXTURE,
    MOST_COUNT,
    MOST_REFINED,
    NETWORK,
    NETWORK_SHARES,
    NODES,
    OPEN,
    PREDICTION,
    REFINED_LEVELS,
    WIDTH,
    CoderState,
    MixerState,
    new_coder,
    new_mixers,
)

Floats = npt.NDArray[np.float32]
Doubles = npt.NDArray[np.float64]
Ints = npt.NDArray[np.int64]
Flags = npt.NDArray[np.bool_]
Predictions = npt.NDArray[np.void]
Prediction = Any
"""A record of `state.PREDICTION`."""

LEAST_MASS = 2.0**-10
"""Probability of the first bits of a pixel's or a sample's byte below which the network alone
decides the rest: so far from all predictions they say nothing."""
LEAST_DRAWN = 2.0**-8
"""The same where all bytes are mixed, to draw one of them."""
LEAST_SHARE = np.float32(2.0**-100)
"""Probability of a byte below which its logit stays the same."""
MOST_LOGIT = np.float32(16.0)
TEXT_RATE, TEXT_BYTES = 0.0015, 4000.0
MEDIA_RATE, MEDIA_BYTES = 0.003, 2000.0
FIRST_RATE = 0.02
"""Learning rates of the weights, and what is added at first, half of it after so many bytes."""
FINAL_TEXT_RATE, FINAL_TEXT_BYTES = 0.0005, 20000.0
FINAL_RATE = 0.002
"""Learning rates of the final mixer; of texts it is what is added at first, as above."""
COUNT_PRIOR = 0.4
"""Adaptive maps: a count that stands for nothing seen."""
BIAS_INPUT = 0.3
REFINED_SHARE, REFINED_RATE = np.float32(0.6), np.float32(0.02)
"""Share of what is refined in a probability, and the rate at which it is learned."""
LEVELS_OF_LOGIT = np.float32((REFINED_LEVELS - 1) / (2 * MOST_REFINED))
TREE = 512
"""Numbers of a tree of a byte, see `MixerState.network`."""
MOST_HITS = 250.0
"""Memory of how often matches were right."""

_FACTOR = np.uint64(0x9E3779B97F4A7C15)  # 2^64 / golden ratio
_kernel = partial(kernel, parts=[bit_coder_kernel, bit_inputs_kernel, float_kernel, state])
_part = partial(kernel_part, is_inlined=True)
_lane_kernel = partial(kernel_part, fastmath={"contract", "reassoc", "nsz", "nnan"})
"""For loops that the compiler may run in lanes, and sums that it may add up in them."""

# --- what Python calls ---


@functools.cache
def compile_kernels() -> None:
    """Compile the kernels, or load them where they were compiled before."""
    with compiling():
        state, predictions = new_mixers(1, 16), np.zeros(1, PREDICTION)
        logits, ids = np.zeros((1, 264), np.float32), np.zeros(1, np.int64)
        idle = new_coder(IDLE, np.zeros(0, np.uint32))
        flags = np.ones(1, np.bool_)
        read_ids(state, 0, idle, logits, ids, predictions, flags, np.empty(1))
        code_ids(state, idle, ids, ids, logits, predictions)
        two, tree = np.zeros((1, 2), np.int64), np.empty(TREE, np.float32)
        mix_logits(state, ids, two, logits, predictions, flags, tree)


@_kernel
def read_ids(
    state: MixerState,
    row: int,
    idle: CoderState,
    logits: Floats,
    ids: Ints,
    predictions: Predictions,
    opens_document: Flags,
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
        if opens_document[index] and state.rows[row].phase == OPEN:
            state.rows[row].phase = ENDED
        id_, of_id = ids[index], logits[index]
        highest = _highest(of_id)
        total = _read_network(state, row, of_id, highest)
        nats[index] = math.log(total) + highest - of_id[id_]
        if predictions[index].kind != NO_PAYLOAD and id_ < 256:
            _, mass = _code_byte(state, row, idle, id_, predictions[index])
            nats[index] = -math.log(mass * state.network[row, 1] / total)


@_kernel
def code_ids(
    state: MixerState,
    coder: CoderState,
    rows: Ints,
    ids: Ints,
    logits: Floats,
    predictions: Predictions,
) -> None:
    """Code ids of rows, one after another, and take them; a decoder writes them.

    Args:
        rows: [n] whose id each is.
        ids: [n].
        logits: [n, V] of the network.
        predictions: [n] of PREDICTION.
    """
    for index in range(len(rows)):
        row, of_id, id_ = rows[index], logits[index], ids[index]
        highest = _highest(of_id)
        total = _read_network(state, row, of_id, highest)
        if not code_bit(coder, 1 if id_ < 256 else 0, state.network[row, 1] / total):
            ids[index] = _code_other_id(coder, of_id, highest, id_)
        elif predictions[index].kind == NO_PAYLOAD:
            ids[index] = _code_network_byte(state, row, coder, id_)
        else:
            ids[index], _ = _code_byte(state, row, coder, id_, predictions[index])


@_kernel
def mix_logits(
    state: MixerState,
    rows: Ints,
    bytes_before: Ints,
    logits: Floats,
    predictions: Predictions,
    is_mixed: Flags,
    tree: Floats,
) -> None:
    """Make the network's logits of rows' next ids those of the mixture, and learn nothing.

    Args:
        rows: [n] that learned for each id; some ids may have the same.
        bytes_before: [n, 2], the last but one and the last.
        logits: [n, V] of the network; those of bytes are written.
        predictions: [n] of PREDICTION.
        is_mixed: [n] whether to do so.
        tree: [TREE] scratch.
    """
    for index in range(len(rows)):
        row, of_id, prediction = rows[index], logits[index], predictions[index]
        r = state.rows[row]
        r.byte_before, r.byte = bytes_before[index, 0], bytes_before[index, 1]
        if prediction.kind != NO_PAYLOAD and is_mixed[index]:
            highest = _highest(of_id)
            _read_network(state, row, of_id, highest)
            _begin_byte(state, row)
            _fill_tree(state, row, prediction, tree)
            _write_logits(tree, highest + log(state.network[row, 1]), of_id)


# --- documents and the network ---


@_part
def _begin_byte(state: MixerState, row: int) -> None:
    """Set counts, maps and weights to their first values at the first byte of a document."""
    r = state.rows[row]
    if r.phase == OPEN:
        return
    if r.phase != FRESH:
        state.counts[row] = 0
        state.refinements[row] = np.float32(0.0)
    r.phase, r.byte, r.byte_before = OPEN, 0, 0
    r.zeros[:] = r.ones[:] = 1.0
    r.tails[:] = r.edges[:] = 0.0
    r.tails[BIAS] = BIAS_INPUT
    for kind in range(KINDS):
        for i in range(INPUTS):
            state.weights[row, kind, :, i] = FIRST_WEIGHTS[kind, i]
        state.final_weights[row, kind] = np.float32(0.0)
        share = NETWORK_SHARES[kind]
        state.final_weights[row, kind, :NODES, :CHOSEN] = (1.0 - share) / CHOSEN_SETS[kind]
        state.final_weights[row, kind, :NODES, CHOSEN] = share
    likelihoods = state.likelihoods[row]
    for zeros in range(MOST_COUNT + 1):
        for ones in range(MOST_COUNT + 1):
            one = (ones + COUNT_PRIOR) / (zeros + ones + 2 * COUNT_PRIOR)
            likelihoods[:, :, zeros, ones, 0] = one
            likelihoods[:, :, zeros, ones, 1] = 0.0
    for level in range(MATCH_LEVELS):
        state.hits[row, level, 0] = min(0.75 + 0.02 * level, 0.99)
        state.hits[row, level, 1] = 0.0


@_lane_kernel
def _read_network(state: MixerState, row: int, logits: Floats, highest: np.float32) -> np.float32:
    """Fill a row's tree of the network; returns the sum over all ids in its unit."""
    network, others = state.network[row], np.float32(0.0)
    for i in range(256):
        network[256 + i] = exp(logits[i] - highest)
    for i in range(256, len(logits)):
        others += exp(logits[i] - highest)
    for node in range(255, 0, -1):
        network[node] = network[2 * node] + network[2 * node + 1]
    return network[1] + others


@_lane_kernel
def _highest(logits: Floats) -> np.float32:
    highest = np.float32(-np.inf)
    for i in range(len(logits)):
        highest = max(highest, logits[i])
    return highest


@_part
def _network_probability(state: MixerState, row: int, node: int) -> np.float32:
    """The network's probability that the bit after a node's bits is one."""
    zero, one = state.network[row, 2 * node], state.network[row, 2 * node + 1]
    return clip(one / (zero + one), LEAST, MOST)


# --- mixing of a bit ---


@_part
def _probability(
    state: MixerState, row: int, node: int, depth: int, prediction: Prediction
) -> np.float32:
    """Probability that the bit after a node's `depth` bits is one."""
    fill_inputs(state, row, node, depth, prediction)
    r, logits = state.rows[row], state.rows[row].logits
    final = state.final_weights[row, prediction.kind]
    of_node, of_byte = final[r.final_sets[0]], final[r.final_sets[1]]
    logits[CHOSEN] = r.inputs[NETWORK]
    total = (of_node[CHOSEN] + of_byte[CHOSEN]) * logits[CHOSEN]
    for i in range(CHOSEN_SETS[prediction.kind]):
        weights = state.weights[row, prediction.kind, r.sets[i]]
        logits[i] = clip(_dot(weights, r.inputs), -MOST_LOGIT, MOST_LOGIT)
        total += (of_node[i] + of_byte[i]) * logits[i]
    logits[MIXTURE] = clip(total, -MOST_LOGIT, MOST_LOGIT)
    _fill_sigmoids(logits, r.mixed)
    one = r.mixed[MIXTURE]
    if prediction.kind == BYTES:
        one += REFINED_SHARE * (_refined(state, row, node) - one)
    return clip(one, LEAST, MOST)


@_part
def _refined(state: MixerState, row: int, node: int) -> np.float32:
    """The mixture's probability, as often as a bit was one at its logit and the last two bytes."""
    r = state.rows[row]
    key = np.uint64((r.byte_before << 16) | (r.byte << 8) | node) * _FACTOR
    r.refinement = np.int64(key >> np.uint64(40)) & (state.refinements.shape[1] - 1)
    most = np.float32(MOST_REFINED)
    place = (clip(r.logits[MIXTURE], -most, most) + most) * LEVELS_OF_LOGIT
    r.level = min(int(place), REFINED_LEVELS - 2)
    r.above = place - np.float32(r.level)
    at = state.refinements[row, r.refinement]
    return r.mixed[MIXTURE] + at[r.level] + r.above * (at[r.level + 1] - at[r.level])


@_lane_kernel
def _dot(a: Floats, b: Floats) -> np.float32:
    total = np.float32(0.0)
    for i in range(WIDTH):
        total += a[i] * b[i]
    return total


@_lane_kernel
def _fill_sigmoids(logits: Floats, probabilities: Floats) -> None:
    for i in range(MIXTURE + 1):
        probabilities[i] = sigmoid(logits[i])


@_part
def _code_byte(
    state: MixerState, row: int, coder: CoderState, byte: int, prediction: Prediction
) -> tuple[int, float]:
    """Code the next byte and learn from each of its bits; returns it and its probability."""
    _begin_byte(state, row)
    rate, final_rate = _learning_rates(prediction)
    mass, node = 1.0, 1
    for depth in range(8):
        if depth % 4 == 0:
            find_slots(state, row, node, prediction, True)
        is_mixed = prediction.kind == BYTES or mass >= LEAST_MASS
        if is_mixed:
            one = float(_probability(state, row, node, depth, prediction))
        else:
            one = float(_network_probability(state, row, node))
        bit = code_bit(coder, byte >> (7 - depth) & 1, one)
        mass *= one if bit else 1.0 - one
        if is_mixed:
            _learn_weights(state, row, bit, prediction.kind, rate, final_rate)
        learn_counts(state, row, node, depth, bit, prediction)
        _learn_match(state, row, node, depth, bit, prediction)
        node = 2 * node + bit
    r = state.rows[row]
    r.byte_before, r.byte = r.byte, node - 256
    return node - 256, mass


@_part
def _learning_rates(prediction: Prediction) -> tuple[np.float32, np.float32]:
    """Learning rates of the weights and of the final mixer for the bits of a byte."""
    size, final_rate = prediction.size, FINAL_RATE
    rate = MEDIA_RATE + FIRST_RATE / (1.0 + size / MEDIA_BYTES)
    if prediction.kind == BYTES:
        rate = TEXT_RATE + FIRST_RATE / (1.0 + size / TEXT_BYTES)
        final_rate = FINAL_TEXT_RATE + FINAL_RATE / (1.0 + size / FINAL_TEXT_BYTES)
    return np.float32(rate), np.float32(final_rate)


@_part
def _learn_match(
    state: MixerState, row: int, node: int, depth: int, bit: int, prediction: Prediction
) -> None:
    """Count whether the match predicted a bit, if it did predict one."""
    expected = expected_bit(prediction, node, depth)
    if expected >= 0:
        hits = state.hits[row, prediction.level]
        hits[1] = min(hits[1] + 1.0, MOST_HITS)
        hits[0] += ((1.0 if expected == bit else 0.0) - hits[0]) / (hits[1] + 1.5)
        hits[0] = min(max(hits[0], 0.002), 0.9998)


@_part
def _learn_weights(
    state: MixerState, row: int, bit: int, kind: int, rate: np.float32, final_rate: np.float32
) -> None:
    """Move the weights of a bit along the gradients of its nats, and refinements to the bit."""
    r = state.rows[row]
    final, target = state.final_weights[row, kind], np.float32(bit)
    of_node, of_byte = final[r.final_sets[0]], final[r.final_sets[1]]
    final_step = final_rate * (target - r.mixed[MIXTURE])
    of_node[CHOSEN] += final_step * r.logits[CHOSEN]
    of_byte[CHOSEN] += final_step * r.logits[CHOSEN]
    for i in range(CHOSEN_SETS[kind]):
        of_node[i] += final_step * r.logits[i]
        of_byte[i] += final_step * r.logits[i]
        _add(state.weights[row, kind, r.sets[i]], rate * (target - r.mixed[i]), r.inputs)
    if kind == BYTES:
        at, below = state.refinements[row, r.refinement], np.float32(1.0) - r.above
        at[r.level] += REFINED_RATE * below * (target - _at_level(r.level) - at[r.level])
        above = target - _at_level(r.level + 1) - at[r.level + 1]
        at[r.level + 1] += REFINED_RATE * r.above * above


@_part
def _at_level(level: int) -> np.float32:
    """The probability whose logit a level of refinement stands for."""
    return sigmoid(np.float32(level) / LEVELS_OF_LOGIT - np.float32(MOST_REFINED))


@_lane_kernel
def _add(weights: Floats, step: np.float32, inputs: Floats) -> None:
    for i in range(len(weights)):
        weights[i] += step * inputs[i]


# --- the mixture's distribution ---


@_part
def _fill_tree(state: MixerState, row: int, prediction: Prediction, tree: Floats) -> None:
    """Fill the tree [TREE] of the next byte under the mixture; node 1 has the probability 1."""
    tree[1] = 1.0
    _fill_half(state, row, 1, prediction, tree)
    for node in range(16, 32):
        _fill_half(state, row, node, prediction, tree)


@_part
def _fill_half(
    state: MixerState, row: int, first: int, prediction: Prediction, tree: Floats
) -> None:
    """Fill the tree for the half of a byte that begins after a node's bits."""
    if tree[first] >= LEAST_DRAWN:
        find_slots(state, row, first, prediction, False)
    first_depth = 0 if first == 1 else 4
    for depth in range(4):
        for node in range(first << depth, (first + 1) << depth):
            _divide(state, row, node, first_depth + depth, prediction, tree)


@_part
def _divide(
    state: MixerState, row: int, node: int, depth: int, prediction: Prediction, tree: Floats
) -> None:
    """Divide a node's probability by the next bit; by the network alone where it is small."""
    if tree[node] >= LEAST_DRAWN:
        one = _probability(state, row, node, depth, prediction)
    else:
        one = _network_probability(state, row, node)
    tree[2 * node + 1] = one * tree[node]
    tree[2 * node] = tree[node] - tree[2 * node + 1]


@_lane_kernel
def _write_logits(tree: Floats, of_bytes: np.float32, logits: Floats) -> None:
    """Write the logits of bytes, whose sum of exponentials is e^of_bytes."""
    for i in range(256):
        logits[i] = of_bytes + log(max(tree[256 + i], LEAST_SHARE))


# --- without mixing ---


@_part
def _code_network_byte(state: MixerState, row: int, coder: CoderState, byte: int) -> int:
    """Code a byte under the network's own distribution; returns it."""
    node = 1
    for depth in range(8):
        one = float(_network_probability(state, row, node))
        node = 2 * node + code_bit(coder, byte >> (7 - depth) & 1, one)
    return node - 256


@_part
def _code_other_id(coder: CoderState, logits: Floats, highest: np.float32, id_: int) -> int:
    """Code an id that is no byte under the network's own distribution; returns it."""
    for other in range(256, len(logits) - 1):
        rest = 0.0
        for i in range(other, len(logits)):
            rest += math.exp(logits[i] - highest)
        own = math.exp(logits[other] - highest)
        if code_bit(coder, 1 if id_ == other else 0, own / rest if rest > 0.0 else 0.5):
            return other
    return len(logits) - 1

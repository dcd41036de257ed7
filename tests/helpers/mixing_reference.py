"""Output mixing in plain Python and float64, decision by decision: what `kernels` computes."""

from __future__ import annotations

import math
from typing import Any

import numpy as np

from bytelm.model.codec_features.state import BYTES, NO_PAYLOAD, PIXELS, SAMPLES
from bytelm.model.output_mixing.bit_inputs_kernel import COUNT_WORTH, MOST_SEEN
from bytelm.model.output_mixing.kernels import (
    BIAS_INPUT,
    COUNT_PRIOR,
    FINAL_RATE,
    FINAL_TEXT_BYTES,
    FINAL_TEXT_RATE,
    FIRST_RATE,
    LEAST_MASS,
    MEDIA_BYTES,
    MEDIA_RATE,
    MOST_HITS,
    REFINED_RATE,
    REFINED_SHARE,
    TEXT_BYTES,
    TEXT_RATE,
)
from bytelm.model.output_mixing.state import (
    BYTE_SET,
    CHOSEN,
    CHOSEN_SETS,
    CONFIDENCE_LEVELS,
    CONFIDENCE_SET,
    CONTEXTS,
    FINAL_SETS,
    FIRST_WEIGHTS,
    INPUTS,
    KINDS,
    MATCH_LEVELS,
    MATCH_SET,
    MIXTURE,
    MOST_COUNT,
    NETWORK_SHARES,
    NODE_SET,
    NODES,
    REGRESSIONS,
    SETS,
    WORD_SET,
)

Numbers = np.ndarray
LEAST = 2.0**-20
MASK, FACTOR = (1 << 64) - 1, 0x9E3779B97F4A7C15


def clip(value: float, low: float, high: float) -> float:
    return min(max(value, low), high)


def logit(zeros: float, ones: float) -> float:
    """The logit of odds, at most that of 2^20."""
    return clip(math.log(ones / zeros), math.log(LEAST), -math.log(LEAST))


def sigmoid(x: float) -> float:
    return 1.0 / (1.0 + math.exp(-x))


class ReferenceMixer:
    """A document's mixer; `slots` and `refined` as in the tables of counts and of refinements."""

    def __init__(self, slots: int, refined: int) -> None:
        self._slots, self._refined = slots, refined
        self._counts: dict[tuple[int, int], tuple[int, dict[int, list[int]]]] = {}
        """By context and slot: the check of a hash, and by node the zeros and ones after it."""
        self._maps: dict[tuple[int, ...], list[float]] = {}
        """By kind, context and counts: the probability of a one, and how often it was seen."""
        self._hits = [[min(0.75 + 0.02 * level, 0.99), 0.0] for level in range(MATCH_LEVELS)]
        self._weights = np.repeat(FIRST_WEIGHTS[:, None, :], SETS, axis=1)
        self._final_weights = np.zeros((KINDS, FINAL_SETS, MIXTURE))
        of_sets = (1 - NETWORK_SHARES) / CHOSEN_SETS
        self._final_weights[:, :NODES, :CHOSEN] = of_sets[:, None, None]
        self._final_weights[:, :NODES, CHOSEN] = NETWORK_SHARES[:, None]
        self._refinements: dict[tuple[int, int], float] = {}
        """By context and level of a logit."""
        self._bytes = [0, 0]
        """The last byte, and the one before it."""
        self.learns = True

    def nats(self, logits: Numbers, id_: int, prediction: Any) -> float:
        """Nats of the next id under the mixture, which is then learned from if it `learns`."""
        p = np.exp(logits.astype(np.float64) - logits.max())
        p /= p.sum()
        if prediction["kind"] == NO_PAYLOAD or id_ > 255:
            return -math.log(p[id_])
        mass = 1.0
        for depth in range(8):
            node, bit = (256 | id_) >> (8 - depth), id_ >> (7 - depth) & 1
            size, low = 128 >> depth, (node << (8 - depth)) - 256
            zeros, ones = p[low : low + size].sum(), p[low + size : low + 2 * size].sum()
            one = clip(ones / (zeros + ones), LEAST, 1 - LEAST)
            if prediction["kind"] == BYTES or mass >= LEAST_MASS:
                one = self._mix(node, depth, bit, logit(zeros, ones), prediction)
            mass *= one if bit else 1.0 - one
            if self.learns:
                self._learn(node, depth, bit, prediction)
        if self.learns:
            self._bytes = [id_, self._bytes[0]]
        return -math.log(mass * p[:256].sum())

    def _mix(self, node: int, depth: int, bit: int, of_network: float, prediction: Any) -> float:
        """The probability of a one; the weights learn the bit."""
        kind = int(prediction["kind"])
        inputs, sets = self._inputs(node, depth, of_network, prediction)
        mixed = np.clip(self._weights[kind, sets] @ inputs, -16, 16)
        of_bit = depth + 8 * prediction["is_low"] if kind == SAMPLES else node
        final_sets = [of_bit, NODES + 8 * self._bytes[0] + depth]
        final = self._final_weights[kind, final_sets].sum(0)
        final_inputs = np.array([*mixed, *[0.0] * (CHOSEN - len(sets)), of_network])
        total = clip(final @ final_inputs, -16, 16)
        one = mean = sigmoid(total)
        if kind == BYTES:
            one += float(REFINED_SHARE) * (self._refine(total, node, bit) - one)
        if not self.learns:
            return clip(one, LEAST, 1 - LEAST)
        size = prediction["size"]
        rate = MEDIA_RATE + FIRST_RATE / (1 + size / MEDIA_BYTES)
        final_rate = FINAL_RATE
        if kind == BYTES:
            rate = TEXT_RATE + FIRST_RATE / (1 + size / TEXT_BYTES)
            final_rate = FINAL_TEXT_RATE + FINAL_RATE / (1 + size / FINAL_TEXT_BYTES)
        self._final_weights[kind, final_sets] += final_rate * (bit - mean) * final_inputs
        for chosen, x in zip(sets, mixed, strict=True):
            self._weights[kind, chosen] += rate * (bit - sigmoid(x)) * inputs
        return clip(one, LEAST, 1 - LEAST)

    def _refine(self, total: float, node: int, bit: int) -> float:
        """The probability of a one by how often it came at such a logit, which learns the bit."""
        key = ((self._bytes[1] << 16 | self._bytes[0] << 8 | node) * FACTOR) & MASK
        context = (key >> 40) & (self._refined - 1)
        place = (clip(total, -8, 8) + 8) * 2
        level = min(int(place), 31)
        refined = sigmoid(total)
        for at, share in ((level, level + 1 - place), (level + 1, place - level)):
            refinement = self._refinements.get((context, at), 0.0)
            refined += share * refinement
            if self.learns:
                error = bit - sigmoid(at / 2 - 8) - refinement
                learned = refinement + float(REFINED_RATE) * share * error
                self._refinements[context, at] = learned
        return refined

    def _inputs(
        self, node: int, depth: int, of_network: float, prediction: Any
    ) -> tuple[Numbers, list[int]]:
        """Logits of the predictors, and the numbers of the chosen sets of weights."""
        of_contexts, seen = [0.0] * CONTEXTS, 0
        for i in range(prediction["contexts"]):
            counts = self._found(i, node, depth, prediction)
            if sum(counts):
                seen += 1
                one = self._map(i, counts, prediction)[0]
                of_contexts[i] = logit(1 - one, one)
        expected = expected_bit(prediction, node, depth)
        level = prediction["level"] if expected >= 0 else 0
        hit = self._hits[level][0]
        of_match = 0.0 if expected < 0 else logit(1 - hit, hit) * (1 if expected else -1)
        of_regressions = [0.0] * REGRESSIONS
        for i in range(prediction["regressions"]):
            of_regressions[i] = regression(prediction, i, node, depth)
        if prediction["kind"] == BYTES:
            of_regressions = [0.0] * REGRESSIONS
        inputs = np.array([of_network, *of_contexts, of_match, *of_regressions, BIAS_INPUT])
        assert len(inputs) == INPUTS
        confidence = min(int(0.75 * abs(of_network)), CONFIDENCE_LEVELS - 1)
        of_confidence = CONFIDENCE_SET + confidence * (CONTEXTS + 1) + seen
        sets = [int(MATCH_SET + level), of_confidence]
        if prediction["kind"] != BYTES:
            return inputs, [*sets, int(depth + 8 * prediction["is_low"])]
        of_byte, of_word = 8 * self._bytes[0] + depth, 8 * int(prediction["letters"]) + depth
        return inputs, [*sets, NODE_SET + node, BYTE_SET + of_byte, WORD_SET + of_word]

    def _place(self, i: int, node: int, depth: int, prediction: Any) -> tuple[int, int, int]:
        """The slot of a context in this half of a byte, its check, and the node of the half.

        Of the two slots that it may have this is the one that holds it, or that is used less.
        """
        first = node if depth < 4 else node >> (depth - 4)
        opening = 1 if depth < 4 else first
        key = ((int(prediction["hashes"][i]) ^ opening) * FACTOR) & MASK
        key ^= key >> 29
        below = node if depth < 4 else node - (first << (depth - 4)) + (1 << (depth - 4))
        slot, check = (key >> 40) & (self._slots - 1), key & 0xFFFF
        slots = [self._counts.get((i, s), (0, {})) for s in (slot, slot ^ 1)]
        if slots[0][0] == check:
            return slot, check, below
        used = [sum(counts.get(1, [0, 0])) for _, counts in slots]
        return slot ^ (slots[1][0] == check or used[1] < used[0]), check, below

    def _found(self, i: int, node: int, depth: int, prediction: Any) -> list[int]:
        slot, check, below = self._place(i, node, depth, prediction)
        held, counts = self._counts.get((i, slot), (0, {}))
        return counts.get(below, [0, 0]) if held == check else [0, 0]

    def _map(self, i: int, counts: list[int], prediction: Any) -> list[float]:
        zeros, ones = counts
        first = (ones + COUNT_PRIOR) / (zeros + ones + 2 * COUNT_PRIOR)
        return self._maps.setdefault((int(prediction["kind"]), i, zeros, ones), [first, 0.0])

    def _learn(self, node: int, depth: int, bit: int, prediction: Any) -> None:
        for i in range(prediction["contexts"]):
            slot, check, below = self._place(i, node, depth, prediction)
            if self._counts.get((i, slot), (0, {}))[0] != check:
                self._counts[i, slot] = (check, {})
            counts = self._counts[i, slot][1].setdefault(below, [0, 0])
            if sum(counts):
                entry = self._map(i, counts, prediction)
                entry[1] = min(entry[1] + 1, float(MOST_SEEN))
                entry[0] += (bit - entry[0]) / (entry[1] + float(COUNT_WORTH))
                entry[0] = clip(entry[0], 0.0005, 0.9995)
            counts[bit] = min(counts[bit] + 1, MOST_COUNT)
            if counts[1 - bit] > 2:
                counts[1 - bit] = min((counts[1 - bit] + 3) // 2, 14)
        expected = expected_bit(prediction, node, depth)
        if expected >= 0:
            hit = self._hits[prediction["level"]]
            hit[1] = min(hit[1] + 1, MOST_HITS)
            hit[0] += ((expected == bit) - hit[0]) / (hit[1] + 1.5)
            hit[0] = clip(hit[0], 0.002, 0.9998)


def expected_bit(prediction: Any, node: int, depth: int) -> int:
    """The next bit of the byte that the match predicts; -1 where it has begun otherwise."""
    byte = int(prediction["expected"])
    if byte < 0 or (byte | 256) >> (8 - depth) != node:
        return -1
    return byte >> (7 - depth) & 1


def regression(prediction: Any, i: int, node: int, depth: int) -> float:
    """Logit of a one under a logistic distribution around a prediction."""
    size, low = 256 >> depth, (node << (8 - depth)) - 256
    sign = 1
    if prediction["kind"] != PIXELS:
        if prediction["is_low"]:
            low += 256 * int(prediction["high"])
        elif depth == 0:
            low, size, sign = -32768, 65536, -1
        else:
            low, size = 256 * (low - 256 if low > 127 else low), 256 * size
    mean, width = float(prediction["means"][i]), float(prediction["widths"][i])
    edges = [(low - 0.5 + size * k / 2 - mean) / width for k in range(3)]
    if edges[0] > 0:  # the same by the upper tails, whose differences are exact there
        edges, sign = [-edge for edge in reversed(edges)], -sign
    begin, middle, end = (math.exp(e) / (1 + math.exp(e)) if e < 40 else 1.0 for e in edges)
    most = math.log(1 / LEAST)
    if middle <= begin or end <= middle:  # nothing that float64 tells apart
        return sign * (most if middle <= begin else -most)
    return sign * logit(middle - begin, end - middle)

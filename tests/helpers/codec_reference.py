"""Codec features in plain Python, id by id: what `model.codec_features` has to equal.

The formulas stand in `codec_features.kernels`, with their sources.

J = FEATURES
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from itertools import pairwise

import numpy as np

from bytelm.model.codec_features.layout import (
    AUDIO,
    DEEP,
    FEATURES,
    IMAGE,
    MATCH_LENGTHS,
    MATCHES,
    NONE,
    OPENING_LENGTHS,
    PAD,
    PLANAR,
    RASTER,
    S16BE,
    TEXT,
)

ORDER, BLOCK, WINDOW = 24, 16, 512


def reference_features(ids: Sequence[int], document: Sequence[int], patch: int) -> np.ndarray:
    """Codec features [T, J] of a row of ids [T] whose patches belong to documents [T / P]."""
    features = []
    bounds = [0, *(k for k, (a, b) in enumerate(pairwise(document), 1) if a != b), len(document)]
    for begin, end in pairwise(bounds):
        row = ReferenceRow(patch)
        for id_ in ids[begin * patch : end * patch]:
            features.append(row.features())
            row.push(id_)
    return np.array(features, np.int16)


class ReferenceRow:
    """One document: the segment that it is in, and the payload so far."""

    def __init__(self, patch: int) -> None:
        self.ids: list[int] = []
        self.patch = patch
        self.opened = 0
        """The patch that opened the segment."""
        self.padding: int | None = None
        """The patch after the opening; None where the segment has no payload."""
        self.begin: int | None = None
        """The first patch of the payload, which patches of PAD delay."""
        self.payload: Payload | None = None

    def push(self, id_: int) -> None:
        """Take the next id."""
        index, position = divmod(len(self.ids), self.patch)
        if position == 0 and id_ > 255:
            self._see_opening(index, id_)
        self.ids.append(id_)
        is_padding = self.padding is not None and self.padding <= index < (self.begin or 0)
        if self.payload is not None and not is_padding:
            self.payload.push(id_ if id_ < 256 else 0)
        if position == self.patch - 1:
            if self.opened == index:
                self.payload = None
            if self.padding == index + 1:
                self.payload = payload_behind(self.ids[self.opened * self.patch :])

    def _see_opening(self, index: int, first: int) -> None:
        if first == PAD and index == self.begin:
            self.begin = index + 1
            return
        self.opened, self.padding, self.begin = index, None, None
        if first in OPENING_LENGTHS:
            self.padding = self.begin = index + math.ceil(OPENING_LENGTHS[first] / self.patch)

    def features(self) -> list[int]:
        """Features of the next id, [J]."""
        return self.payload.features() if self.payload else [NONE] * FEATURES


def payload_behind(ids: list[int]) -> Payload:
    """The payload behind an opening, which `ids` begin with."""
    opener, *header = ids[: OPENING_LENGTHS[ids[0]]]
    if opener == TEXT or max(header) > 255:
        return Payload()
    high, low, _, _, channels, view, *offset = header
    width, skipped = 256 * high + low, int.from_bytes(offset, "big")
    if opener == IMAGE and view in (RASTER, PLANAR, DEEP) and width > 1 and channels:
        unit = {RASTER: channels, PLANAR: 1, DEEP: 2 * channels}[view]
        return ImagePayload(unit, width * unit, skipped % unit)
    if opener == AUDIO and view == S16BE and channels:
        return AudioPayload(channels, skipped % (2 * channels))
    return Payload()


class Payload:
    """Bytes of which only matches are known."""

    def __init__(self) -> None:
        self.bytes: list[int] = []
        self.candidates = [NONE] * len(MATCH_LENGTHS)
        self.runs = [0] * len(MATCH_LENGTHS)
        self.followers: list[dict[tuple[int, ...], int]] = [{} for _ in MATCH_LENGTHS]

    def push(self, byte: int) -> None:
        """Take the next byte."""
        self.bytes.append(byte)
        for column, k in enumerate(MATCH_LENGTHS):
            self.runs[column] = self.runs[column] + 1 if self.candidates[column] == byte else 0
            if len(self.bytes) >= k:
                key = tuple(self.bytes[-k:])
                follower = self.followers[column].get(key)
                self.candidates[column] = NONE if follower is None else self.bytes[follower]
                self.followers[column][key] = len(self.bytes)

    def features(self) -> list[int]:
        """Features of the next byte, [J]."""
        runs = [magnitude(run, 1) for run in self.runs]
        return [*self.predictions(), *self.candidates, *runs]

    def predictions(self) -> list[int]:
        """The features before the matches."""
        return [NONE] * MATCHES


@dataclass
class ImagePayload(Payload):
    """Pixels of `unit` bytes in lines of `line` bytes, from byte `phase` of a pixel on."""

    unit: int
    line: int
    phase: int

    def __post_init__(self) -> None:
        super().__init__()

    def predictions(self) -> list[int]:
        """Eight predictions and the place in the pixel."""
        unit, line = self.unit, self.line
        left, above, corner, right = map(self.back, (unit, line, line + unit, line - unit))
        plane = left + above - corner
        return [
            sorted((plane, left, above))[1],
            clamp(plane, 0, 255),
            clamp(self.back(1) + above - self.back(line + 1), 0, 255),
            clamp(self.back(1) + left - self.back(unit + 1), 0, 255),
            *(left, above, corner, right),
            (len(self.bytes) + self.phase) % unit,
        ]

    def back(self, distance: int) -> int:
        """The byte at a distance before the next one; 0 where there is none."""
        return self.bytes[-distance] if distance <= len(self.bytes) else 0


@dataclass
class AudioPayload(Payload):
    """Samples of 16 bits, from byte `phase` of a frame on."""

    channels: int
    phase: int

    def __post_init__(self) -> None:
        super().__init__()
        self.samples: list[list[int]] = [[] for _ in range(self.channels)]
        self.errors: list[list[int]] = [[] for _ in range(self.channels)]
        self.factors = [[0] * ORDER for _ in range(self.channels)]
        self.predicted, self.magnitudes = [0, 0, 0], [0, 0]
        self.next = 0
        if self.phase % 2 == 0:
            self.predict()

    def push(self, byte: int) -> None:
        """Take the next byte."""
        if self.is_low():
            if self.bytes:
                sample = 256 * self.high() + byte
                self.samples[self.next].append(sample)
                self.errors[self.next].append(abs(sample - self.predicted[0]))
                self.next = (self.next + 1) % self.channels
            self.predict()
        self.bytes.append(byte)

    def is_low(self) -> bool:
        """Whether the next byte is the low one of its sample."""
        return (len(self.bytes) + self.phase) % 2 == 1

    def high(self) -> int:
        """The last byte in two's complement."""
        last = self.bytes[-1] if self.bytes else 0
        return last - 256 if last > 127 else last

    def predict(self) -> None:
        """Predict the next sample of the channel that has its turn."""
        samples, errors = self.samples[self.next], self.errors[self.next]
        if samples and len(samples) % BLOCK == 0:
            self.factors[self.next] = coefficients(samples)
        last = [0] * ORDER + samples
        newest_first = last[: -ORDER - 1 : -1]
        products = zip(newest_first, self.factors[self.next], strict=True)
        weighted = sum(sample * factor for sample, factor in products)
        linear = clamp((weighted + (1 << 13)) >> 14, -32768, 32767)
        line = clamp(2 * last[-1] - last[-2], -32768, 32767)
        self.predicted = [linear, line, last[-1]]
        self.magnitudes = [magnitude(sum(errors[-span:]), span) for span in (16, 128)]

    def features(self) -> list[int]:
        """Features of the next byte, [J]."""
        numbers: list[int] = []
        for sample in self.predicted:
            if self.is_low():
                rest, difference = sample - 256 * self.high(), (sample >> 8) - self.high()
                numbers += [clamp(rest, 0, 255), clamp(difference + 128, 0, 255)]
            else:
                numbers += [sample >> 8 & 255, sample & 255]
        place = (len(self.bytes) + self.phase) % (2 * self.channels)
        return [*numbers, *self.magnitudes, place, *[NONE] * (FEATURES - MATCHES)]


def clamp(value: int, low: int, high: int) -> int:
    """The nearest value in [low, high]."""
    return min(max(value, low), high)


@cache
def magnitude(total: int, span: int) -> int:
    """16 * log2(1 + total / span), rounded down, at most 255."""
    return sum(total >= math.ceil(span * (2 ** (i / 16) - 1)) for i in range(1, 256))


def taper() -> list[int]:
    """Weights of the samples before a block."""
    fall = WINDOW // 16
    weights = [math.sin(math.pi / 2 * (i + 0.5) / WINDOW) for i in range(WINDOW)]
    for i in range(fall):
        weights[WINDOW - fall + i] *= math.cos(math.pi / 2 * i / fall)
    return [round(1023 * weight) for weight in weights]


def coefficients(samples: list[int]) -> list[int]:
    """[ORDER] coefficients of a channel's next block, that of the newest sample first."""
    window = np.array(([0] * WINDOW + samples)[-WINDOW:]) * np.array(taper())
    correlation = [float(window[lag:] @ window[: WINDOW - lag]) for lag in range(ORDER + 1)]
    error = correlation[0] * (1 + 2.0**-24) + 1.0
    factors: list[float] = []
    for i in range(ORDER):
        products = [factor * correlation[i - j] for j, factor in enumerate(factors)]
        explained = added(products[:16]) + added(products[16:])
        reflection = (correlation[i + 1] - explained) / error
        factors = [a - reflection * b for a, b in zip(factors, factors[::-1], strict=True)]
        factors.append(reflection)
        error *= 1 - reflection * reflection
    return [round(factor * 2**14) for factor in factors]


def added(numbers: list[float]) -> float:
    """The sum, one after the other: `sum` of Python 3.12 and later rounds in another way."""
    total = 0.0
    for number in numbers:
        total += number
    return total

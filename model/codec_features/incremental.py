"""The hints of a row that is read id by id; `hints.py` says what they are.

In numbers of Python, which for one id are much faster than tensors.
"""

from bisect import bisect_right
from collections import deque

import torch

from bytelm.model.codec_features.layout import (
    FEATURES,
    HEADS,
    PAD,
    PREDICTIONS,
    SPANS,
    PayloadLayout,
    preamble,
    thresholds,
)
from bytelm.model.codec_features.linear_prediction import (
    ONE_BITS,
    ORDER,
    PREDICTION_BLOCK,
    WINDOW,
    coefficients,
)
from bytelm.model.codec_features.match import NONE, Matcher

BOUNDS = {span: thresholds(span) for span in (1, *SPANS)}


class IncrementalFeatures:
    """Where a row stands: which payload its next id goes on with, and what is before it."""

    def __init__(self, patch: int) -> None:
        self.patch = patch
        self._held = 0
        self._opened = -1
        """The place of the last segment's opening."""
        self._head: list[int] = []
        """The ids from there on."""
        self._payload: Payload | None = None
        self._is_closing = self._is_padding = False  # of the patch that the next id belongs to

    def push(self, id_: int) -> None:
        """Takes up the row's next id."""
        if id_ > 255 and self._held % self.patch == 0:
            is_empty = self._payload is not None and self._payload.count == 0
            self._is_padding = id_ == PAD and is_empty
            self._is_closing = not self._is_padding
            if self._is_closing:
                self._opened, self._head = self._held, []
        if len(self._head) < max(HEADS.values()):
            self._head.append(id_)
        if self._payload is not None and not self._is_padding:
            self._payload.push(id_ if id_ < 256 else 0)
        self._held += 1
        if self._held % self.patch:
            return
        if self._is_closing:  # what a patch opens with counts behind it
            self._payload = None
        self._is_closing = self._is_padding = False
        opener = self._head[0] if self._opened >= 0 else PAD
        begin = self._opened + self.patch * preamble(opener, self.patch)
        if opener in HEADS and self._held == begin:
            self._payload = payload_of(PayloadLayout.of(self._head[: HEADS[opener]]))

    def codec_features(self) -> list[int]:
        """Of the next id, [J]."""
        return self._payload.codec_features() if self._payload else [NONE] * FEATURES


class Payload:
    """The bytes of a payload so far."""

    def __init__(self, strides: PayloadLayout) -> None:
        self.strides = strides
        self.count = 0
        self._matcher = Matcher()

    def push(self, byte: int) -> None:
        """Takes up the next byte."""
        self._matcher.push(byte)
        self.count += 1

    def codec_features(self) -> list[int]:
        """Of the next byte, [J]."""
        right = [bisect_right(BOUNDS[1], count) for count in self._matcher.right]
        return [*self.guesses(), *self._matcher.found, *right]

    def guesses(self) -> list[int]:
        """Those that are no matches."""
        return [NONE] * PREDICTIONS


class ImagePayload(Payload):
    """The bytes of an image so far."""

    def __init__(self, strides: PayloadLayout) -> None:
        super().__init__(strides)
        self._bytes: list[int] = []

    def push(self, byte: int) -> None:
        super().push(byte)
        self._bytes.append(byte)

    def guesses(self) -> list[int]:
        near, line, bytes_, at = self.strides.near, self.strides.line, self._bytes, self.count

        def back(distance: int) -> int:
            return bytes_[at - distance] if at >= distance else 0

        left, above, corner = back(near), back(line), back(line + near)
        plane = left + above - corner
        median = sorted((plane, left, above))[1]
        by_above = back(1) + above - back(line + 1)
        by_left = back(1) + left - back(near + 1)
        guesses = (median, plane, by_above, by_left, left, above, corner, back(line - near))
        return [*(_clamped(guess, 0, 255) for guess in guesses), (at + self.strides.phase) % near]


class SoundPayload(Payload):
    """The samples of a sound so far, and guesses of the next one."""

    def __init__(self, strides: PayloadLayout) -> None:
        super().__init__(strides)
        self._channels = [_Channel() for _ in range(strides.near // 2)]
        self._lost = strides.phase % 2
        self._samples = 0
        self._last = 0
        """The byte before."""
        self._next = [0] * (3 + len(SPANS)) if self._lost else self._channels[0].next()

    def push(self, byte: int) -> None:
        if (self.count + self._lost) % 2:
            if self.count:
                channel = self._channels[self._samples % len(self._channels)]
                channel.push(256 * _signed(self._last) + byte)
                self._samples += 1
            self._next = self._channels[self._samples % len(self._channels)].next()
        self._last = byte
        self.count += 1

    def codec_features(self) -> list[int]:
        return [*self.guesses(), *[NONE] * (FEATURES - PREDICTIONS)]

    def guesses(self) -> list[int]:
        is_low, own = (self.count + self._lost) % 2, _signed(self._last)
        numbers: list[int] = []
        for guess in self._next[:3]:
            if is_low:
                numbers += guess - 256 * own, (guess >> 8) - own + 128
            else:
                numbers += guess >> 8 & 255, guess & 255
        phase = (self.count + self.strides.phase) % self.strides.near
        return [*(_clamped(number, 0, 255) for number in numbers), *self._next[3:], phase]


class _Channel:
    """One channel of a sound."""

    def __init__(self) -> None:
        self._samples: deque[int] = deque([0] * WINDOW, maxlen=WINDOW)
        self._count = 0
        self._coefficients = [0] * ORDER
        self._predicted = 0
        self._off: deque[int] = deque([0] * max(SPANS), maxlen=max(SPANS))

    def push(self, sample: int) -> None:
        self._off.append(abs(sample - self._predicted))
        self._samples.append(sample)
        self._count += 1

    def next(self) -> list[int]:
        """Three guesses of the next sample, and how far predictions were off."""
        if self._count and self._count % PREDICTION_BLOCK == 0:
            self._coefficients = coefficients(torch.tensor(self._samples)).tolist()
        last = list(self._samples)[-ORDER:]
        weighted = sum(a * b for a, b in zip(last, self._coefficients, strict=True))
        self._predicted = _sample(weighted + 2 ** (ONE_BITS - 1) >> ONE_BITS)
        guesses = [self._predicted, _sample(2 * last[-1] - last[-2]), last[-1]]
        off = list(self._off)
        return guesses + [bisect_right(BOUNDS[span], sum(off[-span:])) for span in SPANS]


KINDS = {"bytes": Payload, "image": ImagePayload, "sound": SoundPayload}


def payload_of(strides: PayloadLayout) -> Payload:
    """An empty one."""
    return KINDS[strides.kind](strides)


def _signed(byte: int) -> int:
    return byte - 256 if byte > 127 else byte


def _sample(value: int) -> int:
    return _clamped(value, -32768, 32767)


def _clamped(value: int, least: int, most: int) -> int:
    return min(max(value, least), most)

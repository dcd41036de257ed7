"""Codec features of a row that is read id by id, as a decoder needs them.

They equal those of `vectorized`, where they are described. Python's numbers are much faster than
tensors for one id.

Shapes:
    J = FEATURES
"""

from collections import deque
from typing import Protocol

import torch

from bytelm.model.codec_features.formulas import (
    ERROR_SPANS,
    high_byte_predictions,
    image_predictions,
    low_byte_predictions,
    magnitude,
    sample_predictions,
    signed,
)
from bytelm.model.codec_features.layout import (
    FEATURES,
    MATCHES,
    NONE,
    OPENING_LENGTHS,
    OpenSegment,
    PayloadLayout,
)
from bytelm.model.codec_features.linear_prediction import (
    ORDER,
    PREDICTION_BLOCK,
    WINDOW,
    coefficients,
    to_sample,
)
from bytelm.model.codec_features.match import Matcher

_LONGEST_OPENING = max(OPENING_LENGTHS.values())


class IncrementalFeatures:
    """Codec features of a row's next id, from the ids pushed so far."""

    def __init__(self, patch: int) -> None:
        self.patch = patch
        self._count = 0
        self._segment = OpenSegment()
        self._opening: list[int] = []
        """The first ids of the segment."""
        self._payload: Payload | None = None

    def push(self, id_: int) -> None:
        """Take the row's next id."""
        index, position = divmod(self._count, self.patch)
        if id_ > 255 and position == 0:
            self._segment = self._segment.after(index, id_, self.patch)
            if self._segment.opened == index:
                self._opening = []
        if len(self._opening) < _LONGEST_OPENING:
            self._opening.append(id_)
        if self._payload is not None and not self._segment.is_padding(index):
            self._payload.push(id_ if id_ < 256 else 0)
        self._count += 1
        if position == self.patch - 1:
            self._end_patch(index)

    def _end_patch(self, index: int) -> None:
        if self._segment.opened == index:
            self._payload = None
        if self._segment.padding == index + 1:
            opening = self._opening[: OPENING_LENGTHS[self._opening[0]]]
            layout = PayloadLayout.from_opening(opening)
            self._payload = PAYLOADS[layout.kind](layout)

    def codec_features(self) -> list[int]:
        """Features of the next id, [J]."""
        return self._payload.codec_features() if self._payload else [NONE] * FEATURES


class Payload(Protocol):
    """The bytes of a payload so far."""

    def push(self, byte: int) -> None:
        """Take the next byte."""

    def codec_features(self) -> list[int]:
        """Features of the next byte, [J]."""


class BytesPayload:
    """A payload of which only matches are known."""

    def __init__(self, layout: PayloadLayout) -> None:
        self.layout = layout
        self._matcher = Matcher()

    def push(self, byte: int) -> None:
        """Take the next byte."""
        self._matcher.push(byte)

    def codec_features(self) -> list[int]:
        """Features of the next byte, [J]."""
        runs = [magnitude(run, 1) for run in self._matcher.runs]
        return [*self._predictions(), *self._matcher.candidates, *runs]

    def _predictions(self) -> list[int]:
        """The features before the matches."""
        return [NONE] * MATCHES


class ImagePayload(BytesPayload):
    """The pixels of an image."""

    def __init__(self, layout: PayloadLayout) -> None:
        super().__init__(layout)
        self._bytes: list[int] = []

    def push(self, byte: int) -> None:
        """Take the next byte."""
        super().push(byte)
        self._bytes.append(byte)

    def _predictions(self) -> list[int]:
        layout = self.layout
        phase = layout.phase_at(len(self._bytes))
        return [*image_predictions(self._back, layout.unit, layout.line), phase]

    def _back(self, distance: int) -> int:
        return self._bytes[-distance] if distance <= len(self._bytes) else 0


class AudioPayload:
    """The samples of a sound."""

    def __init__(self, layout: PayloadLayout) -> None:
        self.layout = layout
        self._channels = [Channel() for _ in range(layout.unit // 2)]
        self._count = 0
        self._samples = 0
        self._previous = 0
        """The last byte."""
        self._predicted, self._errors = [0] * 3, [0] * len(ERROR_SPANS)
        if not layout.leading:
            self._predict()

    def push(self, byte: int) -> None:
        """Take the next byte."""
        if self._is_low():
            if self._count:
                self._channel().push(256 * signed(self._previous) + byte)
                self._samples += 1
            self._predict()
        self._previous = byte
        self._count += 1

    def codec_features(self) -> list[int]:
        """Features of the next byte, [J]."""
        numbers: list[int] = []
        if self._is_low():
            high = signed(self._previous)
            for sample in self._predicted:
                numbers += low_byte_predictions(sample, high)
        else:
            for sample in self._predicted:
                numbers += high_byte_predictions(sample)
        phase = self.layout.phase_at(self._count)
        return [*numbers, *self._errors, phase, *[NONE] * (FEATURES - MATCHES)]

    def _is_low(self) -> bool:
        """Whether the next byte is the low one of its sample."""
        return (self._count + self.layout.leading) % 2 == 1

    def _channel(self) -> "Channel":
        """The channel of the next sample."""
        return self._channels[self._samples % len(self._channels)]

    def _predict(self) -> None:
        self._predicted, self._errors = self._channel().predict()


class Channel:
    """One channel of a sound."""

    def __init__(self) -> None:
        self._samples: deque[int] = deque([0] * WINDOW, maxlen=WINDOW)
        self._count = 0
        self._coefficients = [0] * ORDER
        self._linear = 0
        self._errors: deque[int] = deque([0] * max(ERROR_SPANS), maxlen=max(ERROR_SPANS))

    def push(self, sample: int) -> None:
        """Take the next sample, which `predict` has predicted."""
        self._errors.append(abs(sample - self._linear))
        self._samples.append(sample)
        self._count += 1

    def predict(self) -> tuple[list[int], list[int]]:
        """Three predictions of the next sample, and the magnitudes of the errors before it."""
        if self._count and self._count % PREDICTION_BLOCK == 0:
            self._coefficients = coefficients(torch.tensor(self._samples)).tolist()
        last = list(self._samples)[-ORDER:]
        weighted = sum(a * b for a, b in zip(last, self._coefficients, strict=True))
        self._linear = to_sample(weighted)
        errors = list(self._errors)
        recent = [magnitude(sum(errors[-span:]), span) for span in ERROR_SPANS]
        return list(sample_predictions(self._linear, last[-1], last[-2])), recent


PAYLOADS: dict[str, type[BytesPayload] | type[AudioPayload]] = {
    "bytes": BytesPayload,
    "image": ImagePayload,
    "audio": AudioPayload,
}

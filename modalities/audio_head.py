"""The evaluation head of sounds."""

from __future__ import annotations

import itertools

import numpy as np

from bytelm.modalities.base import FILE_VIEW
from bytelm.modalities.evaluation_head import (
    Breakdown,
    EvaluationHead,
    ScoredSegment,
    quotient_and_rest,
)

SAMPLE_BYTES = {
    "s16le": ("low", "high"),
    "s16be": ("high", "low"),
    "u8": ("whole sample",),
    "mulaw": ("whole sample",),
    "s24be": ("high", "middle", "low"),
}
"""The bytes of a sample in their order, by view."""
_BYTES = ("high", "middle", "low", "whole sample")
NAMED_CHANNELS = 8
"""Channels with a bin of their own."""
_SECONDS = ("1/16", "1/8", "1/4", "1/2", *(str(1 << k) for k in range(11)))
"""Edges of the bins of time."""


class AudioHead(EvaluationHead):
    """Bits per byte, and of decoded sounds per sample; by byte of a sample, by channel, over time.

    Samples are counted in sixths, since a piece may begin inside a sample of two or three bytes.
    Bins of time are seconds from the sound's start: a piece does not know the sound's length.
    """

    counters = ("sample_units", "sample_sixths")
    breakdowns = (
        Breakdown("sample_byte", "by byte of a sample", "byte", _BYTES),
        Breakdown(
            "channel",
            "by channel",
            "channel",
            (*(str(k + 1) for k in range(NAMED_CHANNELS)), f"{NAMED_CHANNELS + 1} and more"),
        ),
        Breakdown(
            "time",
            "over time",
            "time from the start",
            (
                f"0–{_SECONDS[0]} s",
                *(f"{low}–{high} s" for low, high in itertools.pairwise(_SECONDS)),
                f"{_SECONDS[-1]} s and more",
            ),
        ),
    )

    def update(self, segment: ScoredSegment) -> None:
        super().update(segment)
        units, header = segment.payload_units, segment.header
        if segment.view == FILE_VIEW or not units.size:
            return
        names = SAMPLE_BYTES[segment.view]
        self.count("sample_units", units.sum())
        self.count("sample_sixths", units.size * 6 // len(names))
        frame_bytes = header.channels * len(names)
        in_frame = segment.offset % frame_bytes
        index = np.arange(in_frame, in_frame + units.size, dtype=np.int32)
        sample, byte = quotient_and_rest(index, len(names))
        _, channel = quotient_and_rest(sample, header.channels)
        self.spread("sample_byte", np.array([_BYTES.index(n) for n in names])[byte], units)
        self.spread("channel", np.minimum(channel, NAMED_CHANNELS), units)
        edges = header.rate * (1 << np.arange(len(_SECONDS))) // 16 * frame_bytes - segment.offset
        bounds = np.concatenate([[0], edges.clip(0, units.size), [units.size]])
        self.spread("time", np.repeat(np.arange(len(edges) + 1), np.diff(bounds)), units)

    def figures(self) -> dict[str, float]:
        samples = self.counted("sample_sixths") / 6
        return {
            **super().figures(),
            "bits_per_sample": self.bits_per(samples, self.counted("sample_units")),
        }

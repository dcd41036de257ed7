"""Predictions of samples for rows that are drawn on a GPU, by tensors of fixed shapes.

Linear prediction is that of `codec_features.kernels`: coefficients anew for each block of a
channel, from the samples before it. When a block begins follows from the number of bytes alone, so
that the host knows it and runs the step that solves for coefficients only then. Sums in that
recursion may be added up in another order, which changes a coefficient where it lies on the edge
between two roundings.

Shapes:
    B   rows                     n   payload bytes that each row holds
    L   payload bytes that a row can hold
    C   channels, at most of all rows
    p   ORDER, the coefficients of a channel
"""

from __future__ import annotations

import torch
from torch import Tensor

from bytelm.model.codec_features.state import (
    MOST_CHANNELS,
    ORDER,
    SAMPLES,
    WINDOW,
    FeatureState,
)
from bytelm.model.codec_features.tables import (
    ERROR_SPANS,
    FRACTION_BITS,
    NOISE_FLOOR,
    PREDICTION_BLOCK,
    TAPER,
)
from bytelm.model.decoding.static_formulas import Magnitude, signed


class StaticSamples:
    """The samples of every row's payload.

    Args:
        payload: [B, L] int64, the bytes, which the caller fills in.
    """

    def __init__(self, payload: Tensor) -> None:
        self._bytes = payload
        batch, device = len(payload), payload.device

        def zeros(*shape: int) -> Tensor:
            return torch.zeros(*shape, dtype=torch.int64, device=device)

        samples = payload.shape[1] // 2 + 1
        self._samples, self._error_sums = zeros(batch, samples), zeros(batch, samples)
        """Samples with their channels interleaved, and errors of linear prediction summed up by
        channel."""
        self._coefficients = zeros(batch, MOST_CHANNELS, ORDER)  # that of the newest sample first
        self._linear = zeros(batch)  # prediction of the next sample
        self._channels, self._leading = zeros(batch), zeros(batch)
        self._taper = torch.from_numpy(TAPER).to(device).long()
        self._back = torch.arange(1, WINDOW + 1, device=device)  # samples back, the newest first
        self._magnitudes = [Magnitude(span, device) for span in ERROR_SPANS]
        self._layouts: frozenset[tuple[int, int]] = frozenset()
        """(bytes of a frame, bytes before the first whole sample) of the rows, on the host."""

    def begin(self, state: FeatureState) -> None:
        """Take the rows as they stand behind their prompts."""
        rows, width = state.rows, min(self._samples.shape[1], state.samples.shape[1])
        self._samples[:, :width] = torch.from_numpy(state.samples[:, :width])
        self._error_sums[:, :width] = torch.from_numpy(state.error_sums[:, :width])
        self._coefficients.copy_(torch.from_numpy(state.coefficients))
        self._linear.copy_(torch.from_numpy(rows["predictions"][:, 0].copy()))
        self._channels.copy_(torch.from_numpy(rows["unit"] // 2)).clamp_(min=1)
        self._leading.copy_(torch.from_numpy(rows["leading"].copy()))
        sounds = rows[rows["kind"] == SAMPLES]
        self._layouts = frozenset(map(tuple, sounds[["unit", "leading"]].tolist()))

    def is_block_due(self, count: int) -> bool:
        """Whether, behind `count` bytes, the next sample of any row is the first of a block."""
        for frame_bytes, leading in self._layouts:
            sample, is_low = divmod(count - leading, 2)
            block, offset = divmod(sample // (frame_bytes // 2), PREDICTION_BLOCK)
            if not is_low and block > 0 and offset == 0:
                return True
        return False

    def note(self, byte: Tensor, count: Tensor) -> None:
        """Take byte number `count` [1] of each row, [B], which is not yet in the payload.

        A high byte leaves a wrong sample, which its low byte replaces before it is read.
        """
        index = ((count - self._leading) // 2).clamp(min=0)[:, None]
        previous = self._bytes.index_select(1, (count - 1).clamp(min=0))[:, 0]
        sample = 256 * signed(previous) + byte
        earlier = _at(self._error_sums, index - self._channels[:, None])[:, 0]
        error = (sample - self._linear).abs()
        self._samples.scatter_(1, index, sample[:, None])
        self._error_sums.scatter_(1, index, (earlier + error)[:, None])

    def predict(self, count: Tensor, updates_block: bool) -> None:
        """Predict the sample of the next byte by linear prediction, behind `count` [1] bytes."""
        sample = self._next_sample(count)
        channel = (sample % self._channels)[:, None, None].expand(-1, 1, ORDER)
        before = _at(self._samples, self._indices(sample, WINDOW if updates_block else ORDER))
        coefficients = self._coefficients.gather(1, channel)[:, 0]  # [B, p]
        if updates_block:
            frame = sample // self._channels
            is_due = (frame > 0) & (frame % PREDICTION_BLOCK == 0)
            solved = _solve(before.flip(1) * self._taper)
            coefficients = torch.where(is_due[:, None], solved, coefficients)
            self._coefficients.scatter_(1, channel, coefficients[:, None])
        weighted = (before[:, :ORDER] * coefficients).sum(dim=1)
        rounded = weighted + (1 << FRACTION_BITS - 1) >> FRACTION_BITS
        self._linear.copy_(rounded.clamp(-32768, 32767))

    def features(self, count: Tensor) -> Tensor:
        """Predictions of the next byte, behind `count` [1] bytes, and magnitudes of errors, [B, 8].

        They are in the order of `codec_features`.
        """
        sample = self._next_sample(count)
        last, before_last = _at(self._samples, self._indices(sample, 2)).unbind(1)
        line = (2 * last - before_last).clamp(-32768, 32767)
        predicted = torch.stack([self._linear, line, last], dim=1)[:, :, None]  # [B, 3, 1]
        previous = self._bytes.index_select(1, (count - 1).clamp(min=0))[:, 0] * (count > 0)
        high = signed(previous)[:, None, None]
        low_byte = [(predicted - 256 * high).clamp(0, 255), (predicted >> 8) - high + 128]
        numbers = torch.where(
            ((count + self._leading) % 2 == 1)[:, None, None],
            torch.cat([low_byte[0], low_byte[1].clamp(0, 255)], dim=2),
            torch.cat([predicted >> 8 & 255, predicted & 255], dim=2),
        )
        newest = _at(self._error_sums, self._indices(sample, 1))[:, 0]
        errors = []
        for span, magnitude in zip(ERROR_SPANS, self._magnitudes, strict=True):
            oldest = _at(self._error_sums, (sample - (span + 1) * self._channels)[:, None])[:, 0]
            errors.append(magnitude(newest - oldest))
        return torch.cat([numbers.flatten(1), torch.stack(errors, dim=1)], dim=1)

    def _next_sample(self, count: Tensor) -> Tensor:
        """Number of the sample of the next byte, [B]; -1 for half a sample before the first."""
        return (count + self._leading) // 2 - self._leading

    def _indices(self, sample: Tensor, count: int) -> Tensor:
        """Numbers of the last samples of the channel of `sample` [B], the newest first."""
        return sample[:, None] - self._channels[:, None] * self._back[:count]


def _at(values: Tensor, index: Tensor) -> Tensor:
    """values [B, S] at index [B, i]; 0 for those below 0."""
    return values.gather(1, index.clamp(min=0)).masked_fill(index < 0, 0)


def _solve(tapered: Tensor) -> Tensor:
    """Coefficients [B, p] that predict each row best from its window of samples [B, WINDOW].

    Levinson's recursion for the normal equations, as in `codec_features.kernels`.
    """
    products = [
        (tapered[:, lag:] * tapered[:, : WINDOW - lag]).sum(dim=1) for lag in range(ORDER + 1)
    ]
    correlation = torch.stack(products).double()  # [1 + p, B]
    error = correlation[0] * (1 + NOISE_FLOOR) + 1.0
    factors = torch.zeros_like(correlation[1:])
    for i in range(ORDER):
        explained = (factors[:i] * correlation[1 : i + 1].flip(0)).sum(dim=0)
        reflection = (correlation[i + 1] - explained) / error
        factors[:i] -= reflection * factors[:i].flip(0)
        factors[i] = reflection
        error = error * (1 - reflection * reflection)
    return (factors * (1 << FRACTION_BITS)).round().long().T

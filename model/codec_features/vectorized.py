"""Codec features of whole rows, as the training and the prefill of a decoder need them.

Predictions of the next byte, computed from the bytes before it, as xz (match candidates), PNG
(neighbours, gradients) and FLAC (linear prediction) make them. A short run does not learn copying
or 16-bit arithmetic, so the model is given them as input. Each id has J features, in this order:

    images  eight predictions by neighbours (`formulas.image_predictions`), and the byte's position
            in its pixel
    audio   two numbers from each of three predicted samples (`formulas.high_byte_predictions`,
            `low_byte_predictions`), the magnitude of the last 16 and 128 errors of the linear
            prediction, and the byte's position in its frame
    not     match candidates after the last four, six and eight bytes (`match`), and the magnitude
    audio   of each candidate's run

All others are NONE. Payloads whose views are neither pixels nor big-endian samples have match
candidates alone, and openings of segments have nothing.

Shapes:
    B rows of T ids    K patches of P ids     N documents' runs, a divisor of K
    m payload bytes    s samples, n frames    C channels    J = FEATURES
"""

from collections.abc import Iterator
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

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
    PHASE,
    PREDICTIONS,
    OpenSegment,
    PayloadLayout,
)
from bytelm.model.codec_features.linear_prediction import predict_samples
from bytelm.model.codec_features.match import match_candidates


def compute_codec_features(ids: Tensor, document: Tensor, patch: int) -> Tensor:
    """Codec features of every id of a batch of rows.

    Args:
        ids: [B, T].
        document: [B, N], as in `Megabyte.forward`.
        patch: P.
    Returns:
        [B, T, J] int16, NONE outside payloads.
    """
    features = ids.new_full((*ids.shape, FEATURES), NONE, dtype=torch.int16)
    host, runs = ids.cpu(), document.cpu()
    runs = runs.repeat_interleave(ids.shape[1] // patch // runs.shape[1], dim=1)
    for row, (row_ids, run) in enumerate(zip(host, runs, strict=True)):
        for layout, padding, begin, end in _find_payloads(row_ids, run, patch):
            if padding < begin:
                features[row, padding:begin] = payload_features(layout, ids[row, :0])
            if begin < end:
                features[row, begin:end] = payload_features(layout, ids[row, begin : end - 1])
    return features


class _PayloadSpan(NamedTuple):
    """The ids of a row that belong to a payload: [begin, end), and [padding, begin) before it."""

    layout: PayloadLayout
    padding: int
    begin: int
    end: int


def _find_payloads(ids: Tensor, run: Tensor, patch: int) -> Iterator[_PayloadSpan]:
    """Find the payloads in a row.

    A payload ends with its document, or with the next patch that opens with an id above 255.

    Args:
        ids: [T].
        run: [K] document of each patch.
        patch: P.
    """
    first_ids = ids[::patch]
    is_last = torch.ones_like(run, dtype=torch.bool)  # of its document
    is_last[:-1] = run[1:] != run[:-1]
    marked = is_last | (first_ids > 255)
    columns = (marked.nonzero().squeeze(1), first_ids[marked], is_last[marked])
    segment = OpenSegment()
    for index, first, ends_document in zip(*(c.tolist() for c in columns), strict=True):
        following = segment.after(index, first, patch)
        is_opened = following.opened == index
        current = segment if is_opened else following
        if (is_opened or ends_document) and 0 <= current.padding <= index:
            opening = ids[current.opened * patch :]
            opening = opening[: OPENING_LENGTHS[int(opening[0])]]
            yield _PayloadSpan(
                PayloadLayout.from_opening(opening.tolist()),
                *(edge * patch for edge in (current.padding, current.begin, index + 1)),
            )
        segment = OpenSegment() if ends_document else following


def payload_features(layout: PayloadLayout, payload: Tensor) -> Tensor:
    """Codec features of every byte of a payload and of the one after it.

    payload: [m] ids; those above 255 count as 0, as do bytes before the payload.
    Returns [m + 1, J] int16.
    """
    payload = payload.masked_fill(payload > 255, 0)
    positions = len(payload) + 1
    features = payload.new_full((positions, FEATURES), NONE, dtype=torch.int16)
    if layout.kind == "image":
        features[:, :PREDICTIONS] = _image_features(layout, payload.short())
    elif layout.kind == "audio":
        features[:, :PREDICTIONS] = _audio_features(layout, payload)
    if layout.kind != "bytes":
        features[:, PHASE] = layout.phase_at(torch.arange(positions, device=payload.device))
    if layout.kind != "audio":
        candidates, runs = match_candidates(payload)
        features[:, MATCHES:] = torch.cat([candidates, magnitude(runs, 1)], dim=1)
    return features


def _image_features(layout: PayloadLayout, payload: Tensor) -> Tensor:
    """[m] to [m + 1, PREDICTIONS]."""

    def back(distance: int) -> Tensor:
        return F.pad(payload, (distance, 0))[: len(payload) + 1]

    return torch.stack(image_predictions(back, layout.unit, layout.line), dim=1)


def _audio_features(layout: PayloadLayout, payload: Tensor) -> Tensor:
    """[m] int64 to [m + 1, PREDICTIONS]."""
    leading, count = layout.leading, len(payload)
    high, low = payload[leading : count - (count - leading) % 2].view(-1, 2).unbind(1)
    by_sample = _sample_features(256 * signed(high) + low, layout.unit // 2)
    index = torch.arange(count + 1, device=payload.device) + leading
    by_byte = F.pad(by_sample, (0, 0, leading, 0))[index // 2]  # [m + 1, 5]
    predicted, errors = by_byte.split([3, len(ERROR_SPANS)], dim=1)
    previous = signed(F.pad(payload, (1, 0)))[:, None]
    numbers = torch.where(
        (index % 2 == 1)[:, None, None],
        torch.stack(low_byte_predictions(predicted, previous), dim=2),
        torch.stack(high_byte_predictions(predicted), dim=2),
    )
    return torch.cat([numbers.flatten(1), errors], dim=1)


def _sample_features(samples: Tensor, channels: int) -> Tensor:
    """Three predictions of each sample and the magnitudes of the errors before it.

    samples: [s] of interleaved channels. Returns [n C, 3 + len(ERROR_SPANS)], n C > s.
    """
    frames = len(samples) // channels + 1
    by_channel = F.pad(samples, (0, frames * channels - len(samples))).view(frames, channels).T
    linear = predict_samples(by_channel)[:, :frames]  # [C, n]
    padded = F.pad(by_channel, (2, 0))
    predictions = sample_predictions(linear, padded[:, 1:-1], padded[:, :-2])
    errors = F.pad((by_channel - linear).abs().cumsum(dim=1), (1, 0))[:, :-1]
    recent = [
        magnitude(errors - F.pad(errors, (span, 0))[:, :frames], span) for span in ERROR_SPANS
    ]
    return torch.stack([*predictions, *recent]).permute(2, 1, 0).flatten(0, 1)

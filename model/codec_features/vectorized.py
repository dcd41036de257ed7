"""Codec features of whole rows, as the training and the prefill of a decoder need them.

Predictions of the next byte, computed from the bytes before it, as xz (match candidates), PNG
(neighbours, gradients) and FLAC (linear prediction) make them. A short run does not learn copying
or 16-bit arithmetic, so the model is given them as input. Each id has J features, in this order:

    images  eight predictions by neighbours, and the byte's position in its pixel
    audio   two numbers from each of three predicted samples, the magnitude of the last 16 and 128
            errors of the linear prediction, and the byte's position in its frame
    not     match candidates after the last four, six and eight bytes, and the magnitude of each
    audio   candidate's run

All others are NONE. Payloads whose views are neither pixels nor big-endian samples have match
candidates alone, and openings of segments have nothing.

Shapes:
    B rows of T ids    K patches of P ids     N documents' runs, a divisor of K    J = FEATURES
"""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from bytelm.model.codec_features.kernels import NO_PLACES, compile_kernels, read_row
from bytelm.model.codec_features.layout import FEATURES, PLACES
from bytelm.model.codec_features.state import new_state


def compute_codec_features(ids: Tensor, document: Tensor, patch: int) -> Tensor:
    """Codec features of every id of a batch of rows, computed by one core of the host.

    Args:
        ids: [B, T].
        document: [B, N], as in `Megabyte.forward`.
        patch: P.
    Returns:
        [B, T, J] int16 on the device of `ids`, NONE outside payloads.
    """
    features = torch.empty(*ids.shape, FEATURES, dtype=torch.int16)
    no_places = torch.empty(len(ids), *NO_PLACES.shape, dtype=torch.int32)
    _read_rows(ids, document, patch, features, no_places)
    return features.to(ids.device)


def compute_places(ids: Tensor, document: Tensor, patch: int) -> Tensor:
    """Places of every id of a batch of rows in its payload, [B, T, PLACES] int32 on the host.

    Arguments are those of `compute_codec_features`, columns in `layout`.
    """
    places = torch.empty(*ids.shape, PLACES, dtype=torch.int32)
    features = torch.empty(*ids.shape, FEATURES, dtype=torch.int16)
    _read_rows(ids, document, patch, features, places)
    return places


def _read_rows(ids: Tensor, document: Tensor, patch: int, features: Tensor, places: Tensor) -> None:
    """Write the features [B, T, J] and the places [B, T, PLACES] or [B, 0, PLACES] of rows."""
    compile_kernels()
    rows, length = ids.shape
    host_ids = ids.cpu().long().contiguous().numpy()
    documents = np.repeat(
        document.cpu().int().numpy(), length // patch // document.shape[1], axis=1
    )
    for row in range(rows):
        state = new_state(1, patch, length)
        outputs = features[row].numpy(), places[row].numpy()
        read_row(state, 0, host_ids[row], documents[row], *outputs)

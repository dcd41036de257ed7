"""Scored segments of made-up scores, as evaluation heads take them."""

from __future__ import annotations

import math
from typing import Any

import numpy as np

from bytelm.modalities.base import Header
from bytelm.modalities.evaluation_head import Floats, ScoredSegment

NO_HEADER = Header()


def scored(
    payload: bytes | int,
    view: str,
    header: Header = NO_HEADER,
    offset: int = 0,
    bits: Floats | float = 1.0,
    patch: int = 8,
    **fields: Any,
) -> ScoredSegment:
    """A segment, or a part of one, whose payload follows 8 ids of preamble.

    Args:
        payload: its bytes, or how many zeros.
        bits: of each payload byte.
        fields: further fields of `ScoredSegment` that differ from the usual ones.
    """
    data = np.frombuffer(bytes(payload), np.uint8)
    nats = np.broadcast_to(np.asarray(bits, np.float64) * math.log(2), data.shape)
    usual: dict[str, Any] = {
        "is_last": True,
        "frame_nats": np.zeros(0),
        "context": np.arange(8, 8 + data.size),
        "patch_position": np.arange(data.size) % patch,
    }
    return ScoredSegment(
        header, view, patch, offset, payload=data, payload_nats=nats, **(usual | fields)
    )

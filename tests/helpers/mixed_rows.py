"""Places of bytes in the payloads of rows whose outputs are mixed."""

from __future__ import annotations

import torch
from torch import Tensor

from bytelm.model.codec_features.layout import KIND, LINE, PLACE, PLACES, SIZE, UNIT
from bytelm.model.codec_features.state import BYTES, NO_PAYLOAD, PIXELS, SAMPLES

V = 264
KINDS = {"text": BYTES, "pixels": PIXELS, "samples": SAMPLES, "nothing": NO_PAYLOAD}


def places_of(kind: int, size: int) -> Tensor:
    """The place of the byte after `size` others, [1, PLACES]."""
    place = torch.zeros(1, PLACES, dtype=torch.int32)
    unit = 3 if kind == PIXELS else 2
    place[0, KIND], place[0, SIZE], place[0, UNIT], place[0, LINE] = kind, size, unit, 24
    place[0, PLACE] = place[0, -1] = size % unit
    return place

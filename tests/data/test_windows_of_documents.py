"""Windows that grow: every id of a document is new in one of them, and windows are few."""

from __future__ import annotations

import numpy as np
import pytest

from bytelm.modalities import MODALITIES
from bytelm.modalities.base import Header
from bytelm.modalities.framing import Segment
from bytelm.pipelines.data.windows import growing_window_spans, segment_length

PATCH = 8


def segments(*sizes: int) -> list[Segment]:
    """Texts and images in turn."""
    kinds = [
        (MODALITIES["text"], Header(), "utf8"),
        (MODALITIES["image"], Header(1, 1, 1), "raster"),
    ]
    return [Segment(*kinds[number % 2], size) for number, size in enumerate(sizes)]


@pytest.mark.parametrize("sizes", [(0,), (6,), (2000,), (300, 1000), (0, 7, 900), (1, 1, 1, 1, 1)])
@pytest.mark.parametrize(
    ("length", "step"), [(256, 64), (256, 128), (256, 256), (32, 32), (24, 24)]
)
def test_every_id_is_new_in_one_window(sizes: tuple[int, ...], length: int, step: int) -> None:
    document = segments(*sizes)
    total = sum(segment_length(segment, PATCH) for segment in document)
    found, longest = [], 0
    windows = list(growing_window_spans(document, length, step, PATCH))
    for _, positions in windows:
        assert len(positions) <= min(length, longest + step)
        longest = len(positions)
        new = np.flatnonzero(positions >= 0)
        assert not len(new) or ((np.diff(new) == 1).all() and new[-1] == len(positions) - 1)
        found.append(positions[new])
    assert np.array_equal(np.concatenate(found), np.arange(total))
    if length >= 2 * step:
        assert len(windows) <= total // (step - 2 * PATCH) + 2

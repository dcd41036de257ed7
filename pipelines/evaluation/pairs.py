"""Pairs: what a segment costs behind its condition, and what it costs alone.

The condition of a segment is the part of its document before it, such as the caption before an
image. The difference is what the model knows of the image by its caption. Where the model learned
both orders of a pair, the first segment is scored behind the second one, too.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np

from bytelm.modalities import BY_CODE
from bytelm.modalities.evaluation_head import UNITS_PER_BIT
from bytelm.pipelines.data.dataset_info import DatasetInfo
from bytelm.pipelines.evaluation.documents import StoredDocument
from bytelm.pipelines.evaluation.passes import Scorer
from bytelm.pipelines.evaluation.segment_sums import (
    DOCUMENT,
    PLACE,
    Segments,
    added_up,
    is_first,
)


def score_pairs(scorer: Scorer, info: DatasetInfo) -> tuple[Segments, Segments]:
    """Score the segments of this rank's share alone, and first ones behind the second.

    Returns:
        every segment but a document's first, scored as a document of its own; and the first ones of
        two, scored behind the second, where the model learned that order.
    """

    def alone(document: StoredDocument) -> Sequence[Sequence[int]]:
        return [[number] for number in range(1, len(document.segments))]

    def turned(document: StoredDocument) -> Sequence[Sequence[int]]:
        names = [segment.modality.name for segment in document.segments]
        return [[1, 0]] if len(names) == 2 and (names[1], names[0]) in info.pairs else []

    sums = scorer.score_parts("alone", alone), scorer.score_parts("turned", turned)
    return sums[0].segments(), sums[1].segments()


def pair_figures(
    in_documents: Segments, alone: Segments, turned: Segments
) -> dict[str, dict[str, float]]:
    """Bits per byte with and without condition of each modality that pairs have.

    Args:
        in_documents: every segment, as it stands in its document.
        alone, turned: as `score_pairs` returns them, of all ranks.
    Returns:
        `with_condition` and `without_condition` in bits per payload byte, `gain_bits`, the bits
        that the conditions save in all, and the number of `documents`; by modality.
    """
    has_condition = ~is_first(in_documents, DOCUMENT)
    opens_turned = np.isin(in_documents[list(PLACE)], turned[list(PLACE)])
    with_condition = added_up(np.concatenate([in_documents[has_condition], turned]), PLACE)
    without = added_up(np.concatenate([alone, in_documents[opens_turned]]), PLACE)
    assert (with_condition[list(PLACE)] == without[list(PLACE)]).all()
    figures = {}
    for code in np.unique(without["modality"]):
        chosen = without["modality"] == code
        size = int(without["bytes"][chosen].sum())
        if not size:
            continue
        bits = [_bits(segments[chosen]) for segments in (with_condition, without)]
        figures[BY_CODE[code].name] = {
            "with_condition": bits[0] / size,
            "without_condition": bits[1] / size,
            "gain_bits": bits[1] - bits[0],
            "documents": len(added_up(without[chosen], DOCUMENT)),
        }
    return figures


def _bits(segments: Segments) -> float:
    """Bits of the payloads of all segments; NaN where a score is not finite."""
    if segments["not_finite_payload"].any():
        return math.nan
    return int(segments["payload_units"].sum()) / UNITS_PER_BIT

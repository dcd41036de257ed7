"""Bits and bytes of every segment, added up over the pieces of it that lie in several rows.

S segments, or pieces of segments
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from bytelm.modalities.evaluation_head import UNITS_PER_BIT, not_finite
from bytelm.pipelines.data.plan import Plan
from bytelm.pipelines.evaluation.scoring import SegmentInRow
from bytelm.pipelines.shards.format import Index, Shard

PLACE = ("source", "shard", "document", "offset")
"""Number of the plan's source, of the shard in its split, and of the document in the shard;
`offset` in the tar orders the segments of a document."""
DOCUMENT = PLACE[:3]
UNITS = ("payload_units", "frame_units")
"""Bits in the units of `modalities.evaluation_head`."""
NOT_FINITE = ("not_finite_payload", "not_finite_frame")
"""Ids whose score is not finite: their bits in UNITS mean nothing."""
SUMS = ("bytes", *UNITS, *NOT_FINITE)
SEGMENTS = np.dtype(
    [
        *((name, np.int64) for name in (*PLACE, "modality")),
        *((name, np.int64) for name in SUMS),
    ]
)
"""A segment's place and its sums."""
Segments = npt.NDArray[np.void]
"""[S] of dtype SEGMENTS."""
Keys = dict[tuple[int, int, int], str]
"""The key of each document, by its place."""


class SegmentSums:
    """The segments that one rank has scored, and the keys of their documents."""

    def __init__(self, plan: Plan):
        self._sets = [source.set for source in plan.sources]
        self._pieces: list[tuple[int, ...]] = []
        self._taken = 0
        self.keys: Keys = {}

    def add(self, source: int, shard: Shard, index: Index, found: Sequence[SegmentInRow]) -> None:
        """Add the segments of a row or document, or pieces of them, and remember their keys.

        Args:
            source: number of the plan's source.
            index: [S] index row of each segment.
            found: [S] the same segments with their scores.
        """
        number = shard.number
        for row, piece in zip(index, found, strict=True):
            document, segment = int(row["document"]), piece.segment
            place = source, number, document
            self._pieces.append(
                (
                    *(*place, int(row["offset"]), piece.modality.code, segment.payload.size),
                    *(int(segment.payload_units.sum()), int(segment.frame_units.sum())),
                    *(not_finite(segment.payload_units), not_finite(segment.frame_units)),
                )
            )
            if place not in self.keys:  # read while the shard is open: a remote one may go
                self.keys[place] = self._sets[source].key(shard, row)

    def take(self) -> list[Any]:
        """The pieces since the last call, and the keys of their documents as [place, key]; see
        `finished_work.Sums`."""
        pieces, self._taken = self._pieces[self._taken :], len(self._pieces)
        places = dict.fromkeys((source, shard, number) for source, shard, number, *_ in pieces)
        return [pieces, [[place, self.keys[place]] for place in places]]

    def put(self, taken: list[Any]) -> None:
        """Add what `take` returned elsewhere."""
        pieces, keys = taken
        self._pieces += map(tuple, pieces)
        self._taken = len(self._pieces)
        self.keys.update((tuple(place), key) for place, key in keys)

    def segments(self) -> Segments:
        """One entry for each segment."""
        return added_up(np.array(self._pieces, SEGMENTS), PLACE)


def payload_bits(segments: Segments) -> npt.NDArray[np.float64]:
    """[S] bits of payload bytes; NaN where a score is not finite."""
    bits = segments["payload_units"] / UNITS_PER_BIT
    return np.where(segments["not_finite_payload"], np.nan, bits)


def coded_bits(segments: Segments) -> npt.NDArray[np.float64]:
    """[S] bits of every id that a decoder needs; NaN where a score is not finite."""
    is_finite = segments["not_finite_frame"] == 0
    bits = (segments["payload_units"] + segments["frame_units"]) / UNITS_PER_BIT
    return np.where(is_finite & (segments["not_finite_payload"] == 0), bits, np.nan)


def added_up(pieces: Segments, by: Sequence[str]) -> Segments:
    """One entry for all that agree in the fields `by`, with their sums, in the order of `by`; its
    other fields are those of the first of them."""
    pieces = pieces[np.lexsort([pieces[name] for name in reversed(PLACE)])]
    pieces = pieces[np.lexsort([pieces[name] for name in reversed(by)])]
    first = np.flatnonzero(is_first(pieces, by))
    result = pieces[first]
    for name in SUMS if len(first) else ():
        result[name] = np.add.reduceat(pieces[name], first)
    return result


def is_first(segments: Segments, by: Sequence[str]) -> npt.NDArray[np.bool_]:
    """[S] whether the entry before differs in one of the fields `by`."""
    differs = np.zeros(len(segments), np.bool_)
    differs[:1] = True
    for name in by:
        differs[1:] |= segments[name][1:] != segments[name][:-1]
    return differs

"""Evaluation heads: sums of bits and of bytes from which the figures and maps of a modality follow.

Bits are summed as whole numbers of 2^-18 bit (UNITS_PER_BIT), so that every order of segments, rows
and ranks gives the same sums to the last digit, and the bins of a map add up to the total. The
rounding of one byte is at most 2e-6 bits in either direction. It is coarser than the resolution of
fp32 at 8 bits, so the -ln(1/256) of a uniform model counts as 8 bits in fp32 too. Sums of 64 bits
hold 3.5e13 bits: 10^12 bytes of 35 bits each.

    n payload bytes    P ids of a patch    S sums of a head
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np
import numpy.typing as npt

if TYPE_CHECKING:
    from bytelm.modalities.base import Bytes, Header

Floats = npt.NDArray[np.float64]
Ints = npt.NDArray[np.integer]
Int64s = npt.NDArray[np.int64]

UNITS_PER_BIT = 1 << 18
MAX_BITS = 1 << 14
"""Bits of one id from which on its score counts as not finite, as NaN does."""

MATCH_LENGTHS = (4, 6, 8)
MATCHES = (
    "no match",
    *(f"match of {k} bytes, {result}" for k in MATCH_LENGTHS for result in ("right", "wrong")),
)
"""Outcomes of the match candidates: whether the bytes before a byte occurred earlier (the longest
match counts), and whether the byte that followed them there was this one."""
_DISTANCES = ("0", "1", "2–3", "4–7", "8–15", "16–31", "32–63", "64–127", "128–255")
ERRORS = ("no prediction", *_DISTANCES)
"""Absolute errors of the codec features' first prediction of a byte."""

_NOT_FINITE = {"payload_units": "not_finite_payload", "frame_units": "not_finite_frame"}
"""Sums of units, and the counters of the ids in each whose score is not finite."""
_COMMON_COUNTERS = (*_NOT_FINITE, *_NOT_FINITE.values(), "payload_bytes", "segments")
_CONTEXT_EDGES = [0, *(16 << k for k in range(16))]
_CONTEXT_BIN = np.array([(c >> 4).bit_length() for c in range(0, 1 << 20, 16)], np.uint8)


def to_units(nats: Floats) -> Int64s:
    """Bits in units of 2^-18 bit, rounded.

    nats: [n]. Returns [n]; MAX_BITS where the nats are not finite or as large as that.
    """
    units = np.rint(nats * (UNITS_PER_BIT / math.log(2)))
    # fmin takes the limit in place of NaN.
    return np.fmin(units, MAX_BITS * UNITS_PER_BIT).astype(np.int64)


def not_finite(units: Int64s) -> int:
    """How many of some ids have a score that is not finite.

    units: [n] as `to_units` gives them.
    """
    return int((units >= MAX_BITS * UNITS_PER_BIT).sum())


def quotient_and_rest(values: Ints, divisor: int) -> tuple[Ints, Ints]:
    """Divide whole numbers [n] that are at least 0; several times as fast as numpy's `divmod`."""
    same_size = values.dtype.type(divisor)
    quotient = values // same_size
    return quotient, values - quotient * same_size


@dataclass(frozen=True)
class ScoredSegment:
    """A model's scores of one segment, or of the part of it that one row holds."""

    header: Header
    view: str
    patch: int
    """P."""
    offset: int
    """Index in the payload of the first byte of this part."""
    is_last: bool
    """Whether the segment ends with this part."""
    payload: Bytes
    """[n] payload bytes."""
    payload_nats: Floats
    """[n] -log p of each payload byte."""
    frame_nats: Floats
    """-log p of each other scored id: the preamble of a first piece, EOM, EOD."""
    context: Ints
    """[n] ids of the same document that the model saw before each byte."""
    patch_position: Ints
    """[n] position of each byte in its patch."""
    match: Bytes | None = None
    """[n] index in MATCHES; None where the model reads no codec features."""
    error: Bytes | None = None
    """[n] index in ERRORS; None where the model reads no codec features."""

    @cached_property
    def payload_units(self) -> Int64s:
        """[n] bits of each payload byte in units of 2^-18 bit."""
        return to_units(self.payload_nats)

    @cached_property
    def frame_units(self) -> Int64s:
        """Bits of each other scored id in units of 2^-18 bit."""
        return to_units(self.frame_nats)


@dataclass(frozen=True)
class Breakdown:
    """A partition of payload bytes into bins, whose bits a head sums."""

    name: str
    title: str
    """Its heading, such as "by channel"."""
    axis: str
    """The quantity that the labels are values of."""
    labels: tuple[str, ...]
    shape: tuple[int, ...] = ()
    """Sides of a grid, the first axis outermost; empty for one axis."""
    has_rest: bool = False
    """Whether the first label is that of bytes of which there is nothing to say; a map that has
    only such bytes is left out."""


@dataclass(frozen=True)
class BitMap:
    """Bits and bytes of each bin of a breakdown."""

    name: str
    title: str
    axis: str
    labels: tuple[str, ...]
    shape: tuple[int, ...]
    """Sides of a grid whose bins are in raster order; (bins,) for one axis."""
    bits: tuple[float, ...]
    bytes: tuple[int, ...]

    def to_dict(self) -> dict[str, Any]:
        """The map as JSON holds it."""
        return {name: _listed(value) for name, value in vars(self).items()}


class EvaluationHead:
    """Sums over segments from which the figures and maps of a modality follow.

    A modality's own head names `counters` and `breakdowns`, adds to them in `update`, and divides
    in `figures`. `sums` add up: the sum of two heads' vectors is that of all their segments.
    Figures are never means of means.
    """

    counters: ClassVar[tuple[str, ...]] = ()
    """Names of whole numbers that `update` counts beside those of every modality."""
    breakdowns: ClassVar[tuple[Breakdown, ...]] = ()
    """Maps beside those of every modality."""

    def __init__(self, patch: int) -> None:
        """Make a head with every sum at 0, for a model of patch size P."""
        common = _common_breakdowns(patch)
        # Common sums come first, so that the head of the total is the beginning of each other one.
        shapes: dict[str, tuple[int, ...]] = {}
        for counters, breakdowns in ((_COMMON_COUNTERS, common), (self.counters, self.breakdowns)):
            shapes |= dict.fromkeys(counters, (1,))
            shapes |= {breakdown.name: (2, len(breakdown.labels)) for breakdown in breakdowns}
        ends = np.cumsum([math.prod(shape) for shape in shapes.values()])
        self.sums: Int64s = np.zeros(int(ends[-1]), np.int64)
        """[S] every sum of the head."""
        parts = np.split(self.sums, ends[:-1])  # views
        self._sums: dict[str, Int64s] = {
            name: part.reshape(shape)
            for (name, shape), part in zip(shapes.items(), parts, strict=True)
        }
        self._breakdowns = (*common, *self.breakdowns)

    def update(self, segment: ScoredSegment) -> None:
        """Add a segment, or the part of it that a row holds."""
        units = segment.payload_units
        for name, ids in (("payload_units", units), ("frame_units", segment.frame_units)):
            self.count(name, ids.sum())
            self.count(_NOT_FINITE[name], not_finite(ids))
        self.count("payload_bytes", units.size)
        self.count("segments", segment.offset == 0)
        self.spread("patch_position", segment.patch_position, units)
        sixteens = np.minimum(segment.context >> 4, len(_CONTEXT_BIN) - 1)
        self.spread("context_position", _CONTEXT_BIN[sixteens], units)
        if segment.match is not None:
            self.spread("codec_match", segment.match, units)
        if segment.error is not None:
            self.spread("codec_error", segment.error, units)

    def count(self, name: str, amount: float) -> None:
        """Add a whole number to a counter."""
        self._sums[name] += int(amount)

    def spread(self, name: str, bins: Ints, units: Int64s) -> None:
        """Add bytes to the bins of a breakdown.

        Args:
            bins: [n] index of each byte's label.
            units: [n] bits of each byte, in units of 2^-18 bit.
        """
        sums, index = self._sums[name], bins.astype(np.intp)
        np.add.at(sums[0], index, units)  # exact, and several times as fast as bincount on text
        np.add.at(sums[1], index, 1)

    def counted(self, name: str) -> int:
        """The value of a counter."""
        return int(self._sums[name][0])

    def figures(self) -> dict[str, float]:
        """Figures by name; NaN where nothing was scored, or a score was not finite.

        `bits_per_byte` counts the bits of payload ids, `coded_bits_per_byte` those of every id that
        a decoder needs; both are per payload byte.
        """
        payload_bytes = self.counted("payload_bytes")
        coded_units = self.counted("payload_units") + self.counted("frame_units")
        coded = self.bits_per(payload_bytes, coded_units)
        return {
            "bits_per_byte": self.bits_per(payload_bytes),
            "coded_bits_per_byte": math.nan if self.counted("not_finite_frame") else coded,
        }

    def bits_per(self, count: float, units: int | None = None) -> float:
        """Bits divided by a count; NaN where it is 0, or a payload byte's score was not finite.

        units: of 2^-18 bit; those of all payload bytes by default.
        """
        if not count or self.counted("not_finite_payload"):
            return math.nan
        units = self.counted("payload_units") if units is None else units
        return units / (count * UNITS_PER_BIT)

    def maps(self) -> list[BitMap]:
        """The maps that have bytes; of one axis only the bins that have some."""
        maps = []
        for breakdown in self._breakdowns:
            sums = self._sums[breakdown.name]
            units, sizes = sums[0], sums[1]
            if not sizes[1 if breakdown.has_rest else 0 :].any():
                continue
            shown = np.arange(len(sizes)) if breakdown.shape else np.flatnonzero(sizes)
            maps.append(
                BitMap(
                    name=breakdown.name,
                    title=breakdown.title,
                    axis=breakdown.axis,
                    labels=tuple(breakdown.labels[i] for i in shown),
                    shape=breakdown.shape or (len(shown),),
                    bits=tuple((units[shown] / UNITS_PER_BIT).tolist()),
                    bytes=tuple(sizes[shown].tolist()),
                )
            )
        return maps


def _common_breakdowns(patch: int) -> tuple[Breakdown, ...]:
    """The maps of every modality."""
    return (
        Breakdown(
            "patch_position",
            "by position in the patch",
            "position in the patch",
            tuple(str(position) for position in range(patch)),
        ),
        Breakdown(
            "context_position",
            "by position in the context",
            "ids of the document before it",
            _ranges(_CONTEXT_EDGES),
        ),
        Breakdown("codec_match", "by match", "longest match", MATCHES, has_rest=True),
        Breakdown(
            "codec_error", "by error of a codec's prediction", "error", ERRORS, has_rest=True
        ),
    )


def _ranges(edges: Sequence[int]) -> tuple[str, ...]:
    """Labels of the ranges between edges, and of all above the last one."""
    pairs = itertools.pairwise(edges)
    return (*(f"{low:,}–{high - 1:,}" for low, high in pairs), f"{edges[-1]:,} and more")


def _listed(value: Any) -> Any:
    return list(value) if isinstance(value, tuple) else value

"""The evaluation head of images."""

from __future__ import annotations

from bytelm.modalities.base import FILE_VIEW
from bytelm.modalities.evaluation_head import Breakdown, EvaluationHead, ScoredSegment
from bytelm.modalities.image_layout import pixel_positions

GRID = 16
"""Lines and columns of the map over the picture."""


class ImageHead(EvaluationHead):
    """Bits per byte, and of decoded images per pixel and per dimension (a channel of a pixel); by
    channel, by byte of a 16-bit value, and over the picture.

    Pixels are counted in sixths, the part of one that a byte of 16-bit RGB holds, since a piece may
    begin inside a pixel.
    """

    counters = ("pixel_units", "pixel_sixths", "value_halves")
    breakdowns = (
        Breakdown("channel", "by channel", "channel", ("grey", "red", "green", "blue")),
        Breakdown("value_byte", "by byte of a 16-bit value", "byte", ("high", "low")),
        Breakdown(
            "picture",
            "over the picture",
            f"line and column, in {GRID}ths of the height and the width",
            tuple(f"{line + 1}, {column + 1}" for line in range(GRID) for column in range(GRID)),
            shape=(GRID, GRID),
        ),
    )

    def update(self, segment: ScoredSegment) -> None:
        super().update(segment)
        units, header = segment.payload_units, segment.header
        if segment.view == FILE_VIEW or not units.size:
            return
        is_deep, is_colour = segment.view == "deep", header.channels > 1
        line, column, channel, byte = pixel_positions(
            header, segment.view, segment.patch, segment.offset, units.size
        )
        self.count("pixel_units", units.sum())
        self.count("value_halves", units.size * (1 if is_deep else 2))
        self.count("pixel_sixths", units.size * 6 // (header.channels * (2 if is_deep else 1)))
        self.spread("channel", channel + is_colour, units)
        if is_deep:
            self.spread("value_byte", byte, units)
        cells = line * GRID // header.height * GRID + column * GRID // header.width
        self.spread("picture", cells, units)

    def figures(self) -> dict[str, float]:
        units = self.counted("pixel_units")
        return {
            **super().figures(),
            "bits_per_pixel": self.bits_per(self.counted("pixel_sixths") / 6, units),
            "bits_per_dimension": self.bits_per(self.counted("value_halves") / 2, units),
        }

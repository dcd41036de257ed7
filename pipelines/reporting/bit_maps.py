"""Where the bits go: the maps of an evaluation's heads as bars and as heat maps, in SVG."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import numpy as np
from markupsafe import Markup

from bytelm.modalities.base import Bytes
from bytelm.pipelines.reporting.bit_colours import scale_colour
from bytelm.pipelines.reporting.scales import linear_ticks, number_text, round_up

_ROW = 20
"""Height of a bar with the gap to the next one, in the SVG's units."""
_WIDTH, _VALUE = 420, 92
_CHARACTER = 6.6
_STRIPES = 36
MAX_BARS = 40
"""Bars of one map; of a longer one the bins with the most bits are shown."""


def draw_map(bit_map: Mapping[str, Any]) -> Markup:
    """Draw a map: a grid of two sides as a heat map, anything else as bars.

    Args:
        bit_map: an entry of an evaluation's `maps`, with `labels`, `bits`, `bytes` and `shape`.
    """
    shape = bit_map.get("shape") or [len(bit_map["labels"])]
    if len(shape) == 2 and min(shape) > 1:
        return _heat_map(bit_map, *shape)
    return _bars(bit_map)


def _rates(bit_map: Mapping[str, Any]) -> list[float]:
    """Bits per byte of each bin; NaN for a bin without bytes, or whose bits are no number."""
    pairs = zip(bit_map["bits"], bit_map["bytes"], strict=True)
    return [float(b) / n if n and b is not None else math.nan for b, n in pairs]


def _bars(bit_map: Mapping[str, Any]) -> Markup:
    rates, all_bits = _rates(bit_map), max(sum(b or 0 for b in bit_map["bits"]), 1e-12)
    filled = [i for i, rate in enumerate(rates) if math.isfinite(rate)]
    if len(filled) > MAX_BARS:
        most = sorted(filled, key=lambda i: -bit_map["bits"][i])[:MAX_BARS]
        filled = sorted(most)
    labels = [str(bit_map["labels"][i]) for i in filled]
    left = min(_CHARACTER * max((len(label) for label in labels), default=0) + 10, 180.0)
    top = round_up(max([rates[i] for i in filled] + [0.1]))
    scale = (_WIDTH - left - _VALUE) / top
    height = _ROW * len(filled) + 40
    bottom = _ROW * len(filled)
    parts = []
    for tick in linear_ticks(0, top, 4):
        at = left + tick * scale
        parts.append(
            Markup(
                '<line class="grid" x1="{0:.1f}" x2="{0:.1f}" y1="0" y2="{1}"/><text class="tick" '
                'text-anchor="middle" x="{0:.1f}" y="{2}">{3}</text>'
            ).format(at, bottom, bottom + 15, number_text(tick))
        )
    for row, (index, label) in enumerate(zip(filled, labels, strict=True)):
        share = bit_map["bits"][index] / all_bits
        width = max(rates[index] * scale, 1)
        shown = label if len(label) <= 25 else f"{label[:24]}…"
        parts.append(
            Markup(
                '<text class="tick" text-anchor="end" x="{:.1f}" y="{}">{}<title>{}</title></text>'
                '<rect class="bar" x="{:.1f}" y="{}" width="{:.1f}" height="{}" rx="2"/>'
                '<text class="value" x="{:.1f}" y="{}">{:.2f}<tspan class="muted"> · {}</tspan>'
                "</text>"
            ).format(
                *(left - 6, row * _ROW + 14, shown, label),
                *(left, row * _ROW + 3, width, _ROW - 6),
                *(left + width + 5, row * _ROW + 14, rates[index], _percent(share)),
            )
        )
    middle = left + (_WIDTH - left - _VALUE) / 2
    parts.append(
        Markup('<text class="name" text-anchor="middle" x="{:.1f}" y="{}">{}</text>').format(
            middle, height - 6, "bits per byte · share of the bits"
        )
    )
    return _svg(bit_map, height, Markup("").join(parts))


def _heat_map(bit_map: Mapping[str, Any], rows: int, columns: int) -> Markup:
    """A grid in the colours of surprise maps, from the least to the most bits of a cell."""
    rates = np.array(_rates(bit_map)).reshape(rows, columns)
    known = rates[np.isfinite(rates)]
    low, high = (float(known.min()), float(known.max())) if known.size else (0.0, 1.0)
    colours = scale_colour(np.nan_to_num((rates - low) / ((high - low) or 1.0)))
    side = min(_WIDTH / columns, 260 / rows)
    left = (_WIDTH - side * columns) / 2
    cells = [
        _cell(left + column * side, row * side, side, side, colours[row, column])
        + Markup("<title>{:.3f} bits/byte</title></rect>").format(rates[row, column])
        for row in range(rows)
        for column in range(columns)
        if math.isfinite(rates[row, column])
    ]
    bottom, length = side * rows + 14, 180 / _STRIPES
    start = _WIDTH / 2 - 90
    for number, colour in enumerate(scale_colour(np.linspace(0, 1, _STRIPES))):
        cells.append(_cell(start + number * length, bottom, length + 0.5, 10, colour))
        cells.append(Markup("</rect>"))
    cells.append(
        Markup(
            '<text class="tick" text-anchor="end" x="{:.1f}" y="{:.1f}">{:.2f}</text>'
            '<text class="tick" x="{:.1f}" y="{:.1f}">{:.2f}</text>'
            '<text class="name" text-anchor="middle" x="{:.1f}" y="{:.1f}">bits per byte</text>'
        ).format(
            *(start - 6, bottom + 9, low, start + 186, bottom + 9, high),
            *(_WIDTH / 2, bottom + 28),
        )
    )
    return _svg(bit_map, bottom + 34, Markup("").join(cells))


def _cell(x: float, y: float, width: float, height: float, colour: Bytes) -> Markup:
    """An opened rectangle."""
    return Markup('<rect x="{:.1f}" y="{:.1f}" width="{:.1f}" height="{:.1f}" fill="#{}">').format(
        x, y, width, height, bytes(colour).hex()
    )


def _svg(bit_map: Mapping[str, Any], height: float, body: Markup) -> Markup:
    return Markup(
        '<svg class="chart" viewBox="0 0 {} {:.0f}" role="img" aria-label="{}">{}</svg>'
    ).format(_WIDTH, height, f"bits per byte {bit_map.get('title', '')}", body)


def _percent(share: float) -> str:
    return f"{share:.0%}" if share >= 0.095 else f"{share:.1%}"

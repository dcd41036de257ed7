"""Line charts as SVG: labelled axes, direct labels, and values for the page's script to read out.

Colours are classes (`s1` to `s8`) that the page's stylesheet defines for light and dark. Series
differ by dashes and markers too.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
from markupsafe import Markup

from bytelm.pipelines.reporting.curves import Curve, value_range
from bytelm.pipelines.reporting.scales import Scale, Values, number_text, padded

DASHES = ("", "9 4", "3 3", "12 4 3 4", "1 4", "16 5", "6 3 1 3", "2 6")
MARKERS = ("circle", "square", "triangle", "diamond")
MAX_LABEL = 18
"""Characters of a label."""
MAX_MARKERS = 40
"""Places of a curve from which on markers would hide it."""
COLOURS = 8
_CHARACTER = 6.6
"""Width of a character of a label, in the SVG's units; its font size is 12."""
_LINE = 14.0
"""Distance of two labels above one another."""
_TOP, _BOTTOM, _EDGE = 12, 42, 14
_TICKS = 5


@dataclass(frozen=True)
class Series:
    """One curve of a chart."""

    name: str
    curve: Curve
    number: int
    """Its colour, from 0. Dashes and markers follow the order of a chart's series."""
    has_markers: bool = False
    """Whether every place of the curve has a marker, as few evaluations have."""
    is_labelled: bool = True


@dataclass(frozen=True)
class Level:
    """A horizontal line, as the bits per byte of a codec."""

    name: str
    value: float


@dataclass(frozen=True)
class Chart:
    """A line chart over training steps."""

    title: str
    unit: str
    """Title of the vertical axis, with the unit."""
    series: Sequence[Series]
    levels: Sequence[Level] = field(default=())
    x_title: str = "training step"
    is_log_x: bool = False
    is_log_y: bool = False
    note: str = ""
    """A sentence below the chart."""


@dataclass(frozen=True)
class _Frame:
    """The scales of a chart and the size of its picture."""

    x: Scale
    y: Scale
    width: float
    height: float


def is_empty(chart: Chart) -> bool:
    """Whether a chart has nothing to show."""
    return not any(series.curve.steps.size for series in chart.series)


def draw(chart: Chart, width: float = 420, height: float = 270) -> Markup:
    """Draw a chart that is not empty; `width` and `height` are in units of about a pixel."""
    labels = [s.name for s in chart.series if s.is_labelled] + [v.name for v in chart.levels]
    right = _EDGE + max(_CHARACTER * max((len(_short(n)) for n in labels), default=0), 20)
    frame = _frame(chart, width, height, right)
    numbered = list(enumerate(chart.series))
    parts = [_axes(chart, frame)]
    parts += [_envelope(series, frame) for series in chart.series if not series.has_markers]
    parts += [_level(level, frame) for level in chart.levels]
    parts += [_line(series, number, frame) for number, series in numbered]
    parts.append(_labels(chart, frame))
    body = Markup("\n").join(parts)
    return Markup(
        '<svg class="chart" viewBox="0 0 {} {}" role="img" aria-label="{}" data-chart="{}">{}'
        '<line class="cross" x1="0" x2="0" y1="{}" y2="{}"/></svg>'
    ).format(
        *(_number(width), _number(height), _description(chart), _read_out(chart, frame)),
        *(body, _number(frame.y.stop), _number(frame.y.start)),
    )


def _frame(chart: Chart, width: float, height: float, right: float) -> _Frame:
    shown = [s.curve for s in chart.series]
    steps = np.concatenate([c.steps for c in shown])
    values = value_range(shown)
    assert values is not None, "an empty chart is not drawn"
    levels = [level.value for level in chart.levels]
    low, high = padded(min([values[0], *levels]), max([values[1], *levels]), chart.is_log_y)
    first, last = float(steps.min()), float(steps.max())
    if not chart.is_log_x:
        first = 0.0
    y = Scale(low, high, height - _BOTTOM, _TOP, chart.is_log_y)
    left = 32 + _CHARACTER * max(len(number_text(tick)) for tick in y.ticks(_TICKS))
    x = Scale(first, last if last > first else first + 1, left, width - right, chart.is_log_x)
    return _Frame(x, y, width, height)


def _axes(chart: Chart, frame: _Frame) -> Markup:
    """Grid lines, ticks with numbers, and the titles of both axes."""
    x, y = frame.x, frame.y
    parts = []
    for value in y.ticks(_TICKS):
        at = _number(float(y(value)))
        parts.append(
            Markup(
                '<line class="grid" x1="{}" x2="{}" y1="{}" y2="{}"/>'
                '<text class="tick" text-anchor="end" x="{}" y="{}" dy="4">{}</text>'
            ).format(
                *(_number(x.start), _number(x.stop), at, at),
                *(_number(x.start - 6), at, number_text(value)),
            )
        )
    for value in x.ticks(5 if frame.width < 600 else 8):
        at = _number(float(x(value)))
        parts.append(
            Markup(
                '<line class="grid" x1="{}" x2="{}" y1="{}" y2="{}"/>'
                '<text class="tick" text-anchor="middle" x="{}" y="{}">{}</text>'
            ).format(at, at, y.start, y.stop, at, y.start + 16, number_text(value))
        )
    middle = _number((y.start + y.stop) / 2)
    parts.append(
        Markup(
            '<line class="axis" x1="{}" x2="{}" y1="{}" y2="{}"/>'
            '<text class="name" text-anchor="middle" x="{}" y="{}">{}</text>'
            '<text class="name" text-anchor="middle" transform="translate(13 {}) rotate(-90)">{}'
            "</text>"
        ).format(
            *(_number(x.start), _number(x.stop), y.start, y.start),
            *(_number((x.start + x.stop) / 2), frame.height - 8),
            chart.x_title + (" (logarithmic)" if chart.is_log_x else ""),
            *(middle, chart.unit + (" (logarithmic)" if chart.is_log_y else "")),
        )
    )
    return Markup("").join(parts)


def _envelope(series: Series, frame: _Frame) -> Markup:
    curve = series.curve
    if curve.steps.size < 2:
        return Markup("")
    x = frame.x(curve.steps)
    there = _points(x, frame.y(curve.high))
    back = _points(x[::-1], frame.y(curve.low)[::-1])
    return Markup('<path class="envelope s{}" d="M{}L{}Z"/>').format(
        _colour(series.number), there, back
    )


def _line(series: Series, number: int, frame: _Frame) -> Markup:
    curve = series.curve
    if not curve.steps.size:
        return Markup("")
    x, y = frame.x(curve.steps), frame.y(curve.smoothed)
    colour = _colour(series.number)
    line = Markup('<path class="line s{}" stroke-dasharray="{}" d="M{}"/>').format(
        colour, DASHES[number % len(DASHES)] or "none", _points(x, y)
    )
    if (series.has_markers and curve.steps.size <= MAX_MARKERS) or curve.steps.size == 1:
        kind = MARKERS[number % len(MARKERS)]
        places = zip(x.tolist(), y.tolist(), strict=True)
        line += Markup('<path class="mark s{}" d="{}"/>').format(
            colour, "".join(_marker(kind, *place) for place in places)
        )
    return line


def _level(level: Level, frame: _Frame) -> Markup:
    at = _number(float(frame.y(level.value)))
    return Markup('<line class="level" x1="{}" x2="{}" y1="{}" y2="{}"/>').format(
        _number(frame.x.start), _number(frame.x.stop), at, at
    )


def _labels(chart: Chart, frame: _Frame) -> Markup:
    """The name of each curve and level at its right end, moved apart where they would overlap."""
    wanted = [
        (float(frame.y(s.curve.smoothed[-1])), s.name, f"label t{_colour(s.number)}")
        for s in chart.series
        if s.is_labelled and s.curve.steps.size
    ]
    wanted += [(float(frame.y(v.value)), v.name, "label muted") for v in chart.levels]
    wanted.sort()
    places = _apart([place for place, _, _ in wanted], frame.y.stop, frame.y.start)
    return Markup("").join(
        Markup('<text class="{}" x="{}" y="{}" dy="4">{}<title>{}</title></text>').format(
            kind, _number(frame.x.stop + 6), _number(place), _short(name), name
        )
        for place, (_, name, kind) in zip(places, wanted, strict=True)
    )


def _apart(places: list[float], top: float, bottom: float) -> list[float]:
    """Sorted places moved so that neighbours are a line apart, between top and bottom."""
    moved: list[float] = []
    for place in places:
        moved.append(max(place, moved[-1] + _LINE if moved else top))
    limit = max(bottom, top + _LINE * (len(places) - 1))
    for number in range(len(moved) - 1, -1, -1):
        moved[number] = min(moved[number], limit)
        limit = moved[number] - _LINE
    return moved


def _read_out(chart: Chart, frame: _Frame) -> str:
    """The values of a chart as JSON, for the script that shows them under the pointer."""
    series = [
        {
            "name": s.name,
            "colour": _colour(s.number),
            "x": _rounded(frame.x(s.curve.steps)),
            "y": _rounded(frame.y(s.curve.smoothed)),
            "step": [number_text(round(step)) for step in s.curve.steps.tolist()],
            "value": [number_text(value) for value in s.curve.smoothed.tolist()],
        }
        for s in chart.series
        if s.curve.steps.size
    ]
    return json.dumps({"axis": chart.x_title, "series": series}, separators=(",", ":"))


def _description(chart: Chart) -> str:
    """The chart in words, for those who do not see it."""
    ends = [
        f"{s.name} ends at {number_text(float(s.curve.smoothed[-1]))}"
        for s in chart.series
        if s.curve.steps.size
    ]
    return f"{chart.title}, {chart.unit} over {chart.x_title}: {', '.join(ends)}"


def _marker(kind: str, x: float, y: float) -> str:
    if kind == "circle":
        return f"M{x - 3.5:.1f} {y:.1f}a3.5 3.5 0 1 0 7 0a3.5 3.5 0 1 0 -7 0Z"
    if kind == "square":
        return f"M{x - 3:.1f} {y - 3:.1f}h6v6h-6Z"
    if kind == "triangle":
        return f"M{x:.1f} {y - 4:.1f}l4 7h-8Z"
    return f"M{x:.1f} {y - 4.5:.1f}l4.5 4.5l-4.5 4.5l-4.5 -4.5Z"


def _colour(number: int) -> int:
    return number % COLOURS + 1


def _points(x: Values, y: Values) -> str:
    places = zip(x.tolist(), y.tolist(), strict=True)
    return "L".join(f"{across:.1f} {down:.1f}" for across, down in places)


def _rounded(values: Values) -> list[float]:
    return [round(value, 1) for value in values.tolist()]


def _short(name: str) -> str:
    """A name without its middle where it is long: names of runs often differ at their ends."""
    half = MAX_LABEL // 2
    return name if len(name) <= MAX_LABEL else f"{name[: half - 1]}…{name[-half:]}"


def _number(value: float) -> str:
    return f"{value:.1f}".removesuffix(".0")

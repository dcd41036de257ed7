"""Plots that keep the size of their letters at any width of the page.

The drawing is stretched to its column, while the axes beside and below it are not: their numbers
stand at shares of the length in SVG without a view box.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from markupsafe import Markup

from bytelm.pipelines.reporting.scales import linear_ticks


@dataclass(frozen=True)
class Axis:
    """Name with its unit, and the numbers along an axis."""

    name: str
    ticks: Sequence[tuple[float, str]]
    """Share of the length, 0 at the left or bottom and 1 at the right or top, and the number."""


def time_axis(seconds: float) -> Axis:
    """The axis of a sound from its beginning to `seconds`."""
    unit, factor = ("s", 1) if seconds >= 0.1 else ("ms", 1000)
    ticks = linear_ticks(0, seconds * factor, 5)
    return Axis(f"time in {unit}", [(t / (seconds * factor), f"{t:g}") for t in ticks])


def plot(drawing: Markup, x: Axis, y: Axis, height: int) -> Markup:
    """A drawing with its axes.

    Args:
        drawing: an image, or SVG that may be stretched.
        height: pixels of the drawing.
    """
    y_numbers = Markup().join(
        Markup('<text x="100%" dx="-6" y="{:.2f}%" dy="{}" text-anchor="end">{}</text>').format(
            100 * (1 - share), _shift(share), number
        )
        for share, number in y.ticks
    )
    x_numbers = Markup().join(
        Markup('<text x="{:.2f}%" y="13" text-anchor="{}">{}</text>').format(
            100 * share, _anchor(share), number
        )
        for share, number in x.ticks
    )
    return Markup(
        '<div class="plot"><span class="plot-name">{y_name}</span>'
        '<svg class="plot-y" width="44" height="{height}" aria-hidden="true">{y_numbers}</svg>'
        '<div class="plot-area">{drawing}</div>'
        '<svg class="plot-x" width="100%" height="16" aria-hidden="true">{x_numbers}</svg>'
        '<span class="plot-name plot-x-name">{x_name}</span></div>'
    ).format(
        y_name=y.name,
        height=height,
        y_numbers=y_numbers,
        drawing=drawing,
        x_numbers=x_numbers,
        x_name=x.name,
    )


def _shift(share: float) -> str:
    """Shift of a number's base line that keeps it inside the height of the plot."""
    return "0.8em" if share > 0.95 else "-0.1em" if share < 0.05 else "0.35em"


def _anchor(share: float) -> str:
    return "start" if share < 0.03 else "end" if share > 0.97 else "middle"

"""Colours for bits: dark where a model expected the byte, bright where the byte surprised it.

The scale goes from 0 to 8 bits, the cost of a byte that a model knows nothing about; all above has
the last colour. Lightness rises with the bits, so the scale can be read without seeing hues, and
the same colours serve on a light and on a dark page.

n values    K anchors of the scale
"""

from __future__ import annotations

import functools

import numpy as np
import numpy.typing as npt
from markupsafe import Markup

from bytelm.modalities.base import Bytes

Floats = npt.NDArray[np.float64]

FULL_BITS = 8.0
"""Bits at the bright end of the scale."""
LEVELS = 32
"""Steps of the scale in texts, each with its class in the page's style sheet."""
LEGEND_TICKS = (0.0, 2.0, 4.0, 6.0, 8.0)
_LEGEND_STRIPES = 64

_ANCHORS = np.array(
    [
        *((20, 18, 46), (42, 17, 86), (86, 20, 110), (136, 34, 106), (186, 54, 85)),
        *((227, 89, 51), (249, 142, 9), (249, 201, 50), (252, 255, 164)),
    ],
    np.float64,
)  # [K 3], after "inferno" of matplotlib, whose black is raised so that it shows on a dark page


def bit_colour(bits: npt.ArrayLike) -> Bytes:
    """Colours [..., 3] of values [...] in bits; values outside of 0 to 8 take the end's colour."""
    return scale_colour(_share(bits))


def scale_colour(share: npt.ArrayLike) -> Bytes:
    """Colours [..., 3] of places [...] on the scale, from 0 (dark) to 1 (bright)."""
    place = np.clip(np.asarray(share, np.float64), 0, 1) * (len(_ANCHORS) - 1)
    steps = np.arange(len(_ANCHORS))
    channels = [np.interp(place, steps, anchor) for anchor in _ANCHORS.T]
    return np.stack(channels, -1).round().astype(np.uint8)


def bit_level(bits: npt.ArrayLike) -> npt.NDArray[np.int64]:
    """Levels [...] from 0 to `LEVELS` of values [...] in bits: the class `bits-LEVEL` of a page."""
    return (_share(bits) * LEVELS).round().astype(np.int64)


def level_colours() -> Bytes:
    """[LEVELS + 1, 3] colour of each level."""
    return scale_colour(np.arange(LEVELS + 1) / LEVELS)


def ink_on(colours: Bytes) -> list[str]:
    """Black or white for each of the colours [n 3], whichever contrasts more: 4.5 or above."""
    light = luminance(colours)
    return ["#000000" if (y + 0.05) ** 2 > 1.05 * 0.05 else "#ffffff" for y in light]


def luminance(colours: Bytes) -> Floats:
    """[n] relative luminance of colours [n 3], by WCAG 2."""
    value = colours / 255
    linear = np.where(value <= 0.04045, value / 12.92, ((value + 0.055) / 1.055) ** 2.4)
    return np.asarray(linear @ np.array([0.2126, 0.7152, 0.0722]))


def hex_colour(colour: Bytes) -> str:
    """`#rrggbb` of a colour [3]."""
    return "#" + bytes(colour.tolist()).hex()


@functools.cache
def bit_css() -> str:
    """Style rules of the classes `bits-0` to `bits-32`: background and ink."""
    colours = level_colours()
    return "\n".join(
        f".bits-{level}{{background:{hex_colour(colour)};color:{ink}}}"
        for level, (colour, ink) in enumerate(zip(colours, ink_on(colours), strict=True))
    )


@functools.cache
def bit_legend(unit: str = "bits per byte", bytes_per_unit: int = 1) -> Markup:
    """The scale with its ticks, as SVG that is as wide as its column.

    Args:
        unit: name of what the numbers count.
        bytes_per_unit: factor of the numbers, 3 for the bits of an RGB pixel.
    """
    stripes = Markup().join(
        Markup('<rect x="{:.3f}%" width="{:.3f}%" height="12" fill="{}"/>').format(
            100 * i / _LEGEND_STRIPES,
            100 / _LEGEND_STRIPES + 0.2,  # no seams where the widths are rounded
            hex_colour(colour),
        )
        for i, colour in enumerate(scale_colour(np.arange(_LEGEND_STRIPES) / (_LEGEND_STRIPES - 1)))
    )
    numbers = [f"{tick * bytes_per_unit:g}" for tick in LEGEND_TICKS]
    numbers[-1] += "+"
    labels = Markup().join(
        Markup('<text x="{:.2f}%" y="26" text-anchor="{}">{}</text>').format(
            100 * _share(tick), _anchor(tick), number
        )
        for tick, number in zip(LEGEND_TICKS, numbers, strict=True)
    )
    return Markup(
        '<div class="bit-legend"><span>{unit}</span>'
        '<svg width="100%" height="30" role="img" aria-label="Scale of colours from 0 to {top} '
        '{unit}">{stripes}{labels}</svg></div>'
    ).format(unit=unit, top=numbers[-1], stripes=stripes, labels=labels)


def _anchor(tick: float) -> str:
    return {0.0: "start", FULL_BITS: "end"}.get(tick, "middle")


def _share(bits: npt.ArrayLike) -> Floats:
    """Places [...] on the scale of values [...] in bits."""
    return np.asarray(np.clip(np.asarray(bits, np.float64) / FULL_BITS, 0, 1))

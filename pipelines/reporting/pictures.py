"""Pictures on a page: enlarged without blur where they are small, reduced where they are large."""

from __future__ import annotations

import PIL.Image
from markupsafe import Markup

from bytelm.pipelines.reporting.media_files import data_uri, png_bytes

MAX_SIDE = 320
"""Pixels of the longer side of a picture in the page; larger ones are reduced."""
SHOWN_SIDE = 256


def picture_element(
    picture: PIL.Image.Image,
    alt: str,
    caption: str = "",
    given_lines: int = 0,
    side: int = SHOWN_SIDE,
) -> Markup:
    """A figure with a picture.

    Args:
        alt: words for those who do not see it.
        caption: line below it.
        given_lines: lines of the picture, from the top, that a bar at its left side marks.
        side: pixels of the screen that the longer side of a small picture is enlarged to, or less.
    """
    factor = -(-max(picture.size) // MAX_SIDE)
    shown = picture.reduce(factor) if factor > 1 else picture
    scale = max(1, side // max(shown.size))
    width, height = shown.size
    uri = data_uri("image/png", png_bytes(shown))
    drawing = Markup('<img width="{}" height="{}" alt="{}" src="{}">').format(
        width * scale, height * scale, alt, uri
    )
    if given_lines:
        bar = max(1, width // 32)
        drawing = Markup(
            '<svg width="{}" height="{}" viewBox="{} 0 {} {}" role="img" aria-label="{}">'
            '<rect class="given-bar" x="{}" width="{}" height="{}"/>'
            '<image width="{}" height="{}" href="{}"/></svg>'
        ).format(
            *((width + 2 * bar) * scale, height * scale, -2 * bar, width + 2 * bar, height, alt),
            *(-2 * bar, bar, given_lines / factor),
            *(width, height, uri),
        )
    return Markup('<figure class="picture">{}{}</figure>').format(
        drawing, Markup("<figcaption>{}</figcaption>").format(caption) if caption else ""
    )

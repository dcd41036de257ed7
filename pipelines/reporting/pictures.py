"""Pictures on a page: enlarged without blur where they are small, reduced where they are large."""

from __future__ import annotations

import PIL.Image
from markupsafe import Markup

from bytelm.pipelines.reporting.media_files import data_uri, png_bytes

MAX_SIDE = 512
"""Pixels of the longer side of a picture in the page; larger ones are reduced."""
SHOWN_SIDE = 256
"""Pixels of the screen that the longer side of a small picture is enlarged to, or a little less."""


def picture_element(picture: PIL.Image.Image, alt: str, caption: str | Markup = "") -> Markup:
    """A figure with a picture.

    Args:
        alt: words for those who do not see it.
        caption: line below it.
    """
    factor = -(-max(picture.size) // MAX_SIDE)
    shown = picture.reduce(factor) if factor > 1 else picture
    scale = max(1, SHOWN_SIDE // max(shown.size))
    return Markup(
        '<figure class="picture"><img width="{}" height="{}" alt="{}" src="{}">{}</figure>'
    ).format(
        shown.width * scale,
        shown.height * scale,
        alt,
        data_uri("image/png", png_bytes(shown)),
        Markup("<figcaption>{}</figcaption>").format(caption) if caption else "",
    )

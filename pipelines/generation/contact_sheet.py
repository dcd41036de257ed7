"""A contact sheet: many images in one."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path

import PIL.Image

GAP = 2
"""White pixels between images and around them."""


def write_sheet(images: Sequence[Path], out: Path) -> Path:
    """Lay images on white in about as many rows as columns, in their order; returns `out`."""
    opened = [PIL.Image.open(path) for path in images]
    columns = math.ceil(math.sqrt(len(opened)))
    rows = math.ceil(len(opened) / columns)
    width = GAP + max(image.width for image in opened)
    height = GAP + max(image.height for image in opened)
    sheet = PIL.Image.new("RGB", (GAP + columns * width, GAP + rows * height), "white")
    for place, image in enumerate(opened):
        row, column = divmod(place, columns)
        sheet.paste(image.convert("RGB"), (GAP + column * width, GAP + row * height))
    sheet.save(out)
    return out

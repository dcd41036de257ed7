"""Contact sheets: many images laid out in one."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path

import PIL.Image

GAP = 2
"""White pixels between images and around them."""


def write_sheet(images: Sequence[Path], out: Path) -> Path:
    """Lay images on white in a grid that is about square, row by row; return `out`."""
    opened = [PIL.Image.open(path) for path in images]
    columns = math.ceil(math.sqrt(len(opened)))
    rows = math.ceil(len(opened) / columns)
    width = GAP + max(image.width for image in opened)
    height = GAP + max(image.height for image in opened)
    sheet = PIL.Image.new("RGB", (GAP + columns * width, GAP + rows * height), "white")
    for number, image in enumerate(opened):
        row, column = divmod(number, columns)
        sheet.paste(image.convert("RGB"), (GAP + column * width, GAP + row * height))
    sheet.save(out)
    return out

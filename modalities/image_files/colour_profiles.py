"""Conversion of colours by an embedded ICC profile to sRGB.

A profile never refuses pixels: where it cannot be used, the colours stay as they are, with a note.
"""

from __future__ import annotations

import io
from functools import lru_cache
from typing import NamedTuple

import numpy as np
import PIL.Image
import PIL.ImageCms

SRGB_TOLERANCE = 2
"""A profile that changes no colour by more levels than this is taken as sRGB itself: the profiles
that programs embed as sRGB differ in their tables by so much."""

CONVERTED_NOTE = "converted to sRGB by the file's colour profile"
BROKEN_NOTE = "colours taken as they are, the profile cannot be used"
CMYK_NOTE = "CMYK without a profile converted by the plain formula"


class _Conversion(NamedTuple):
    """How the colours of a profile become sRGB."""

    transform: PIL.ImageCms.ImageCmsTransform | None
    """None where the colours stay as they are."""
    mode: str = ""
    """The mode that the transform takes; it gives RGB."""
    note: str = ""
    """Empty where there is nothing to say."""


_ALPHA_MODES = ("LA", "RGBA")
_UNCHANGED = _Conversion(None)
_MODES = {"RGB ": "RGB", "GRAY": "L", "CMYK": "CMYK"}
"""Modes of images by the names of colour spaces in profiles."""


def to_srgb(image: PIL.Image.Image, profile: bytes, notes: list[str]) -> PIL.Image.Image:
    """Convert an image of mode L, LA, RGB, RGBA or CMYK by an ICC profile; b"" stands for none.

    Returns the image in L, LA, RGB or RGBA. Adds to `notes` what was done.
    """
    colours = image.convert(image.mode.removesuffix("A")) if image.mode in _ALPHA_MODES else image
    conversion = _conversion(profile, colours.mode) if profile else _UNCHANGED
    changes = [conversion.note] if conversion.note else []
    if colours.mode == "CMYK" and conversion.transform is None:
        changes.append(CMYK_NOTE)
    notes.extend(note for note in changes if note not in notes)
    if conversion.transform is None:
        return image.convert("RGB") if image.mode == "CMYK" else image
    converted = conversion.transform.apply(colours.convert(conversion.mode))
    if colours.mode == "L":
        converted = converted.getchannel(1)
    if image.mode in _ALPHA_MODES:
        converted.putalpha(image.getchannel("A"))
    return converted


def changes_colours(profile: bytes, mode: str) -> bool:
    """Whether an ICC profile (b"" for none) changes colours of an image of mode L, RGB or CMYK."""
    return bool(profile) and _conversion(profile, mode).transform is not None


@lru_cache(maxsize=8)
def _conversion(profile: bytes, mode: str) -> _Conversion:
    """The conversion from a profile to sRGB, for images of mode L, RGB or CMYK."""
    try:
        source = PIL.ImageCms.ImageCmsProfile(io.BytesIO(profile))
        takes = _MODES.get(source.profile.xcolor_space, "")
        if takes != mode and (mode, takes) != ("L", "RGB"):  # grey images have profiles of screens
            return _Conversion(None, note=BROKEN_NOTE)
        target = PIL.ImageCms.createProfile("sRGB")
        transform = PIL.ImageCms.buildTransform(source, target, takes, "RGB")
        colours = _sample_colours(mode).convert(takes)
        converted = np.asarray(transform.apply(colours), np.int16)
    except (PIL.ImageCms.PyCMSError, OSError, ValueError, TypeError):
        return _Conversion(None, note=BROKEN_NOTE)
    if mode != "CMYK":
        unchanged = np.asarray(colours.convert("RGB"), np.int16)
        if np.abs(converted - unchanged).max() <= SRGB_TOLERANCE:
            return _UNCHANGED
    return _Conversion(transform, takes, CONVERTED_NOTE)


def _sample_colours(mode: str) -> PIL.Image.Image:
    """An image of all levels of grey, or of a lattice of colours."""
    if mode == "L":
        return PIL.Image.fromarray(np.arange(256, dtype=np.uint8)[None])
    levels = np.linspace(0, 255, 9).astype(np.uint8)
    lattice = np.stack(np.meshgrid(*[levels] * len(mode), indexing="ij"), -1)
    return PIL.Image.frombytes(mode, (lattice.size // len(mode), 1), lattice.tobytes())

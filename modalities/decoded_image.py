"""The form in which every image decoder hands on an image, and its way to 8-bit pixels.

h lines    w pixels of a line    c channels
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt
import PIL.Image

from bytelm.modalities.base import Limits, MediaError
from bytelm.modalities.colour_profiles import to_srgb

BAND_PIXELS = 1 << 20
"""Pixels that are converted at once, which bounds memory."""
FEW_LEVELS = 16

DEEP_NOTE = "16 bits kept as 8"
NO_END_NOTE = "no end marker"
SEVERAL_NOTE = "first of several pictures"
FEW_LEVELS_NOTE = "few levels left: 12-bit data in 16 bits?"

Samples = npt.NDArray[np.uint16]


@dataclass
class DecodedImage:
    """The first frame of an image file, as the file stores it."""

    width: int
    height: int
    channels: int
    """1 for grey, 3 for colour, without alpha."""
    bands: Iterable[PIL.Image.Image] = ()
    """Bands of whole lines from top to bottom, of 8 bits, in the modes 1, L, LA, P, RGB, RGBA and
    CMYK. `info["transparency"]` is Pillow's. Empty where the file has more than 8 bits."""
    samples: Samples | None = None
    """[h w c] of a file of more than 8 bits, on the full scale of 16; c of 2 or 4 has alpha."""
    transparent: tuple[int, ...] = ()
    """[c] samples of a transparent colour."""
    orientation: int = 1
    """EXIF's number: how the pixels have to be turned."""
    profile: bytes = b""
    """ICC profile of the colours."""
    notes: list[str] = field(default_factory=list)
    """What decoding changed, as in `Sample.notes`."""


def check_size(width: int, height: int, channels: int, limits: Limits) -> None:
    """Raise MediaError for an image without pixels, or one above the limits."""
    if not width or not height:
        raise MediaError("empty", f"an image of {width} x {height} pixels")
    if max(width, height) > limits.max_side or width * height * channels > limits.max_bytes:
        raise MediaError("over the limit", f"an image of {width} x {height} pixels")


def band_lines(width: int) -> int:
    """Lines of a band of an image of this width."""
    return max(1, BAND_PIXELS // width)


def bands_of(image: PIL.Image.Image) -> Iterator[PIL.Image.Image]:
    """Cut an image into bands of whole lines, whose conversion needs little memory."""
    lines = band_lines(image.width)
    if image.height <= lines:
        yield image
        return
    for top in range(0, image.height, lines):
        yield image.crop((0, top, image.width, min(top + lines, image.height)))


def to_pixels(image: DecodedImage) -> bytes:
    """[h w c] 8-bit pixels in sRGB, laid on white, not yet turned. Adds to `image.notes`."""
    bands = image.bands if image.samples is None else _reduce(image, image.samples)
    return b"".join(_band_pixels(band, image) for band in bands)


def _band_pixels(band: PIL.Image.Image, image: DecodedImage) -> bytes:
    """[h w c] of a band."""
    if band.mode == "La":
        band = band.convert("LA")
    elif band.mode == "RGBa":
        band = band.convert("RGBA")
    has_alpha = band.mode in ("LA", "RGBA", "PA") or "transparency" in band.info
    if image.channels == 1:
        plain = band.convert("LA" if has_alpha else "L")
    elif band.mode == "CMYK":
        plain = band
    else:
        plain = band.convert("RGBA" if has_alpha else "RGB")
    plain = to_srgb(plain, image.profile, image.notes)
    if has_alpha:
        plain = _on_white(plain)
    return plain.getchannel(0).tobytes() if image.channels == 1 else plain.tobytes()


def _on_white(image: PIL.Image.Image) -> PIL.Image.Image:
    """A transparent image on a white ground."""
    image = image.convert("RGBA")
    white = PIL.Image.new("RGB", image.size, (255, 255, 255))
    white.paste(image, mask=image)
    return white


# --- 16 bits to 8 ---


def _reduce(image: DecodedImage, samples: Samples) -> Iterator[PIL.Image.Image]:
    """Bands of the upper 8 bits of 16-bit samples. Adds to the notes."""
    image.notes.append(DEEP_NOTE)
    used = np.zeros(256, bool)
    lines = band_lines(image.width)
    for top in range(0, image.height, lines):
        deep = samples[top : top + lines]
        band = (deep >> 8).astype(np.uint8)
        if image.transparent:
            band[(deep == np.array(image.transparent, np.uint16)).all(axis=2)] = 255
        used[np.unique(band[:, :, : image.channels])] = True
        yield PIL.Image.fromarray(band[:, :, 0] if band.shape[2] == 1 else band)
    if used.sum() <= FEW_LEVELS and _has_more_levels(image, samples):
        image.notes.append(FEW_LEVELS_NOTE)


def _has_more_levels(image: DecodedImage, samples: Samples) -> bool:
    """Whether the samples of colours have more than FEW_LEVELS levels before they are reduced."""
    lines = band_lines(image.width)
    levels = np.zeros(1 << 16, bool)
    for top in range(0, image.height, lines):
        levels[samples[top : top + lines, :, : image.channels]] = True
    return int(levels.sum()) > FEW_LEVELS


def fill_scale(image: DecodedImage, bits: int) -> None:
    """Move samples that lie in the low `bits` of 16 up to the full scale.

    Writers of 12-bit data put it low or high into 16 bits. It lies low where no sample has a bit
    above `bits`, and some sample has one below those that data put high would have.
    """
    samples = image.samples
    assert samples is not None
    below = (1 << (16 - bits)) - 1
    if int(samples.max()) < 1 << bits and bool((samples & below).any()):
        samples <<= 16 - bits
        image.transparent = tuple(value << (16 - bits) & 0xFFFF for value in image.transparent)

"""Canonical pixels of a decoded image: sRGB, laid on white, of 8 bits or, where asked, of 16.

h lines    n lines of a band    w pixels of a line    c channels    v values of a pixel, with alpha
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator

import numpy as np
import PIL.Image

from bytelm.modalities.image_files.colour_profiles import changes_colours, to_srgb
from bytelm.modalities.image_files.decoded_image import REDUCED_NOTE, DecodedImage, Samples

FEW_LEVELS = 16
FULL = 0xFFFF

FEW_LEVELS_NOTE = "few levels left (12-bit data in 16 bits?)"
DEEP_PROFILE_NOTE = "colour profile not applied to 16 bits"


def to_pixels(image: DecodedImage) -> bytes:
    """[h w c] 8-bit pixels in sRGB, laid on white, not yet turned. Adds to `image.notes`."""
    bands = image.bands if image.deep_bands is None else _reduced_bands(image, image.deep_bands)
    return b"".join(_band_pixels(band, image) for band in bands)


def _band_pixels(band: PIL.Image.Image, image: DecodedImage) -> bytes:
    """[h w c] of a band."""
    if band.mode == "La":
        band = band.convert("LA")  # Pillow has no direct way to others
    has_alpha = band.mode in ("LA", "PA", "RGBA", "RGBa") or "transparency" in band.info
    mode = ("L", "LA", "RGB", "RGBA")[2 * (image.channels == 3) + has_alpha]
    if band.mode not in (mode, "CMYK"):
        band = band.convert(mode)
    band = to_srgb(band, image.profile, image.notes)
    if has_alpha:
        band = _on_white(band)
    return band.getchannel(0).tobytes() if image.channels == 1 else band.tobytes()


def _on_white(image: PIL.Image.Image) -> PIL.Image.Image:
    """A transparent image of mode LA or RGBA on a white ground."""
    if image.mode == "LA":
        image = image.convert("RGBA")
    white = PIL.Image.new("RGB", image.size, (255, 255, 255))
    white.paste(image, mask=image)
    return white


# --- 16 bits to 8 ---


def _reduced_bands(image: DecodedImage, bands: Iterable[Samples]) -> Iterator[PIL.Image.Image]:
    """Bands of the upper 8 bits of 16-bit values. Adds to the notes."""
    image.notes.append(REDUCED_NOTE.format(image.stored_bits))
    if image.significant_bits < 16:
        bands = _fill_scale(image, list(bands))
    before, after = np.zeros(1 << 16, bool), np.zeros(1 << 8, bool)  # levels that occur
    for deep in bands:
        band = (deep >> 8).astype(np.uint8)
        if image.transparent:
            band[_is_transparent(deep, image)] = 255
        if after.sum() <= FEW_LEVELS:
            before[deep[:, :, : image.channels]] = True
            after[band[:, :, : image.channels]] = True
        yield PIL.Image.fromarray(band[:, :, 0] if band.shape[2] == 1 else band)
    if after.sum() <= FEW_LEVELS < before.sum():
        image.notes.append(FEW_LEVELS_NOTE)


def _fill_scale(image: DecodedImage, bands: list[Samples]) -> list[Samples]:
    """Move values that lie in the low bits of 16 up to the full scale.

    Writers of 12-bit data put it low or high into 16 bits. It lies low where no value has a bit
    above the significant ones, and some value has one below those that data put high would have.
    """
    bits = image.significant_bits
    below = (1 << (16 - bits)) - 1
    is_low = max(int(band.max()) for band in bands) < 1 << bits
    if not is_low or not any((band & below).any() for band in bands):
        return bands
    image.transparent = tuple(value << (16 - bits) & FULL for value in image.transparent)
    return [band << np.uint16(16 - bits) for band in bands]


def _is_transparent(band: Samples, image: DecodedImage) -> np.ndarray:
    """[n w] whether pixels have the transparent colour in all their bits."""
    return (band == np.array(image.transparent, np.uint16)).all(axis=2)


# --- 16 bits ---


def to_deep_pixels(image: DecodedImage) -> bytes:
    """[h w c] 16-bit values, big-endian, laid on white, not yet turned. Adds to `image.notes`.

    Colours stay as the file has them: no library at hand applies a profile to 16 bits.
    """
    assert image.deep_bands is not None
    if changes_colours(image.profile, "L" if image.channels == 1 else "RGB"):
        image.notes.append(DEEP_PROFILE_NOTE)
    return b"".join(_deep_band(band, image).astype(">u2").tobytes() for band in image.deep_bands)


def _deep_band(band: Samples, image: DecodedImage) -> Samples:
    """[n w c] of a band [n w v]."""
    if image.transparent:
        return np.where(_is_transparent(band, image)[:, :, None], np.uint16(FULL), band)
    if band.shape[2] == image.channels:
        return band
    colours, alpha = band[:, :, :-1].astype(np.uint32), band[:, :, -1:].astype(np.uint32)
    mixed = (colours * alpha + FULL // 2) // FULL + (FULL - alpha)
    return np.minimum(mixed, FULL).astype(np.uint16)

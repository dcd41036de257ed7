"""Surprise maps: where in a document its bits are.

    text     the text itself, each character on the colour of its bits
    image    the picture beside the bits of each pixel
    audio    the waveform above the bits of each moment
    files    of any modality, read as the files' own bytes: the bits along the file

n payload bytes    h lines    w pixels of a line    c channels    v bytes of a value
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import PIL.Image
from markupsafe import Markup

from bytelm.modalities.base import FILE_VIEW, Header, Sample
from bytelm.modalities.image_layout import pixel_positions
from bytelm.pipelines.reporting.bit_colours import (
    FULL_BITS,
    Floats,
    bit_colour,
    bit_legend,
    hex_colour,
)
from bytelm.pipelines.reporting.media_files import sample_pcm, sample_picture
from bytelm.pipelines.reporting.pictures import picture_element
from bytelm.pipelines.reporting.plots import Axis, plot, time_axis
from bytelm.pipelines.reporting.scales import linear_ticks
from bytelm.pipelines.reporting.sound_pictures import audio_element, waveform_svg
from bytelm.pipelines.reporting.text_map import coloured_text

_COLUMNS = 240
_HEIGHT = 90


@dataclass(frozen=True)
class SurpriseMap:
    """A document and its bits, for a page that has the rules of `media_css`."""

    html: Markup
    """The map with its total and its legend; pictures and sounds are data URIs inside it."""
    bits: float
    """Bits of the whole payload."""
    bits_per_byte: float
    image: PIL.Image.Image | None = None
    """The colours of the bits of each pixel of an image."""


def surprise_map(sample: Sample, bits: npt.ArrayLike, view: str, patch: int) -> SurpriseMap:
    """Draw the surprise map of a document.

    Args:
        sample: the text, image or sound.
        bits: [n] -log2 p of each byte of its payload in the view.
        view: the view in which the model read it.
        patch: P, which the view `patch` of images needs.
    Raises:
        ValueError: for a sample without a byte.
    """
    costs = np.asarray(bits, np.float64)
    if not costs.size:
        raise ValueError(f"the {sample.modality} is empty: there is nothing to score")
    image = None
    if sample.modality == "text":
        body = coloured_text(sample.data, costs) + bit_legend("bits per character")
    elif view == FILE_VIEW:
        body = _file_map(costs)
    elif sample.modality == "image":
        per_pixel = pixel_bits(sample.header, costs, view, patch)
        pixel_bytes = costs.size // per_pixel.size
        image = PIL.Image.fromarray(bit_colour(per_pixel / pixel_bytes))
        body = _image_map(sample, image, pixel_bytes)
    else:
        body = _sound_map(sample, costs)
    total, per_byte = float(costs.sum()), float(costs.mean())
    facts = f"{costs.size:,} bytes cost {total:,.0f} bits: {per_byte:.2f} bits/byte"
    html = Markup('<div class="surprise">{}<p class="media-facts">{}</p></div>').format(body, facts)
    return SurpriseMap(html, total, per_byte, image)


def pixel_bits(header: Header, bits: Floats, view: str, patch: int) -> Floats:
    """[h w] the bits of each pixel: the sum over its channels, and both bytes of deep values.

    Args:
        bits: [n] bits of each byte of the payload in the view.
    """
    place = pixel_positions(header, view, patch, 0, bits.size)
    pixel = place.line * header.width + place.column
    pixels = header.height * header.width
    sums: Floats = np.bincount(pixel, bits, pixels).astype(np.float64)
    return sums.reshape(header.height, header.width)


def _image_map(sample: Sample, image: PIL.Image.Image, pixel_bytes: int) -> Markup:
    header = sample.header
    size = f"{header.width} × {header.height} pixels"
    return Markup('<div class="pictures pair">{}{}</div>{}').format(
        picture_element(sample_picture(sample), f"The image, {size}", "the image"),
        picture_element(image, f"Bits of each of the {size}", "its bits"),
        bit_legend("bits per pixel", pixel_bytes),
    )


def _sound_map(sample: Sample, bits: Floats) -> Markup:
    pcm = sample_pcm(sample)
    axis = time_axis(len(pcm) / sample.header.rate)
    frame_bits = bits.reshape(len(pcm), -1).mean(1)
    return Markup("{}{}{}{}").format(
        audio_element(pcm, sample.header.rate),
        waveform_svg(pcm, sample.header.rate),
        _bars(frame_bits, axis),
        bit_legend(),
    )


def _file_map(bits: Floats) -> Markup:
    ticks = [(t / bits.size, f"{t:,.0f}") for t in linear_ticks(0, bits.size, 4)]
    return _bars(bits, Axis("byte of the file", ticks)) + bit_legend()


def _bars(bits: Floats, axis: Axis) -> Markup:
    """Bits per byte along a document [n] as bars, each the mean of a part of it."""
    bounds = np.linspace(0, len(bits), min(_COLUMNS, len(bits)) + 1).astype(int)
    means = np.add.reduceat(bits, bounds[:-1]) / np.diff(bounds)
    heights = (1000 * np.minimum(means / FULL_BITS, 1)).round().astype(int).tolist()
    bars = Markup().join(
        Markup('<rect x="{}" y="{}" width="1.02" height="{}" fill="{}"/>').format(
            x, 1000 - height, height, hex_colour(colour)
        )
        for x, (height, colour) in enumerate(zip(heights, bit_colour(means), strict=True))
    )
    drawing = Markup(
        '<svg class="stretched bars" height="{}" viewBox="0 0 {} 1000" preserveAspectRatio="none" '
        'role="img" aria-label="Bits per byte, {:.2f} on average">{}</svg>'
    ).format(_HEIGHT, len(heights), float(bits.mean()), bars)
    numbers = [(tick / FULL_BITS, f"{tick:g}") for tick in (0, 2, 4, 6, 8)]
    return plot(drawing, axis, Axis("bits per byte", numbers), _HEIGHT)

"""Text coloured by the bits of each character.

A mark stands for what has no glyph: bytes that are not valid UTF-8, control and format characters.
Marks keep a text from turning the page's direction of writing, or from hiding a part of itself.

n payload bytes
"""

from __future__ import annotations

import unicodedata
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
from markupsafe import Markup

from bytelm.pipelines.reporting.bit_colours import Floats, bit_level

MAX_TEXT_BYTES = 4000
"""Bytes of a text that are shown; each is an element of the page."""
_JOINERS = ("\u200c", "\u200d")
_MARKED = {"Cc", "Cf", "Cn", "Co", "Cs", "Zl", "Zp"}
_COMBINING = {"Mn", "Mc", "Me"}


@dataclass(frozen=True)
class Glyph:
    """Characters that are drawn as one, or a byte that is not valid UTF-8."""

    text: str
    """Characters of the text; a byte XX that is not valid is the surrogate U+DCXX."""
    start: int
    stop: int
    """Bytes [start, stop) of the text."""


def glyphs(data: bytes) -> list[Glyph]:
    """Split a text into characters, each with the combining marks that follow it."""
    found: list[Glyph] = []
    for text, start, stop in _characters(data):
        if found and _continues(found[-1].text, text):
            found[-1] = Glyph(found[-1].text + text, found[-1].start, stop)
        else:
            found.append(Glyph(text, start, stop))
    return found


def coloured_text(data: bytes, bits: Floats) -> Markup:
    """The first `MAX_TEXT_BYTES` of a text, each character coloured by the sum of its bytes' bits.

    Args:
        bits: [n] cost of each byte.
    """
    shown = [glyph for glyph in glyphs(data[: MAX_TEXT_BYTES + 4]) if glyph.stop <= MAX_TEXT_BYTES]
    sums = [float(bits[glyph.start : glyph.stop].sum()) for glyph in shown]
    elements = Markup().join(
        _element(glyph, data, bits, int(level))
        for glyph, level in zip(shown, bit_level(np.array(sums)), strict=True)
    )
    text = Markup('<div class="bit-text" dir="auto">{}</div>').format(elements)
    end = shown[-1].stop if shown else 0
    if end == len(data):
        return text
    note = f"The first {end:,} bytes of {len(data):,}; {len(data) - end:,} are left out here."
    return text + Markup('<p class="media-facts">{}</p>').format(note)


def _element(glyph: Glyph, data: bytes, bits: Floats, level: int) -> Markup:
    costs = bits[glyph.start : glyph.stop].tolist()
    cost = f"{sum(costs):.2f} bits"
    if len(costs) > 1:
        cost = f"{' + '.join(f'{c:.2f}' for c in costs)} = {cost}"
    codes = data[glyph.start : glyph.stop].hex(" ").upper()
    if "\udc80" <= glyph.text[0] <= "\udcff":
        title = f"byte {codes}, not valid UTF-8: {cost}"
        return _marked(f"{codes}", title, level)
    points = " ".join(f"U+{ord(character):04X}" for character in glyph.text)
    title = f"{points}, {'byte' if len(costs) == 1 else 'bytes'} {codes}: {cost}"
    mark = _mark(glyph.text)
    if mark is None:
        return Markup('<i class="bits-{}" title="{}">{}</i>').format(
            level, f"“{glyph.text}” {title}", glyph.text
        )
    # The line ends behind its mark; a tab keeps its width.
    return _marked(mark, title, level) + (glyph.text if glyph.text in "\n\t" else "")


def _marked(mark: str, title: str, level: int) -> Markup:
    return Markup('<i class="bits-{} bit-mark" title="{}">{}</i>').format(level, title, mark)


def _mark(text: str) -> str | None:
    """The sign that stands for a character without a glyph; None for all others."""
    first = text[0]
    if unicodedata.category(first) not in _MARKED:
        return None
    signs = {"\n": "⏎", "\t": "⇥", "\x7f": "␡"}
    if first in signs:
        return signs[first]
    return chr(0x2400 + ord(first)) if first < " " else f"U+{ord(first):04X}"


def _characters(data: bytes) -> Iterator[tuple[str, int, int]]:
    """Each character, and its bytes' start and stop."""
    start = 0
    for character in data.decode("utf-8", "surrogateescape"):
        stop = start + len(character.encode("utf-8", "surrogateescape"))
        yield character, start, stop
        start = stop


def _continues(before: str, text: str) -> bool:
    """Whether a character is drawn together with the one before it."""
    if unicodedata.category(before[0]) in _MARKED:
        return False
    is_combining = unicodedata.category(text) in _COMBINING or text in _JOINERS
    return is_combining or (before[-1] == "\u200d" and unicodedata.category(text) == "So")

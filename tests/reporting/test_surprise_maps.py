"""Surprise maps show each bit where its byte is, and no text can break out of them."""

from __future__ import annotations

import base64
import io
import re
from html.parser import HTMLParser

import numpy as np
import PIL.Image
import pytest
from helpers.sets import audio, image, text

from bytelm.modalities import MODALITIES
from bytelm.modalities.base import Header, Sample
from bytelm.pipelines.reporting.bit_colours import bit_colour, bit_level
from bytelm.pipelines.reporting.surprise_maps import pixel_bits, surprise_map
from bytelm.pipelines.reporting.text_map import MAX_TEXT_BYTES, glyphs


class Elements(HTMLParser):
    """The tags and the titles of a page, and its visible text."""

    def __init__(self, html: str) -> None:
        super().__init__()
        self.tags: set[str] = set()
        self.titles: list[str] = []
        self.text = ""
        self.feed(str(html))  # a Markup would escape what the parser finds

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.add(tag)
        self.titles += [value or "" for name, value in attrs if name == "title"]
        assert not [name for name, _ in attrs if name.startswith("on")]

    def handle_data(self, data: str) -> None:
        self.text += data


def text_elements(data: bytes, bits: list[float] | None = None) -> Elements:
    costs = np.ones(len(data)) if bits is None else np.array(bits)
    return Elements(surprise_map(text(data), costs, "utf8", patch=8).html)


def test_a_hostile_text_cannot_break_out_of_the_page() -> None:
    hostile = b'<script>alert(1)</script><img src=x onerror="alert(2)">"\'&lt;'
    page = text_elements(hostile)
    assert page.tags == {"div", "i", "p", "span", "svg", "rect", "text"}
    assert hostile.decode() in page.text


def test_a_character_has_the_sum_of_the_bits_of_its_bytes() -> None:
    sample = text("aé漢".encode())
    html = surprise_map(sample, np.array([0.25, 1, 2, 1, 1, 0.5]), "utf8", 8).html
    levels = [int(level) for level in re.findall(r'class="bits-(\d+)"', html)]
    assert levels == bit_level([0.25, 3, 2.5]).tolist()
    assert Elements(html).titles[1] == "“é” U+00E9, bytes C3 A9: 1.00 + 2.00 = 3.00 bits"


def test_combining_marks_and_joined_signs_are_drawn_with_their_letter() -> None:
    found = glyphs("x\u0301👩\u200d👩!".encode())
    assert [glyph.text for glyph in found] == ["x\u0301", "👩\u200d👩", "!"]
    assert [(glyph.start, glyph.stop) for glyph in found] == [(0, 3), (3, 14), (14, 15)]


def test_bytes_and_characters_without_a_glyph_are_shown_as_marks() -> None:
    page = text_elements(b"a\xff\x00\n\t\xe2\x80\xae")
    assert page.text.startswith("aFF␀⏎\n⇥\tU+202E")
    assert page.titles[1] == "byte FF, not valid UTF-8: 1.00 bits"


def test_a_long_text_is_limited_at_a_character_and_says_so() -> None:
    data = b"a" * (MAX_TEXT_BYTES - 1) + "é and more".encode()
    page = text_elements(data)
    assert f"The first 3,999 bytes of {len(data):,}; 11 are left out here." in page.text
    assert len(page.titles) == MAX_TEXT_BYTES - 1
    assert f"{len(data):,} bytes cost {len(data):,} bits: 1.00 bits/byte" in page.text


@pytest.mark.parametrize("view", ["raster", "planar", "patch", "deep"])
@pytest.mark.parametrize("channels", [1, 3])
def test_bits_of_pixels_are_where_the_pixels_are_in_every_view(view: str, channels: int) -> None:
    sample = image(7, 5, channels)
    deep = view == "deep"
    if deep:
        data = np.random.default_rng(1).bytes(2 * len(sample.data))
        sample = Sample("image", sample.header, data, is_deep=True)
    # The bits of a byte are its value, so the map is the sum of the stored values.
    payload = MODALITIES["image"].to_view(sample, view, patch=12)
    found = pixel_bits(sample.header, payload.astype(np.float64), view, patch=12)
    stored = np.frombuffer(sample.data, np.uint8).reshape(5, 7, -1)
    np.testing.assert_array_equal(found, stored.sum(2, dtype=np.float64))


def embedded_pngs(html: str) -> list[PIL.Image.Image]:
    found = re.findall(r'src="data:image/png;base64,([^"]+)"', html)
    return [PIL.Image.open(io.BytesIO(base64.b64decode(data))) for data in found]


def test_an_image_is_shown_beside_the_colours_of_its_pixels() -> None:
    sample = image(4, 2)
    bits = np.repeat(np.arange(8.0), 3)  # each channel of pixel i costs i bits
    shown = surprise_map(sample, bits, "raster", 8)
    picture, colours = embedded_pngs(shown.html)
    np.testing.assert_array_equal(np.array(picture).tobytes(), sample.data)
    np.testing.assert_array_equal(np.array(colours).reshape(8, 3), bit_colour(np.arange(8.0)))
    assert shown.image is not None
    assert shown.image.size == (4, 2)
    assert (shown.bits, shown.bits_per_byte) == (84, 3.5)


def test_a_large_picture_is_reduced() -> None:
    sample = image(1200, 3, 1)
    shown = embedded_pngs(surprise_map(sample, np.ones(3600), "raster", 8).html)
    assert [picture.size for picture in shown] == [(300, 1), (300, 1)]


@pytest.mark.parametrize(("view", "bytes_per_value"), [("s16be", 2), ("mulaw", 1)])
def test_a_sound_has_bars_of_its_bits_over_time(view: str, bytes_per_value: int) -> None:
    sample = audio(48, channels=2)
    bits = np.repeat([2.0, 6.0], 48 * bytes_per_value)
    html = surprise_map(sample, bits, view, 8).html
    heights = [int(h) for h in re.findall(r'width="1.02" height="(\d+)"', html)]
    assert heights == [250] * 24 + [750] * 24
    assert 'src="data:audio/wav;base64,' in html


def test_raw_files_have_bars_along_the_file() -> None:
    sample = Sample("image", Header(4, 4, 3), b"\x89PNG" * 100, is_file=True)
    html = surprise_map(sample, np.full(400, 4.0), "file", 8).html
    assert "byte of the file" in html
    assert len(re.findall(r'height="500"', html)) == 240


def test_an_empty_document_is_refused() -> None:
    with pytest.raises(ValueError, match="the text is empty"):
        surprise_map(text(b""), [], "utf8", 8)

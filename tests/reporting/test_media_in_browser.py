"""Pictures, sounds and maps in a browser without a network, under a strict content policy."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import pytest
from helpers.browser import chromium, needs_chromium
from helpers.sets import audio, image, text
from markupsafe import Markup

from bytelm.modalities.base import Sample
from bytelm.pipelines.reporting.drawn_samples import DrawnSample
from bytelm.pipelines.reporting.gallery import gallery
from bytelm.pipelines.reporting.media_css import media_css
from bytelm.pipelines.reporting.surprise_maps import surprise_map

if TYPE_CHECKING:
    from playwright.sync_api import Browser

VIEWS = {"text": "utf8", "image": "raster", "audio": "s16le"}
POLICY = "default-src 'none'; style-src-elem 'unsafe-inline'; img-src data:; media-src data:"

pytestmark = needs_chromium


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    with chromium() as running:
        yield running


@pytest.fixture(scope="module")
def page_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A page of all kinds of media, of long words and of extreme shapes."""
    samples = [
        text(b"long" * 200 + b"<script>document.title = 'broken'</script>"),
        *(image(64, 64), image(700, 3, 1), image(2, 90)),
        *(audio(1600, channels=2), audio(1, rate=8000)),
    ]
    maps = [_map(sample) for sample in samples]
    drawn = [
        DrawnSample(sample, "title" * 40, 1, {"temperature": 0.5}, prompt, 0.5, text(b"x" * 300))
        for sample in samples
        for prompt in (None, sample)
    ]
    html = Markup(
        '<!doctype html><meta charset="utf-8"><meta name="viewport" content="width=device-width">'
        '<meta http-equiv="Content-Security-Policy" content="{}"><title>media</title>'
        "<style>{}</style>{}"
    ).format(POLICY, Markup(media_css()), Markup().join([*maps, gallery(drawn, samples[1:4])]))
    path = tmp_path_factory.mktemp("media") / "media.html"
    path.write_text(html, "utf-8")
    return path


def _map(sample: Sample) -> Markup:
    bits = np.random.default_rng(0).random(len(sample.data)) * 9
    return surprise_map(sample, bits, VIEWS[sample.modality], 8).html


@pytest.mark.parametrize("width", [390, 1280])
def test_media_fit_the_page_and_load_without_a_network(
    width: int, browser: Browser, page_file: Path
) -> None:
    context = browser.new_context(viewport={"width": width, "height": 900}, offline=True)
    page = context.new_page()
    logged: list[str] = []
    page.on("console", lambda message: logged.append(message.text))
    page.on("pageerror", lambda error: logged.append(str(error)))
    page.goto(page_file.as_uri(), wait_until="load")
    assert page.evaluate("document.documentElement.scrollWidth") == width
    assert page.title() == "media"
    assert page.evaluate("[...document.images].every((i) => i.complete && i.naturalWidth > 0)")
    page.wait_for_function(
        "[...document.querySelectorAll('audio')].every((a) => a.readyState >= 1)"
    )
    lengths = page.evaluate("[...document.querySelectorAll('audio')].map((a) => a.duration)")
    assert lengths[0] == pytest.approx(0.1)
    assert page.evaluate("[...document.images].every((i) => i.alt)")
    assert logged == []
    context.close()


def test_a_character_shows_its_bits_and_has_its_colour(browser: Browser, page_file: Path) -> None:
    page = browser.new_page()
    page.goto(page_file.as_uri())
    first = page.locator(".bit-text i").first
    bits = np.random.default_rng(0).random(1) * 9
    assert first.get_attribute("title") == f"“l” U+006C, byte 6C: {bits[0]:.2f} bits"
    background = first.evaluate("(e) => getComputedStyle(e).backgroundColor")
    assert background not in ("rgba(0, 0, 0, 0)", "rgb(255, 255, 255)")
    page.close()

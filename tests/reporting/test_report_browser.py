"""The page in a browser without a network: nothing is cut off, and the script does its part."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from helpers.browser import chromium, needs_chromium
from helpers.run_folders import add_evaluation, documents, write_run

from bytelm.pipelines.reporting.report import make_report

if TYPE_CHECKING:
    from playwright.sync_api import Browser

CUT_OFF = """() => {
  const width = document.documentElement.clientWidth;
  return [...document.querySelectorAll("body *")].filter((element) => {
    const box = element.getBoundingClientRect();
    return box.width && box.right > width + 1 && !element.closest(".scroll, nav");
  }).map((element) => element.outerHTML.slice(0, 80));
}"""

pytestmark = needs_chromium


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    with chromium() as running:
        yield running


@pytest.fixture(scope="module")
def pages(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    """The page of one run, and that of two; names and keys are long and without spaces."""
    folder = tmp_path_factory.mktemp("pages")
    runs = [write_run(folder / ("long" * 20 + name), sets=["set" * 60]) for name in ("a", "b")]
    for number, run in enumerate(runs):
        scored = documents([200.0 + number + n for n in range(12)], "key" * 40)
        add_evaluation(run, scored, codecs={"text": {"codec" * 12: 3.5, "xz": 3.25}})
    make_report(runs[:1], folder / "one.html", limit=0)
    make_report(runs, folder / "two.html", limit=0)
    return [folder / "one.html", folder / "two.html"]


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("width", [390, 1280, 1600])
def test_nothing_is_cut_off_and_no_error_is_logged(
    scheme: str, width: int, browser: Browser, pages: list[Path]
) -> None:
    context = browser.new_context(
        viewport={"width": width, "height": 900}, color_scheme=scheme, offline=True
    )
    page = context.new_page()
    logged: list[str] = []
    requested: list[str] = []
    page.on("console", lambda message: logged.append(message.text))
    page.on("pageerror", lambda error: logged.append(str(error)))
    page.on("request", lambda request: requested.append(request.url))
    for path in pages:
        page.goto(path.as_uri())
        page.evaluate("document.querySelectorAll('details').forEach((d) => d.open = true)")
        assert page.evaluate("document.documentElement.scrollWidth") == width
        assert page.evaluate(CUT_OFF) == []
    assert logged == []
    assert requested == [path.as_uri() for path in pages]
    context.close()


def test_the_pointer_reads_the_values_of_a_chart(browser: Browser, pages: list[Path]) -> None:
    page = browser.new_page(viewport={"width": 1280, "height": 900})
    page.goto(pages[0].as_uri())
    chart = page.locator("figure", has_text="Bits per byte on val").locator("svg").first
    chart.scroll_into_view_if_needed()
    box = chart.bounding_box()
    assert box
    page.mouse.move(box["x"] + 0.7 * box["width"], box["y"] + 0.5 * box["height"])
    reader = page.locator(".reader")
    assert reader.is_visible()
    assert reader.inner_text().startswith("training step 30")
    assert "text 2.2" in reader.inner_text()
    page.mouse.move(2, 2)
    assert not reader.is_visible()


def test_the_switch_turns_the_page_dark_and_back(browser: Browser, pages: list[Path]) -> None:
    page = browser.new_page(color_scheme="light")
    page.goto(pages[0].as_uri())
    background = "getComputedStyle(document.body).backgroundColor"
    light = page.evaluate(background)
    page.locator("button.theme").click()
    dark = page.evaluate(background)
    page.locator("button.theme").click()
    assert dark != light == page.evaluate(background)


def test_the_page_is_whole_without_script(browser: Browser, pages: list[Path]) -> None:
    context = browser.new_context(java_script_enabled=False)
    page = context.new_page()
    page.goto(pages[0].as_uri())
    assert page.locator("figure svg").count() > 5
    assert not page.locator("button.theme").is_visible()
    context.close()

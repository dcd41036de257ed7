"""The playground in a browser without a network: what a user does, and what a hostile one does."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from helpers import sets
from helpers.browser import chromium, needs_chromium
from helpers.served import Server, png_bomb, serving, write_model

from bytelm.model.config import ModelConfig, StageConfig
from bytelm.pipelines.serving.limits import MAX_UPLOAD_BYTES
from bytelm.pipelines.serving.uploads import sample_file

playwright = pytest.importorskip("playwright.sync_api", reason="playwright is not installed")
pytestmark = needs_chromium

PATIENCE_MS = 120_000
LOAD_MS = 20_000
SLOW = ModelConfig((StageConfig(16, 1, 2), StageConfig(512, 4, 8)), (8,), context=256)
HOSTILE_NAME = "<img src=x onerror=document.title='broken'>.png"


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    with serving(write_model(tmp_path_factory.mktemp("served") / "model")) as running:
        yield running


@pytest.fixture(scope="module")
def slow_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """A server whose model is still drawing a second of sound when the next user comes."""
    with serving(write_model(tmp_path_factory.mktemp("slow") / "model", SLOW)) as running:
        yield running


@pytest.fixture(scope="module")
def browser() -> Iterator[playwright.Browser]:
    with chromium() as running:
        yield running


class User:
    """A user with a browser of their own, in which every other host is out of reach."""

    def __init__(self, browser: playwright.Browser, url: str) -> None:
        self.outside: list[str] = []
        self.errors: list[str] = []
        self.context = browser.new_context(viewport={"width": 1280, "height": 900})
        self.context.set_default_timeout(PATIENCE_MS)
        self._visit(url)

    def _visit(self, url: str) -> None:
        self.page = self.context.new_page()
        self.page.route("**/*", self._route)
        self.page.on("pageerror", lambda error: self.errors.append(str(error)))
        self.page.on("console", lambda m: self.errors.append(m.text) if m.type == "error" else None)
        self.page.goto(url)

    def _route(self, route: playwright.Route) -> None:
        url = route.request.url
        if url.startswith(("http://127.0.0.1:", "data:", "blob:")):
            route.continue_()
        else:
            self.outside.append(url)
            route.abort()

    def open(self, tab: str) -> Tab:
        """Open a tab. A page that hangs while gradio builds it is loaded once more; one of some
        hundred did, on a busy machine."""
        button = self.page.get_by_role("tab", name=tab, exact=True)
        try:
            button.click(timeout=LOAD_MS)
        except playwright.TimeoutError:
            url = self.page.url
            self.page.close()
            self._visit(url)
            self.page.get_by_role("tab", name=tab, exact=True).click()
        return Tab(self.page.locator("[role=tabpanel]:visible"))


class Tab:
    """A tab that is open."""

    def __init__(self, panel: playwright.Locator) -> None:
        self.panel = panel
        self.status = panel.locator(".status p")
        self.result = panel.locator(".result.prose")

    def click(self, button: str) -> None:
        self.panel.get_by_role("button", name=button, exact=True).click()

    def upload(self, path: Path) -> None:
        self.panel.locator("input[type=file]").set_input_files(path)
        self.panel.locator(".file-preview").wait_for()

    def set(self, label: str, value: object) -> None:
        self.panel.get_by_label(f"number input for {label}").fill(str(value))

    def expect_value(self, label: str, value: str) -> None:
        """Wait until a number has a value."""
        number = self.panel.get_by_label(f"number input for {label}")
        playwright.expect(number).to_have_value(value, timeout=PATIENCE_MS)

    def expect(self, text: str) -> None:
        """Wait for a text in the status; AssertionError with what the tab shows instead."""
        try:
            self.status.filter(has_text=text).wait_for()
        except playwright.TimeoutError as error:
            raise AssertionError(f"no {text!r} in {self.panel.inner_text()!r}") from error


@pytest.fixture
def user(browser: playwright.Browser, server: Server) -> Iterator[User]:
    """A user whose page shows no error and asks no other host for anything."""
    with visiting(browser, server) as visitor:
        yield visitor


@contextmanager
def visiting(browser: playwright.Browser, server: Server) -> Iterator[User]:
    """A user as in `user`, until the body ends."""
    visitor = User(browser, server.url)
    yield visitor
    assert visitor.page.title().endswith("/model - bytelm")
    assert not visitor.outside
    assert not visitor.errors
    visitor.context.close()


def picture(folder: Path, name: str = "picture.png") -> Path:
    path = folder / name
    path.write_bytes(sample_file(sets.image(32, 32)))
    return path


def test_an_image_is_completed_from_its_top(user: User, tmp_path: Path) -> None:
    tab = user.open("Image")
    tab.click("Sampling ▼")
    tab.expect_value("Temperature", "0.9")
    tab.upload(picture(tmp_path))
    tab.expect_value("Temperature", "1.1")
    tab.panel.get_by_text("the model is given the upper 16 rows").wait_for()
    tab.set("Images", 2)
    tab.click("Complete")
    tab.expect("3,072 of 3,072 bytes")
    assert tab.result.locator("img").count() == 2
    assert tab.result.locator("img").first.evaluate("image => image.naturalWidth") == 32


def test_a_text_is_completed_and_a_seed_repeats_it(
    user: User, browser: playwright.Browser, server: Server
) -> None:
    texts = []
    other = User(browser, server.url)
    for visitor in (user, other):
        tab = visitor.open("Text")
        tab.panel.get_by_label("Beginning").fill("One <b>bold</b> ${beginning} {{of}}")
        tab.click("Complete")
        tab.expect("bytes in")
        texts.append(tab.result.locator("pre").inner_text())
    other.context.close()
    assert texts[0].startswith("One <b>bold</b> ${beginning} {{of}}")
    assert texts[1] == texts[0]


def test_an_image_is_drawn_from_a_caption(user: User) -> None:
    tab = user.open("Image from a caption")
    tab.panel.get_by_label("Caption").fill("a red square")
    tab.click("Draw")
    tab.expect("3,072 of 3,072 bytes")
    assert tab.result.locator("img").count() == 1


def test_a_second_user_waits_and_a_stop_lets_them_in(
    browser: playwright.Browser, slow_server: Server
) -> None:
    with visiting(browser, slow_server) as user, visiting(browser, slow_server) as other:
        first = user.open("Sound")
        second = other.open("Text")
        first.click("Complete")
        first.expect("of 16,000 bytes")
        second.click("Complete")
        second.expect("Number 1 in the queue")
        first.click("Stop")
        first.expect("Stopped.")
        assert first.result.locator(".wave").count() == 1  # what was drawn before
        second.expect("bytes in")


def test_a_user_who_leaves_lets_the_next_one_in(
    browser: playwright.Browser, slow_server: Server
) -> None:
    with visiting(browser, slow_server) as user:
        second = user.open("Text")
        with visiting(browser, slow_server) as leaving:
            first = leaving.open("Sound")
            first.click("Complete")
            first.expect("of 16,000 bytes")
        second.click("Complete")
        second.expect("bytes in")


def test_a_file_and_a_text_have_surprise_maps(user: User, tmp_path: Path) -> None:
    tab = user.open("Surprise map")
    tab.panel.get_by_label("Or a text").fill("a <i>text</i>")
    tab.click("Show the surprise")
    tab.result.get_by_text("13 bytes cost").wait_for()
    assert "a <i>text</i>" in tab.result.locator(".bit-text").inner_text()
    tab.upload(picture(tmp_path))
    tab.click("Show the surprise")
    tab.result.get_by_text("3,072 bytes cost").wait_for()
    assert tab.result.locator("img").count() == 2


def test_a_file_is_compressed_beside_codecs_and_can_be_saved(user: User, tmp_path: Path) -> None:
    tab = user.open("Compress")
    tab.upload(picture(tmp_path, HOSTILE_NAME))
    tab.click("Compress")
    tab.result.get_by_role("cell", name="this model").wait_for()
    names = tab.result.locator("tbody td:first-child").all_inner_texts()
    assert {"this model", "PNG", "gzip"} <= set(names)
    assert HOSTILE_NAME.replace("<", "") not in names
    with user.page.expect_download() as download:
        tab.result.get_by_role("link", name="Save").click()
    container = download.value.path().read_bytes()
    cells = tab.result.locator("tr.ours td").all_inner_texts()
    assert cells[1] == f"{len(container):,}"


def test_hostile_uploads_get_a_message_and_the_server_lives(user: User, tmp_path: Path) -> None:
    tab = user.open("Image")
    for name, content, message in (
        ("bomb.png", png_bomb(), "over the limit (an image of 50000 x 50000 pixels)"),
        ("short.png", sample_file(sets.image(99, 99))[:-999], "cannot be read: truncated"),
        (HOSTILE_NAME, b"no image <b>at all</b>", "is a text, and an image is needed here"),
    ):
        (tmp_path / name).write_bytes(content)
        tab.upload(tmp_path / name)
        tab.panel.get_by_role("alert").filter(has_text=message).wait_for()
        tab.panel.get_by_label("Clear").first.click()
    huge = tmp_path / "huge.png"
    huge.touch()
    with huge.open("r+b") as file:
        file.truncate(100_000_000)
    assert huge.stat().st_size > MAX_UPLOAD_BYTES
    tab.panel.locator("input[type=file]").set_input_files(huge)
    user.page.get_by_text("exceed the maximum allowed size").first.wait_for()
    user.errors.clear()  # gradio's script asks for the progress of the upload that it refused
    tab.click("Complete")
    tab.expect("bytes in")

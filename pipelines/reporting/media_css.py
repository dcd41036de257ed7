"""The style rules that pictures, sounds and surprise maps need on a page."""

from __future__ import annotations

from importlib import resources

from bytelm.pipelines.reporting.bit_colours import bit_css


def media_css() -> str:
    """CSS for one `<style>` element of the page; it names no file and no font to fetch."""
    rules = resources.files("bytelm.pipelines.reporting").joinpath("media.css").read_text("utf-8")
    return rules + bit_css()

"""The page of a report: one HTML file with its style, script, charts and media inside.

It loads nothing: its Content-Security-Policy allows the page's own style sheet and script by their
hashes, and images and sounds that are part of the page.
"""

from __future__ import annotations

import base64
import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from importlib import resources
from typing import Any

import jinja2
from markupsafe import Markup

from bytelm.pipelines.reporting.charts import Chart, draw
from bytelm.pipelines.reporting.comparison_tables import (
    config_table,
    data_table,
    difference_tables,
    overview_table,
)
from bytelm.pipelines.reporting.media_css import media_css
from bytelm.pipelines.reporting.run_charts import compared_charts
from bytelm.pipelines.reporting.run_view import RunView, codecs_note, evaluation_note
from bytelm.pipelines.runtime.environment import versions


@dataclass(frozen=True)
class DrawnChart:
    """A chart as SVG with its heading and note."""

    title: str
    picture: Markup
    note: str


def render(views: Sequence[RunView]) -> str:
    """The page of one run, or of several beside one another."""
    css, script = _asset("report.css") + media_css(), _asset("report.js")
    environment = jinja2.Environment(
        loader=jinja2.FunctionLoader(_asset), autoescape=True, undefined=jinja2.StrictUndefined
    )
    compared = len(views) > 1
    data = [view.data for view in views]
    return environment.get_template("report.html.j2").render(
        title=" · ".join(view.name for view in views),
        version=versions()["bytelm"],
        date=f"{datetime.now(UTC):%Y-%m-%d %H:%M} UTC",
        policy=_policy(css, script),
        css=Markup(css),
        js=Markup(script),
        contents=_contents(views),
        runs=[_values(view) for view in views],
        folders=[str(view.data.folder) for view in views],
        compared=_drawn(compared_charts(data)) if compared else [],
        overview=overview_table(views) if compared else None,
        differences=difference_tables(views) if compared else [],
        config_table=config_table(views) if compared else None,
        data_table=data_table(views) if compared else None,
    )


def _values(view: RunView) -> Mapping[str, Any]:
    """The values of a run that the template reads."""
    return {
        **vars(view),
        "name": view.name,
        "folder": str(view.data.folder),
        "charts": _drawn(view.charts),
        "evaluation_note": evaluation_note(view.evaluation) if view.evaluation else "",
        "codecs_note": codecs_note(view.evaluation) if view.evaluation else "",
    }


def _drawn(charts: Sequence[Chart]) -> list[DrawnChart]:
    return [DrawnChart(chart.title, draw(chart), chart.note) for chart in charts]


def _contents(views: Sequence[RunView]) -> list[tuple[str, str]]:
    """Anchor and name of each section."""
    if len(views) > 1:
        return [
            ("differences", "Differences"),
            *(("curves", "Training"), ("config", "Config"), ("data", "Data"), ("runs", "Runs")),
        ]
    view = views[0]
    contents = [("curves", "Training"), ("scores", "Evaluation")]
    if view.maps:
        contents.append(("bits", "Where the bits go"))
    contents += [(media.anchor, media.title) for media in view.media]
    return [*contents, ("config", "Config"), ("data", "Data"), ("machine", "Cost and machine")]


def _policy(css: str, script: str) -> str:
    """The Content-Security-Policy. Colours and sizes of media stand in `style` attributes."""
    return (
        f"default-src 'none'; style-src-elem 'sha256-{_digest(css)}'; style-src-attr "
        f"'unsafe-inline'; script-src 'sha256-{_digest(script)}'; img-src data:; media-src data:; "
        "base-uri 'none'; form-action 'none'"
    )


def _digest(text: str) -> str:
    return base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()


def _asset(name: str) -> str:
    """The text of a template, style sheet or script."""
    folder = resources.files("bytelm.pipelines.reporting") / "templates"
    return (folder / name).read_text("utf-8")

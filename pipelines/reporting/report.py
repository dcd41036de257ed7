"""The report of runs: their pages, or their numbers."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from bytelm.pipelines.reporting.compare import differences
from bytelm.pipelines.reporting.config_lines import config_differences
from bytelm.pipelines.reporting.curves import Curve
from bytelm.pipelines.reporting.page import render
from bytelm.pipelines.reporting.run_data import Columns, read_runs
from bytelm.pipelines.reporting.run_evaluation import evaluation_of
from bytelm.pipelines.reporting.run_media import media_sections
from bytelm.pipelines.reporting.run_view import MediaSection, RunView, view_run
from bytelm.pipelines.runtime.environment import versions
from bytelm.pipelines.storage.files import write_atomic

PAGE_FILE = "report.html"
REPORT_FORMAT = 1


def page_path(runs: Sequence[Path], out: Path | None) -> Path:
    """The file of the page: `out`, or `report.html` in the first run's folder.

    Raises:
        ValueError: if it is a folder, or lies in none.
    """
    path = runs[0] / PAGE_FILE if out is None else out
    if path.is_dir():
        raise ValueError(f"--out {path} is a folder: name a file, as {path / PAGE_FILE}")
    if out is not None and not path.parent.is_dir():
        raise ValueError(f"the folder of --out {path} does not exist: make it first")
    return path


def make_report(runs: Sequence[Path], out: Path, limit: int | None = None) -> Path:
    """Write the page of one run, or of several beside one another.

    Args:
        runs: folders of runs.
        out: the HTML file.
        limit: documents that are scored where the newest checkpoint of a run has no evaluation;
            0 scores none, None as many as take about a minute.
    Returns:
        the path of the page.
    Raises:
        ValueError: for a folder that holds no run.
    """
    page = render(read_views(runs, limit))
    write_atomic(out, page.encode("utf-8", "replace"))
    return out


def read_views(
    runs: Sequence[Path], limit: int | None = None, with_media: bool = True
) -> list[RunView]:
    """Read runs, evaluate them where needed, and prepare what a report says of each.

    The arguments are those of `make_report`. Samples and surprise maps are for one run alone.
    """
    read = read_runs(runs)
    views = []
    for run in read:
        evaluation, missing = evaluation_of(run, limit)
        media: list[MediaSection] = []
        if with_media and len(read) == 1:
            media, problems = media_sections(run, evaluation, limit != 0)
            missing += problems
        views.append(view_run(run, evaluation, missing, media))
    return views


def numbers(views: Sequence[RunView]) -> dict[str, Any]:
    """Everything that the page says in numbers, as plain JSON."""
    return {
        "format": REPORT_FORMAT,
        "version": versions()["bytelm"],
        "runs": [_run_numbers(view) for view in views],
        "differences": [
            {
                "first": str(first.data.folder),
                "second": str(second.data.folder),
                "modalities": [
                    {**asdict(d), "change": d.change}
                    for d in differences(first.evaluation, second.evaluation)
                ],
            }
            for number, first in enumerate(views)
            for second in views[number + 1 :]
            if first.evaluation and second.evaluation
        ],
        "config_differences": {
            key: values
            for key, values in config_differences([view.data.config for view in views])
            if len(views) > 1
        },
    }


def _run_numbers(view: RunView) -> dict[str, Any]:
    data = view.data
    return {
        "folder": str(data.folder),
        "name": data.name,
        "summary": view.sentence,
        "missing": view.missing,
        "cost": asdict(view.cost),
        "evaluation": view.evaluation,
        "train": _last_values(data.metrics.train),
        "curves": {
            chart.title: {series.name: _curve_values(series.curve) for series in chart.series}
            for chart in view.charts
        },
        "evaluations": _records(data.metrics.evaluations),
        "anomalies": data.metrics.anomalies,
        "checkpoints": data.checkpoint_steps,
        "sessions": data.sessions,
        "config": data.config,
        "sets": [asdict(entry) for entry in data.sets],
    }


def _curve_values(curve: Curve) -> dict[str, list[float]]:
    """A thinned curve: the line, and the smallest and largest record at each place."""
    return {
        "step": curve.steps.tolist(),
        "line": curve.smoothed.tolist(),
        "low": curve.low.tolist(),
        "high": curve.high.tolist(),
    }


def _last_values(columns: Columns) -> dict[str, float]:
    """The last record of the training's figures."""
    return {name: float(c[-1]) for name, c in columns.items() if c.size and c[-1] == c[-1]}


def _records(columns: Columns) -> list[dict[str, float]]:
    count = columns["step"].size if "step" in columns else 0
    return [
        {name: float(c[row]) for name, c in columns.items() if c[row] == c[row]}
        for row in range(count)
    ]

"""`bytelm report`: the page of a run, or of several beside one another."""

from __future__ import annotations

import argparse
from pathlib import Path

from bytelm.pipelines.cli.arguments import WholeNumber

HELP = "Write the page of a run: curves, evaluation, samples, data and cost in one HTML file."
MAX_LIMIT = 1 << 40


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the options."""
    parser.add_argument(
        "runs",
        nargs="+",
        type=Path,
        metavar="RUN",
        help="folder of a run; several are compared with one another",
    )
    parser.add_argument(
        "--out",
        type=Path,
        metavar="FILE",
        help="the HTML file; by default report.html in the first RUN",
    )
    parser.add_argument(
        "--limit",
        type=WholeNumber(0, MAX_LIMIT),
        default=None,
        metavar="N",
        help="documents of val that are scored where the newest checkpoint has no evaluation yet; "
        "0 scores none; by default as many as take about a minute",
    )
    form = parser.add_mutually_exclusive_group()
    form.add_argument(
        "--json", action="store_true", help="print all numbers as JSON instead of writing a page"
    )
    form.add_argument(
        "--markdown",
        action="store_true",
        help="print a summary to paste into an issue instead of writing a page",
    )


def run(options: argparse.Namespace, argv: list[str]) -> int:
    """Write the page and print its path, or print the numbers."""
    import json

    from bytelm.pipelines.reporting.report import make_report, numbers, page_path, read_views
    from bytelm.pipelines.runtime.allocator import keep_freed_memory

    keep_freed_memory()
    if options.json or options.markdown:
        if options.out:
            raise ValueError("--out is the file of the page: leave it out, or redirect stdout")
        views = read_views(options.runs, options.limit, with_media=False)
        if options.json:
            print(json.dumps(numbers(views), indent=1, allow_nan=False))
        else:
            from bytelm.pipelines.reporting.markdown import summary

            print(summary(views), end="")
        return 0
    path = make_report(options.runs, page_path(options.runs, options.out), options.limit)
    print(f"report: {path}")
    return 0

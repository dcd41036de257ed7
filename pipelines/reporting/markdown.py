"""The summary of a report in Markdown, to paste into an issue."""

from __future__ import annotations

import re
from collections.abc import Sequence

from bytelm.pipelines.reporting.comparison_tables import (
    config_table,
    data_table,
    difference_tables,
    overview_table,
)
from bytelm.pipelines.reporting.report_tables import ReportTable
from bytelm.pipelines.reporting.run_view import Facts, RunView, codecs_note, evaluation_note

_SPECIAL = re.compile(r"([\\`*_\[\]<>|#&~@!])")


def summary(views: Sequence[RunView]) -> str:
    """The results of runs, their differences, cost and machine."""
    parts = []
    if len(views) > 1:
        tables = [overview_table(views), *difference_tables(views)]
        tables += [table for table in (config_table(views), data_table(views)) if table]
        parts += ["## " + " · ".join(escaped(v.name) for v in views), *map(markdown_table, tables)]
    for view in views:
        parts += [f"## {escaped(view.name)}", escaped(view.sentence)]
        if view.missing:
            parts.append("\n".join(f"- missing: {escaped(line)}" for line in view.missing))
        if view.evaluation:
            parts.append(escaped(evaluation_note(view.evaluation)))
        parts += [markdown_table(table) for table in (*view.tables, *view.codecs)]
        if view.evaluation:
            parts.append(escaped(codecs_note(view.evaluation)))
        parts += [_facts("Cost", view.cost_facts), _facts("Machine", view.machine_facts)]
    return "\n\n".join(part for part in parts if part) + "\n"


def escaped(text: str) -> str:
    """A text on one line, whose characters have no meaning in Markdown or HTML."""
    return _SPECIAL.sub(r"\\\1", " ".join(text.split()))


def markdown_table(table: ReportTable) -> str:
    """A table in Markdown below its title; a row that stands out is bold."""
    lines = [
        _row([column or " " for column in table.columns]),
        _row([":---", *["---:"] * (len(table.columns) - 1)], is_rule=True),
    ]
    for number, row in enumerate(table.rows):
        cells = [escaped(cell) for cell in row]
        if number in table.highlighted:
            cells = [f"**{cell}**" for cell in cells]
        lines.append(_row(cells, is_rule=True))
    return f"### {escaped(table.title)}\n\n" + "\n".join(lines)


def _row(cells: Sequence[str], is_rule: bool = False) -> str:
    return f"| {' | '.join(cells if is_rule else map(escaped, cells))} |"


def _facts(title: str, facts: Facts) -> str:
    if not facts:
        return ""
    lines = [f"- {escaped(name)}: {escaped(value)}" for name, value in facts]
    return f"### {title}\n\n" + "\n".join(lines)

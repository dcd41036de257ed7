"""Tables of several runs: their results, their differences with intervals, configs and data."""

from __future__ import annotations

import itertools
from collections.abc import Sequence

from bytelm.pipelines.reporting.compare import Difference, differences
from bytelm.pipelines.reporting.config_lines import ABSENT, config_differences
from bytelm.pipelines.reporting.report_tables import NONE, ReportTable, bits
from bytelm.pipelines.reporting.run_data import SetFacts
from bytelm.pipelines.reporting.run_view import RunView
from bytelm.pipelines.runtime.progress import duration


def overview_table(views: Sequence[RunView]) -> ReportTable:
    """Steps, time, parameters, and bits per byte of each modality of each run."""
    results = [(view.evaluation or {}).get("model", {}) for view in views]
    modalities = list(dict.fromkeys(name for result in results for name in result))
    rows = []
    for view, result in zip(views, results, strict=True):
        cost = view.cost
        rows.append(
            [
                view.name,
                f"{cost.steps:,}",
                NONE if cost.seconds is None else duration(cost.seconds),
                NONE if cost.parameters is None else f"{cost.parameters:,}",
                *(bits(result.get(name, {}).get("bits_per_byte")) for name in modalities),
            ]
        )
    return ReportTable(
        "Runs",
        ["run", "steps", "time", "parameters", *modalities],
        rows,
        note="Bits per byte of each run's own evaluation.",
    )


def difference_tables(views: Sequence[RunView]) -> list[ReportTable]:
    """Bits per byte of each two runs on the documents that both scored."""
    tables = []
    for first, second in itertools.combinations(views, 2):
        if not (first.evaluation and second.evaluation):
            continue
        found = differences(first.evaluation, second.evaluation)
        if not found:
            continue
        tables.append(
            ReportTable(
                f"{second.name} against {first.name}",
                ["", first.name, second.name, "difference", "95 % interval", "documents"],
                [_difference_row(difference) for difference in found],
                note=f"Below 0, {second.name} needs fewer bits. The interval is a paired bootstrap "
                "over the documents that both scored.",
            )
        )
    return tables


def config_table(views: Sequence[RunView]) -> ReportTable | None:
    """The keys whose values differ; None where the configs are the same."""
    rows = config_differences([view.data.config for view in views])
    if not rows:
        return None
    names = [view.name for view in views]
    return ReportTable("Config", ["key", *names], [[key, *values] for key, values in rows])


def data_table(views: Sequence[RunView]) -> ReportTable | None:
    """The sets that not all runs have, by root hash and weight; None where all have the same."""
    entries = [{_identity(s): s for s in view.data.sets} for view in views]
    keys = list(dict.fromkeys(key for sets in entries for key in sets))
    rows = [
        [_set_name(next(sets[key] for sets in entries if key in sets)), *shares]
        for key in keys
        if len(set(shares := [_weight(sets.get(key)) for sets in entries])) > 1
    ]
    if not rows:
        return None
    return ReportTable("Data", ["set", *(view.name for view in views)], rows)


def _difference_row(difference: Difference) -> list[str]:
    interval = difference.interval
    return [
        difference.modality,
        bits(difference.first),
        bits(difference.second),
        f"{difference.change:+.3f}",
        f"{interval[0]:+.3f} to {interval[1]:+.3f}" if interval else NONE,
        f"{difference.documents:,}",
    ]


def _identity(entry: SetFacts) -> str:
    return entry.root or entry.path


def _set_name(entry: SetFacts) -> str:
    return f"{entry.path} ({entry.root[:12]})" if entry.root else entry.path


def _weight(entry: SetFacts | None) -> str:
    if entry is None:
        return ABSENT
    return "by its size" if entry.weight is None else f"weight {entry.weight:g}"

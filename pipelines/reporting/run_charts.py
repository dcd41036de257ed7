"""The charts of one run or of several: loss, bits per byte, rates, gradient norm, throughput."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np

from bytelm.pipelines.reporting.charts import Chart, Level, Series, is_empty
from bytelm.pipelines.reporting.curves import Curve, thinned
from bytelm.pipelines.reporting.run_data import Columns, RunData, section
from bytelm.pipelines.reporting.scales import LOG_RATIO, Values, number_text, steps_need_log

MODALITY_NUMBERS = {"text": 0, "image": 1, "audio": 2}
TOTAL = "total"
CODECS_SHOWN = 4
"""Codecs of one modality that are drawn as lines, the best first; the table has all."""
BITS_RATIO = 2.5
"""Ratio of the largest to the smallest bits per byte from which a logarithmic axis reads best: the
first steps are near 8 bits, and what is compared lies close together at the end."""
LENGTH_RATIO = 8
"""Ratio of the longest to the shortest run from which logarithmic steps compare them best."""
CodecBits = Mapping[str, Mapping[str, float]]
"""Bits per byte of each codec, by modality."""


def run_charts(run: RunData, codecs: CodecBits) -> list[Chart]:
    """The charts of one run that are not empty; the first ones say the most.

    Args:
        codecs: of the run's evaluation; empty without one.
    """
    train, evaluations = run.metrics.train, run.metrics.evaluations
    names = [n for n in modalities([run]) if n != TOTAL]
    charts = [_bits_chart(train, evaluations, name, codecs.get(name, {})) for name in names]
    charts = [_overview(evaluations, names), *charts, _loss(train), _rates(run)]
    charts += [
        _figure(train, "grad_norm", "Gradient norm", "norm before clipping", "gradient norm"),
        _figure(train, "bytes_per_second", "Throughput", "payload bytes per second", "bytes/s"),
        _figure(train, "data_wait", "Waiting for data", "% of the time", "data wait", 100),
        _figure(train, "mfu", "Use of the processor", "% of its measured peak", "MFU", 100),
        _anomalies(run),
    ]
    return [chart for chart in charts if not is_empty(chart)]


def compared_charts(runs: Sequence[RunData]) -> list[Chart]:
    """The charts of several runs, one curve a run: bits per byte, loss, throughput."""
    charts = []
    lengths = [run.metrics.last_step for run in runs if run.metrics.last_step]
    is_log = bool(lengths) and max(lengths) > LENGTH_RATIO * min(lengths)
    for name in modalities(runs):
        columns = [(run.name, run.metrics.evaluations) for run in runs]
        series = _evaluation_series(columns, f"{name}/bits_per_byte")
        title = f"Bits per byte of {name}, on val"
        charts.append(Chart(title, "bits per byte", series, is_log_x=is_log))
    for key, title, unit in (
        ("loss", "Training loss", "nats per id"),
        ("grad_norm", "Gradient norm", "norm before clipping"),
        ("bytes_per_second", "Throughput", "payload bytes per second"),
    ):
        records = [run.metrics.train for run in runs]
        is_log = key == "loss" and any(_needs_log(c, key) for c in records)
        series = [
            Series(run.name, _curve(train, key, is_log), number)
            for number, (run, train) in enumerate(zip(runs, records, strict=True))
        ]
        is_log_y = key == "grad_norm" and _spans([s.curve for s in series])
        charts.append(Chart(title, unit, series, is_log_x=is_log, is_log_y=is_log_y))
    return [chart for chart in charts if not is_empty(chart)]


def modalities(runs: Sequence[RunData]) -> list[str]:
    """The modalities that the runs' metrics have, and `total` last if there are several."""
    keys = [k for r in runs for k in (*r.metrics.train, *r.metrics.evaluations)]
    found = {part for key in keys if "bits_per_byte" in key for part in key.split("/")}
    ordered = [n for n in MODALITY_NUMBERS if n in found]
    ordered += sorted(found - {*ordered, TOTAL, "bits_per_byte", "coded_bits_per_byte"})
    return [*ordered, TOTAL] if TOTAL in found and len(ordered) > 1 else ordered


def _overview(evaluations: Columns, names: Sequence[str]) -> Chart:
    """Bits per byte of all modalities on val."""
    series = [
        Series(name, _points(evaluations, f"{name}/bits_per_byte"), number, has_markers=True)
        for number, name in enumerate([*names, TOTAL] if len(names) > 1 else names)
    ]
    return Chart("Bits per byte on val", "bits per byte", series)


def _bits_chart(
    train: Columns, evaluations: Columns, name: str, codecs: Mapping[str, float]
) -> Chart:
    """Bits per byte of one modality in training and on val, with its best codecs as lines."""
    key = f"bits_per_byte/{name}"
    is_log = _needs_log(train, key)
    number = MODALITY_NUMBERS.get(name, 3)
    series = [Series("train", _curve(train, key, is_log), number)]
    points = _points(evaluations, f"{name}/bits_per_byte")
    if points.steps.size:
        series.append(Series("val", points, 6, has_markers=True))
    best = sorted(codecs.items(), key=lambda item: item[1])[:CODECS_SHOWN]
    levels = [Level(f"{codec} {number_text(round(bits, 2))}", bits) for codec, bits in best]
    is_log_y = _spans([s.curve for s in series], BITS_RATIO)
    return Chart(
        f"Bits per byte: {name}",
        "bits per byte",
        series,
        levels,
        is_log_x=is_log,
        is_log_y=is_log_y,
    )


def _loss(train: Columns) -> Chart:
    is_log = _needs_log(train, "loss")
    curve = _curve(train, "loss", is_log)
    series = [Series("loss", curve, 0)]
    is_log_y = _spans([curve])
    return Chart("Training loss", "nats per id", series, is_log_x=is_log, is_log_y=is_log_y)


def _rates(run: RunData) -> Chart:
    """The learning rates; Muon's has the same schedule as AdamW's, and another peak."""
    train, optimizer = run.metrics.train, section(run.config, "optimizer")
    adamw = _curve(train, "lr", is_smooth=False)
    series = [Series("AdamW", adamw, 0)]
    if optimizer.get("name") == "muon" and isinstance(optimizer.get("muon_lr"), float):
        peak = optimizer.get("lr") or 2e-2
        rates = train.get("lr", np.empty(0)) * (optimizer["muon_lr"] / peak)
        if rates.size and peak != optimizer["muon_lr"]:
            series.append(Series("Muon", thinned(train["step"], rates, is_smooth=False), 1))
        elif rates.size:
            series = [Series("both", adamw, 0)]
    return Chart("Learning rates", "learning rate", series)


def _figure(train: Columns, key: str, title: str, unit: str, name: str, factor: float = 1) -> Chart:
    """A figure of the training alone, in multiples of 1 / `factor`."""
    curve = _curve({name: c * factor if name == key else c for name, c in train.items()}, key)
    is_log_y = key == "grad_norm" and _spans([curve])
    return Chart(title, unit, [Series(name, curve, 0, is_labelled=False)], is_log_y=is_log_y)


def _anomalies(run: RunData) -> Chart:
    """Counts of spikes, skipped updates and masked bytes up to each step, if there were any."""
    series = []
    for number, kind in enumerate(("spike", "skipped", "damage")):
        records = [r for r in run.metrics.anomalies if r["kind"] == kind]
        if not records:
            continue
        sizes = np.array([float(r.get("bytes", 1)) if kind == "damage" else 1.0 for r in records])
        steps = np.array([0.0, *(float(r["step"]) for r in records), run.metrics.last_step])
        counts = np.concatenate([[0.0], np.cumsum(sizes), [sizes.sum()]])
        names = {"spike": "spikes", "skipped": "skipped", "damage": "masked bytes"}
        series.append(Series(names[kind], Curve(steps, counts, counts, counts), number))
    return Chart("Spikes, skipped updates, masked bytes", "number so far", series)


def _evaluation_series(runs: Sequence[tuple[str, Columns]], key: str) -> list[Series]:
    return [
        Series(name, _points(columns, key), number, has_markers=True)
        for number, (name, columns) in enumerate(runs)
    ]


def _curve(columns: Columns, key: str, is_log: bool = False, is_smooth: bool = True) -> Curve:
    none: Values = np.empty(0)
    steps = columns.get("step", none) if key in columns else none
    return thinned(steps, columns.get(key, none), is_log, is_smooth)


def _points(columns: Columns, key: str) -> Curve:
    """A curve with all its records, of which there are few."""
    if key not in columns:
        return _curve({}, key)
    is_known = np.isfinite(columns[key])
    steps, values = columns["step"][is_known], columns[key][is_known]
    return Curve(steps, values, values, values)


def _needs_log(columns: Columns, key: str) -> bool:
    return key in columns and steps_need_log(columns["step"], columns[key])


def _spans(curves: Sequence[Curve], ratio: float = LOG_RATIO) -> bool:
    """Whether the values span so wide a range that a logarithmic axis shows them better."""
    lines = [c.smoothed for c in curves if c.smoothed.size]
    if not lines:
        return False
    values = np.concatenate(lines)
    return bool(values.min() > 0 and values.max() / values.min() > ratio)

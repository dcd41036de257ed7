"""The numbers behind a report: thinned curves, axes, differences with intervals, config marks."""

from __future__ import annotations

import itertools
import json
import math
import re
from pathlib import Path

import numpy as np
import pytest
from helpers.run_folders import documents, write_run
from hypothesis import given
from hypothesis import strategies as st

from bytelm.model.presets import PRESETS
from bytelm.pipelines.reporting.bit_maps import draw_map
from bytelm.pipelines.reporting.charts import Chart, Level, Series, draw
from bytelm.pipelines.reporting.compare import differences
from bytelm.pipelines.reporting.config_lines import config_differences, config_lines
from bytelm.pipelines.reporting.cost import run_cost
from bytelm.pipelines.reporting.curves import BINS, thinned
from bytelm.pipelines.reporting.run_data import read_run
from bytelm.pipelines.reporting.scales import Scale, linear_ticks, number_text, steps_need_log


@pytest.mark.parametrize("is_log", [False, True])
def test_a_thinned_curve_keeps_the_smallest_and_the_largest_value_of_each_place(
    is_log: bool,
) -> None:
    steps = np.arange(1.0, 100_001)
    values = np.random.default_rng(0).normal(size=steps.size)
    values[[5, 70_000]] = 50, -60
    curve = thinned(steps, values, is_log)
    assert curve.steps.size <= BINS
    assert curve.high.max() == 50
    assert curve.low.min() == -60
    assert (curve.low <= curve.high).all()
    assert (np.diff(curve.steps) > 0).all()


def test_a_smoothed_line_is_the_mean_of_the_records_around_it() -> None:
    steps = np.arange(1.0, 5001)
    noise = np.random.default_rng(0).normal(size=steps.size)
    curve = thinned(steps, 3 + steps / 1000 + noise)
    assert np.abs(curve.smoothed - (3 + curve.steps / 1000))[10:-10].max() < 0.3
    exact = thinned(steps, steps * 2, is_smooth=False)
    np.testing.assert_allclose(exact.smoothed, 2 * exact.steps)


def test_records_that_are_not_finite_are_left_out_of_a_curve() -> None:
    curve = thinned(np.array([1.0, 2, 3]), np.array([1.0, np.nan, 3]))
    assert curve.steps.tolist() == [1, 3]
    assert thinned(np.empty(0), np.empty(0)).steps.size == 0


@given(st.floats(-1e6, 1e6), st.floats(1e-6, 1e6), st.integers(2, 8))
def test_ticks_are_round_numbers_inside_the_axis(low: float, length: float, count: int) -> None:
    high = low + length
    if high - low < 1e-9 * abs(low):
        return
    ticks = linear_ticks(low, high, count)
    assert len(ticks) <= count + 1
    slack = 1e-6 * (high - low)
    for tick in ticks:
        assert low - slack <= tick <= high + slack
    for first, second in itertools.pairwise(ticks):
        mantissa = (second - first) / 10 ** math.floor(math.log10(second - first) + 1e-6)
        assert min(abs(mantissa - f) for f in (1, 2, 2.5, 5, 10)) < 1e-3


@given(st.floats(1e-6, 1e6), st.floats(1.01, 1e9))
def test_a_logarithmic_axis_has_ticks_inside_it(low: float, ratio: float) -> None:
    scale = Scale(low, low * ratio, 0, 100, is_log=True)
    ticks = scale.ticks(5)
    assert 1 <= len(ticks) <= 7
    assert all(low * 0.999 <= tick <= low * ratio * 1.001 for tick in ticks)
    assert float(scale(low)) == pytest.approx(0, abs=1e-6)
    assert float(scale(low * ratio)) == pytest.approx(100)
    assert float(scale(low * math.sqrt(ratio))) == pytest.approx(50, rel=1e-6)


def test_steps_are_logarithmic_where_most_of_the_fall_is_early() -> None:
    steps = np.arange(1.0, 1001)
    assert steps_need_log(steps, 1 + 5 * steps**-0.7)
    assert not steps_need_log(steps, 5 - steps / 1000)


@pytest.mark.parametrize(
    ("value", "text"),
    [(0, "0"), (0.02, "0.02"), (1500, "1,500"), (20_000, "20k"), (3e6, "3M"), (2.5e-5, "2.5e-05")],
)
def test_numbers_of_axes_are_for_people(value: float, text: str) -> None:
    assert number_text(value) == text


def test_a_chart_names_axes_with_units_and_keeps_labels_apart() -> None:
    steps = np.arange(1.0, 50)
    series = [Series(f"run {n}", thinned(steps, 2 + n / 1e6 + steps * 0), n) for n in range(5)]
    levels = [Level("xz", 2.0), Level("gzip", 2.0001)]
    svg = str(draw(Chart("Loss", "nats per id", series, levels)))
    for words in ("training step", "nats per id", "run 0", "xz", "gzip"):
        assert f">{words}<" in svg
    places = [float(y) for y in re.findall(r'class="label[^"]*" x="[\d.]+" y="([\d.]+)"', svg)]
    assert len(places) == 7
    assert min(np.diff(sorted(places))) >= 13.9
    assert len(set(re.findall(r'stroke-dasharray="([^"]*)"', svg))) == 5


def test_bars_and_heat_maps_show_the_bits_per_byte_of_each_bin() -> None:
    bars = {"title": "by channel", "labels": ["red", "green", "none"], "shape": [3]}
    svg = str(draw_map({**bars, "bits": [30.0, 10.0, 0.0], "bytes": [10, 10, 0]}))
    assert ">3.00<" in svg
    assert "75%" in svg
    assert ">none<" not in svg
    grid = {"title": "over the picture", "labels": [""] * 6, "shape": [2, 3]}
    svg = str(draw_map({**grid, "bits": [8.0, 1, 1, 1, 1, 0], "bytes": [1, 1, 1, 1, 1, 0]}))
    assert svg.count("bits/byte</title>") == 5
    assert "8.000 bits/byte" in svg


def test_a_paired_interval_is_that_of_differences_and_holds_the_truth() -> None:
    rng = np.random.default_rng(1)
    first = rng.uniform(100, 600, 300)  # differs far more between documents than the models do
    second = first - 5 + 5 * rng.normal(size=300)
    about = {"about": {"sets": []}}
    (found,) = differences(
        {**about, "documents": documents(first.tolist())},
        {**about, "documents": documents(second.tolist())},
    )
    assert found.interval
    low, high = found.interval
    assert low < found.change < high < 0
    error = (second - first).std() / math.sqrt(300) / 100
    assert (high - low) / (2 * 1.96 * error) == pytest.approx(1, abs=0.15)


def test_runs_are_compared_on_the_documents_that_both_scored() -> None:
    about = {"sets": [{"path": "gone", "root": "a"}]}
    moved = {"sets": [{"path": "elsewhere", "root": "a"}]}
    first = {"about": about, "documents": documents([100.0, 300, 900])}
    second = {"about": moved, "documents": documents([90.0, 290], set_path="elsewhere")}
    (found,) = differences(first, second)
    assert (found.modality, found.documents) == ("text", 2)
    assert (found.first, found.second) == (2.0, 1.9)
    assert found.change == pytest.approx(-0.1)
    other = {"about": {"sets": [{"path": "gone", "root": "b"}]}, "documents": first["documents"]}
    assert differences(first, other) == []


def test_a_document_of_two_modalities_is_one_in_the_total() -> None:
    text = documents([100.0, 200.0])
    about = {"about": {"sets": []}}
    first = {**about, "documents": [*text, *({**d, "modality": "image"} for d in text)]}
    found = {d.modality: d for d in differences(first, first)}
    assert [(name, d.documents) for name, d in found.items()] == [
        ("text", 2),
        ("image", 2),
        ("total", 2),
    ]
    assert found["total"].first == 1.5


def test_config_lines_mark_what_differs_from_defaults_and_preset(tmp_path: Path) -> None:
    config = read_run(write_run(tmp_path / "run", eval_every=5)).config
    config["model"] = {**PRESETS["modern-demo"].to_dict(), "context": 4096}
    config["later"] = {"key": 1}
    lines = config_lines(json.loads(json.dumps(config)))
    changed = [line.text.strip() for line in lines if line.is_changed]
    assert "context: 4096" in changed
    assert "eval_every: 5" in changed
    assert "seed: 0" not in changed
    assert not any(text.startswith("patch_sizes") for text in changed)
    assert any("preset modern-demo" in line.text for line in lines)


def test_config_differences_name_each_key_with_the_value_of_each_run() -> None:
    first = {"train": {"steps": 5, "seed": 0}, "data": {"sets": [{"path": "a"}]}}
    second = {"train": {"steps": 6, "seed": 0}, "data": {"sets": [{"path": "a"}, {"path": "b"}]}}
    found = dict(config_differences([first, second]))
    assert found == {"train.steps": ["5", "6"], "data.sets[1].path": ["–", "b"]}


def test_the_cost_adds_up_steps_time_and_computation(tmp_path: Path) -> None:
    folder = write_run(tmp_path / "run")
    cost = run_cost(read_run(folder))
    assert (cost.steps, cost.planned_steps, cost.ids) == (40, 40, 40 * 256)
    assert cost.is_estimated
    assert cost.seconds == pytest.approx(40 * 250 / 1000)  # 256 ids, of which 6 are padding
    assert cost.flops
    session = {"started": "2026-01-01T00:00:00+00:00", "ended": "2026-01-01T00:01:30+00:00"}
    peak = {"peak_memory": {"resident": 5}}
    (folder / "environment.json").write_text(json.dumps({"sessions": [{**session, **peak}]}))
    cost = run_cost(read_run(folder))
    assert (cost.seconds, cost.is_estimated, cost.peak_memory) == (90, False, 5)

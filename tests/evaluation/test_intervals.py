"""Bootstrap intervals against a naive computation, document by document."""

from __future__ import annotations

import math

import numpy as np
import pytest

from bytelm.pipelines.evaluation import intervals
from bytelm.pipelines.evaluation.intervals import RESAMPLES, SEED, bootstrap_interval


def test_the_interval_is_that_of_the_drawn_documents() -> None:
    rng = np.random.default_rng(5)
    sizes = rng.integers(1, 5000, 40)
    bits = sizes * rng.uniform(1, 4, 40)
    generator = np.random.default_rng(SEED)
    ratios = []
    for _ in range(RESAMPLES):
        drawn = [int(generator.integers(0, 40)) for _ in range(40)]
        ratios.append(sum(bits[i] for i in drawn) / sum(int(sizes[i]) for i in drawn))
    ratios.sort()
    interval = bootstrap_interval(bits, sizes)
    assert interval is not None
    for end, share in zip(interval, (0.025, 0.975), strict=True):
        position = share * (RESAMPLES - 1)
        below, above = ratios[math.floor(position)], ratios[math.ceil(position)]
        assert below - 1e-9 <= end <= above + 1e-9


def test_the_interval_is_as_wide_as_theory_says() -> None:
    """Documents of one size: the mean of n values of deviation s lies within 1.96 s / √n."""
    bits = np.random.default_rng(1).normal(800, 30, 400)
    interval = bootstrap_interval(bits, np.full(400, 100))
    assert interval is not None
    half_width = (interval[1] - interval[0]) / 2
    assert half_width == pytest.approx(1.96 * 0.3 / 20, rel=0.1)
    assert sum(interval) / 2 == pytest.approx(bits.mean() / 100, abs=0.005)


def test_documents_and_not_bytes_are_drawn() -> None:
    """Each document four times as long: the same interval."""
    sizes = np.arange(1, 30)
    bits = sizes * np.linspace(1, 3, 29)
    assert bootstrap_interval(4 * bits, 4 * sizes) == bootstrap_interval(bits, sizes)


def test_many_documents_are_drawn_in_parts(monkeypatch: pytest.MonkeyPatch) -> None:
    bits, sizes = np.linspace(10, 20, 50), np.full(50, 8)
    whole = bootstrap_interval(bits, sizes)
    monkeypatch.setattr(intervals, "_DRAWS_AT_ONCE", 333)
    assert bootstrap_interval(bits, sizes) == whole


def test_one_document_has_no_interval() -> None:
    assert bootstrap_interval([], []) is None
    assert bootstrap_interval([5.0], [2]) is None
    assert bootstrap_interval([5.0, 0.0], [2, 0]) is None, "an empty document tells nothing"
    assert bootstrap_interval([5.0, 6.0], [2, 2]) == (2.5, 3.0)

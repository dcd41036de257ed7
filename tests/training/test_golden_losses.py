"""Fifty steps of presets have the recorded losses."""

import json
from pathlib import Path

import pytest

from bytelm.tools.golden_losses import FILE, STEPS, golden_losses

TOLERANCE = 5e-4
"""Relative. A processor of another kind adds in another order: AVX2 in place of AVX-512 moves a
loss of `tiny` by 1.2e-4 and of `modern-hour` by 3.5e-6 within the fifty steps."""


def test_losses_are_the_recorded_ones(tmp_path: Path) -> None:
    expected = json.loads(FILE.read_text("utf-8"))
    measured = golden_losses(tmp_path)
    assert measured.keys() == expected.keys()
    for preset, losses in measured.items():
        assert len(losses) == STEPS
        assert losses == pytest.approx(expected[preset], rel=TOLERANCE), preset

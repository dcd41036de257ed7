"""Fifty steps of presets give the losses that are recorded."""

import json
from pathlib import Path

import pytest

from bytelm.tools.golden_losses import FILE, STEPS, golden_losses

TOLERANCE = 5e-4
"""Relative. On a processor of another kind sums have another order: AVX2 in place of AVX-512
moves a loss of `tiny` by 1.2e-4 and of `modern-hour` by 3.5e-6 within the fifty steps."""


def test_the_losses_are_those_recorded(tmp_path: Path) -> None:
    expected = json.loads(FILE.read_text("utf-8"))
    found = golden_losses(tmp_path)
    assert found.keys() == expected.keys()
    for preset, losses in found.items():
        assert len(losses) == STEPS
        assert losses == pytest.approx(expected[preset], rel=TOLERANCE), preset

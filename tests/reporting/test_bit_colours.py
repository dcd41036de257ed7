"""The scale of bits can be read without hues, and text on it too."""

from __future__ import annotations

import re

import numpy as np
import pytest

from bytelm.pipelines.reporting.bit_colours import (
    LEVELS,
    bit_colour,
    bit_css,
    bit_legend,
    bit_level,
    hex_colour,
    ink_on,
    level_colours,
    luminance,
)

# Machado, Oliveira and Fernandes (2009), severity 1, for linear RGB.
PROTANOPIA = [
    [0.152286, 1.052583, -0.204868],
    [0.114503, 0.786281, 0.099216],
    [-0.003882, -0.048116, 1.051998],
]
DEUTERANOPIA = [
    [0.367322, 0.860646, -0.227968],
    [0.280085, 0.672501, 0.047413],
    [-0.01182, 0.04294, 0.968881],
]
BITS = np.linspace(0, 8, 81)


def test_lightness_rises_with_the_bits() -> None:
    assert (np.diff(luminance(bit_colour(BITS))) > 0).all()


@pytest.mark.parametrize("matrix", [PROTANOPIA, DEUTERANOPIA], ids=["protanopia", "deuteranopia"])
def test_lightness_rises_for_colour_blind_people_too(matrix: list[list[float]]) -> None:
    linear = (bit_colour(BITS[::2]) / 255) ** 2.2
    seen = np.clip(linear @ np.array(matrix).T, 0, 1) @ np.array([0.2126, 0.7152, 0.0722])
    assert (np.diff(seen) > 0).all()


def test_bits_outside_of_the_scale_take_the_colour_of_its_end() -> None:
    assert (bit_colour([-0.1, 1e9]) == bit_colour([0.0, 8.0])).all()
    assert bit_level([0.0, 4.0, 8.0, 24.0]).tolist() == [0, LEVELS // 2, LEVELS, LEVELS]


def test_ink_has_a_contrast_of_at_least_4_5_on_every_level() -> None:
    colours = level_colours()
    inks = np.array([list(bytes.fromhex(ink[1:])) for ink in ink_on(colours)], np.uint8)
    pair = np.sort([luminance(colours), luminance(inks)], 0)
    assert ((pair[1] + 0.05) / (pair[0] + 0.05)).min() >= 4.5


def test_the_style_sheet_has_a_rule_for_each_level() -> None:
    rules = re.findall(r"\.bits-(\d+)\{background:(#\w{6});color:#\w{6}\}", bit_css())
    assert [int(level) for level, _ in rules] == list(range(LEVELS + 1))
    assert rules[-1][1] == hex_colour(bit_colour(8.0))


def test_the_legend_counts_in_the_unit_of_the_map() -> None:
    assert re.findall(r">([\d.+]+)</text>", bit_legend("bits per pixel", 3)) == [
        *("0", "6", "12", "18"),
        "24+",
    ]
    assert "&lt;b&gt;" in bit_legend("<b>")

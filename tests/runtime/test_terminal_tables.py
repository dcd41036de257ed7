"""Tables on narrow terminals."""

from __future__ import annotations

import io

import pytest
from helpers.evaluations import made_up_evaluation
from rich.console import Console
from rich.table import Table

from bytelm.pipelines.evaluation.table import evaluation_table
from bytelm.pipelines.runtime.tables import print_table

MODEL = {"image": {"bits_per_byte": 2.125, "coded_bits_per_byte": 2.25, "payload_bytes": 1e11}}


@pytest.mark.parametrize("width", [20, 40, 80, 200])
def test_no_number_is_cut_at_any_width(width: int) -> None:
    console = Console(file=io.StringIO(), width=width)
    codecs = {"image": {"gzip": 1.111, "xz": 2.222, "PNG": 3.333, "WebP": 4.444}}
    print_table(console, evaluation_table(made_up_evaluation(model=MODEL, codecs=codecs)))
    assert isinstance(console.file, io.StringIO)
    shown = console.file.getvalue()
    assert "…" not in shown
    for number in ("2.125", "2.250", "100.0 GB", "1.111", "2.222", "3.333", "4.444"):
        assert number in shown
    assert console.width == width


def test_a_table_that_fits_keeps_its_width() -> None:
    console = Console(file=io.StringIO(), width=30)
    table = Table("set", "bytes")
    table.add_row("short", "1")
    print_table(console, table)
    assert isinstance(console.file, io.StringIO)
    assert max(map(len, console.file.getvalue().splitlines())) <= 30

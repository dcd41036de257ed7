"""Blocks of texts hold what the rows hold that are read one by one."""

from __future__ import annotations

import gzip
from collections.abc import Iterable
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from bytelm.modalities.base import DecodeOptions, Limits, MediaError
from bytelm.pipelines.prepare import table_blocks
from bytelm.pipelines.prepare.table_blocks import read_blocks
from bytelm.pipelines.prepare.table_decode import text_bytes
from bytelm.pipelines.prepare.table_rows import Row, read_rows
from bytelm.pipelines.prepare.tables import (
    RowGroup,
    TableFields,
    TableFormat,
    TableUnit,
    row_split,
    row_splits,
    table_units,
)
from bytelm.pipelines.shards.format import SPLITS

LIMIT = 60
LINES = [
    b'\xef\xbb\xbf{"text": "after a mark"}',
    b'{"text": "plain", "other": [1, {"text": 2}]}',
    '{"text": "ü ☃ 😀"}'.encode(),
    b'{"text": "\\u00fc \\ud83d\\ude00"}\r',
    b'  {"text": "spaces around"} \t',
    b'{"text": "two values"} {}',
    b'{"text": "first", "text": "last"}',
    b'{"text": ""}',
    b'{"text": null}',
    b'{"text": 5}',
    b'{"text": "\\u0000"}',
    b'{"text": "\\ud800"}',
    b'{"other": "text"}',
    b'["text"]',
    b'"text"',
    b"",
    b" \t\r",
    b'{"text": "cut',
    b'{"text": "\xff"}',
    b'{"text": NaN}',
    b'{"text": "a", "score": NaN}',
    b'{"text": "' + b"x" * LIMIT + b'"}',
    b'{"text": "' + b"y" * (LIMIT - 12) + b'"}',
    b'{"text": "' + b"z" * (LIMIT - 11) + b'"}',
    b"[" * 50,
    b'{"text": "the end"}',
]
TEXTS = [b"plain", None, b"", "ü".encode(), b"\xff", b"x" * LIMIT, b"x" * (LIMIT + 1), b"end"]

Outcome = bytes | tuple[str, str]
"""A row's text, or the reason and detail of its refusal."""


def outcome(row: Row) -> Outcome:
    options = DecodeOptions(limits=Limits(max_bytes=LIMIT))
    try:
        if isinstance(row.values, MediaError):
            raise row.values
        return text_bytes(row.values[0], "text", options)
    except MediaError as error:
        return error.reason, error.detail


def outcomes_by_row(rows: Iterable[Row]) -> dict[int, tuple[Outcome, int]]:
    return {row.number: (outcome(row), row.size) for row in rows}


def outcomes_by_block(unit: TableUnit, first: int) -> dict[int, tuple[Outcome, int]]:
    """As `outcomes_by_row`, without the sizes of single sound rows, which are checked in sum."""
    found: dict[int, Outcome] = {}
    sizes: dict[int, int] = {}
    expected = outcomes_by_row(read_rows(unit, first, LIMIT))
    for block in read_blocks(unit, first, LIMIT):
        found |= zip(block.numbers, map(bytes, block.texts), strict=True)
        found |= {row.number: outcome(row) for row in block.others}
        sizes |= {row.number: row.size for row in block.others}
        assert block.size == sum(expected[number][1] for number in block.numbers)
        sizes |= {number: expected[number][1] for number in block.numbers}
        assert max((*block.numbers, *(row.number for row in block.others)), default=0) < block.stop
    return {number: (found[number], sizes[number]) for number in found}


def unit_of(path: Path, kind: str, compression: str = "") -> TableUnit:
    size = path.stat().st_size
    return TableUnit(
        *(path.name, "a-b", str(path), TableFormat(kind, compression)),
        *(TableFields("text"), None, 0, size, 0, None, size),
    )


@pytest.mark.parametrize("block_lines", [1, 3, 1024])
def test_lines_of_every_kind(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, block_lines: int
) -> None:
    monkeypatch.setattr(table_blocks, "BLOCK_LINES", block_lines)
    path = tmp_path / "a.jsonl"
    path.write_bytes(b"\n".join(LINES) + b"\n")
    unit = unit_of(path, "jsonl")
    rows = outcomes_by_row(read_rows(unit, 0, LIMIT))
    assert len(rows) == len(LINES) - 2  # two are blank
    assert sum(isinstance(text, bytes) for text, _ in rows.values()) == 9
    for first in [0, *rows]:
        assert outcomes_by_block(unit, first) == {n: row for n, row in rows.items() if n >= first}


@pytest.mark.parametrize("block_lines", [1, 3, 1024])
def test_compressed_lines_of_every_kind(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, block_lines: int
) -> None:
    monkeypatch.setattr(table_blocks, "BLOCK_LINES", block_lines)
    path = tmp_path / "a.jsonl.gz"
    path.write_bytes(gzip.compress(b"\n".join(LINES)))
    unit = unit_of(path, "jsonl", "gz")
    rows = outcomes_by_row(read_rows(unit, 0, LIMIT))
    assert len(rows) == len(LINES) - 2
    for first in [0, *rows]:
        assert outcomes_by_block(unit, first) == {n: row for n, row in rows.items() if n >= first}


@pytest.mark.parametrize("size", [100, 250_000])
def test_lines_before_damage_come_before_it_is_told(tmp_path: Path, size: int) -> None:
    path = tmp_path / "a.jsonl.gz"
    lines = "".join(f'{{"text": "line {i} of many"}}\n' for i in range(100_000))
    path.write_bytes(gzip.compress(lines.encode())[:size])
    found: list[bytes] = []
    blocks = read_blocks(unit_of(path, "jsonl", "gz"), 0, LIMIT)
    with pytest.raises(MediaError, match="the rest of the compressed rows"):
        found.extend(bytes(text) for block in blocks for text in block.texts)
    assert found[:3] == [b"line 0 of many", b"line 1 of many", b"line 2 of many"][: len(found)]
    assert (len(found) > 80_000) == (size > 100)


@pytest.mark.parametrize("block_bytes", [1, 40, 1 << 20])
@pytest.mark.parametrize("kind", [pa.string(), pa.large_string(), pa.binary(), pa.large_binary()])
def test_columns_of_every_kind(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kind: pa.DataType, block_bytes: int
) -> None:
    monkeypatch.setattr(table_blocks, "BLOCK_BYTES", block_bytes)
    path = tmp_path / "a.parquet"
    is_large = kind in (pa.large_string(), pa.large_binary())
    column = pa.array(TEXTS, pa.large_binary() if is_large else pa.binary())
    pq.write_table(pa.table({"text": column.view(kind)}), path)
    groups = [RowGroup(len(TEXTS), path.stat().st_size)]
    (unit,) = table_units(unit_of(path, "parquet"), groups)
    rows = outcomes_by_row(read_rows(unit, 0, LIMIT))
    assert len(rows) == len(TEXTS)
    assert sum(isinstance(text, bytes) for text, _ in rows.values()) == 5
    for first in rows:
        assert outcomes_by_block(unit, first) == {n: row for n, row in rows.items() if n >= first}


def test_a_column_with_a_zero_byte_and_one_of_dictionaries(tmp_path: Path) -> None:
    path = tmp_path / "a.parquet"
    values = pa.array(["a", "b\0", "c", None, "a"]).dictionary_encode()
    pq.write_table(pa.table({"text": values}), path)
    (unit,) = table_units(unit_of(path, "parquet"), [RowGroup(5, path.stat().st_size)])
    rows = outcomes_by_row(read_rows(unit, 0, LIMIT))
    assert outcomes_by_block(unit, 0) == rows
    assert [isinstance(text, bytes) for text, _ in rows.values()] == [
        True,
        False,
        True,
        False,
        True,
    ]


def test_splits_of_many_keys_are_those_of_each() -> None:
    keys = [f"key-{number}" for number in range(3000)]
    for shares in ((0.9, 0.05, 0.05), (1.0, 0.0, 0.0), (0.0, 0.5, 0.5), (0.3, 0.3, 0.4)):
        splits = [SPLITS[place] for place in row_splits(keys, shares)]
        assert splits == [row_split(key, shares) for key in keys]

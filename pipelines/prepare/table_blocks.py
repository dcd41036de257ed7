"""Blocks of rows of one text each, read with little work for a row.

A row that is not plainly one sound text is read by `table_rows.py`, which knows what is wrong.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
import orjson

from bytelm.pipelines.prepare.table_rows import (
    Row,
    arrow_errors,
    binary_column,
    json_row,
    parquet_batches,
    range_lines,
    read_rows,
)
from bytelm.pipelines.prepare.tables import JSONL, PARQUET, TableUnit

BLOCK_LINES = 1024
BLOCK_BYTES = 1 << 22
"""Bytes of the texts of a block of Parquet rows, unless it is one row."""

_NONE = np.empty(0, np.int64)
_NO_PLAIN_TEXT = (ValueError, TypeError, LookupError, AttributeError)
"""Errors of a line that has no JSON, no object, no such field or no string in it. orjson refuses
some lines that `json` takes, such as those with NaN."""


class TextBlock(NamedTuple):
    """Consecutive rows of a unit."""

    numbers: npt.NDArray[np.int64]
    """Rows that are sound texts."""
    texts: Sequence[bytes | memoryview]
    """The text of each of these."""
    others: Sequence[Row]
    """The other rows, which may be sound too."""
    size: int
    """Bytes of the sound rows."""
    stop: int
    """Row number after the last row."""


def read_blocks(unit: TableUnit, first: int, limit: int) -> Iterator[TextBlock]:
    """The rows of a unit whose only field is a text, from row number `first` on.

    Args:
        limit: bytes of the longest line and text.
    Raises:
        MediaError, OSError, MemoryError: see read_rows.
    """
    if unit.format == (JSONL, ""):
        yield from _json_blocks(unit, first, limit)
    elif unit.format.kind == PARQUET:
        yield from _parquet_blocks(unit, first, limit)
    else:
        for row in read_rows(unit, first, limit):
            yield TextBlock(_NONE, (), (row,), 0, row.number + 1)


def _json_blocks(unit: TableUnit, first: int, limit: int) -> Iterator[TextBlock]:
    """The lines of a byte range."""
    position, lines = range_lines(unit, first, limit)
    for start in range(0, len(lines), BLOCK_LINES):
        block = _lines_block(unit, position, lines[start : start + BLOCK_LINES], limit)
        yield block
        position = block.stop


def _lines_block(unit: TableUnit, position: int, lines: Sequence[bytes], limit: int) -> TextBlock:
    """Lines with their ends, of which the first begins at `position`."""
    field, loads = unit.fields.text, orjson.loads
    texts: list[bytes] = []
    for line in lines:
        try:
            texts.append(loads(line)[field].encode())
        except _NO_PLAIN_TEXT:
            texts.append(b"")
    lengths = np.fromiter(map(len, lines), np.int64, len(lines))
    ends = position + np.cumsum(lengths)
    is_sound = np.array([bool(text) and b"\0" not in text for text in texts])
    is_sound &= lengths <= limit  # without its end, a line may be as long as that
    numbers = ends - lengths
    sound = np.flatnonzero(is_sound)
    line_ends = np.ones(len(lines), np.int64)
    line_ends[-1] = lines[-1].endswith(b"\n")
    others = [
        row
        for i in np.flatnonzero(~is_sound).tolist()
        if (row := json_row(int(numbers[i]), lines[i].removesuffix(b"\n"), unit.fields, limit))
    ]
    if len(sound) < len(lines):
        texts = [texts[row] for row in sound.tolist()]
    size = int((lengths - line_ends)[sound].sum())
    return TextBlock(numbers[sound], texts, others, size, int(ends[-1]))


def _parquet_blocks(unit: TableUnit, first: int, limit: int) -> Iterator[TextBlock]:
    """The rows of a row group. Texts stay where Arrow has them."""
    for number, batch in parquet_batches(unit):
        start = max(number, first)
        with arrow_errors():
            column = binary_column(batch.column(0))[start - number :]
        if len(column):
            yield from _column_blocks(start, column, limit)


def _column_blocks(number: int, column: Any, limit: int) -> Iterator[TextBlock]:
    """The rows of a column, of which `number` is the first, in blocks of BLOCK_BYTES."""
    import pyarrow as pa

    if not (pa.types.is_binary(column.type) or pa.types.is_large_binary(column.type)):
        for row, value in enumerate(column.to_pylist(), number):
            yield TextBlock(_NONE, (), (Row(row, 0, (value, None, None)),), 0, row + 1)
        return
    offset_type = np.int32 if pa.types.is_binary(column.type) else np.int64
    _, offset_buffer, data_buffer = column.buffers()
    offsets = np.frombuffer(offset_buffer, offset_type)[column.offset :][: len(column) + 1]
    view = memoryview(data_buffer or b"").cast("B")
    data = np.frombuffer(view, np.uint8)
    sizes = np.diff(offsets)
    is_text = column.is_valid().to_numpy(zero_copy_only=False) & (sizes > 0) & (sizes <= limit)
    first = 0
    while first < len(sizes):
        end = int(offsets[first]) + BLOCK_BYTES
        stop = max(int(np.searchsorted(offsets, end, side="right")) - 1, first + 1)
        is_sound = is_text[first:stop] & data[offsets[first] : offsets[stop]].all()
        sound = first + np.flatnonzero(is_sound)
        starts, ends = offsets[sound].tolist(), offsets[sound + 1].tolist()
        yield TextBlock(
            numbers=number + sound,
            texts=[view[start:end] for start, end in zip(starts, ends, strict=True)],
            others=[
                _binary_row(number + row, column[row].as_py())
                for row in (first + np.flatnonzero(~is_sound)).tolist()
            ],
            size=int(sizes[sound].sum()),
            stop=number + stop,
        )
        first = stop


def _binary_row(number: int, value: bytes | None) -> Row:
    return Row(number, len(value or b""), (value, None, None))

"""Blocks of rows of one text each, read with little work for a row.

A row that is not plainly one sound text is read by `table_rows.py`, which knows what is wrong.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple, TypeVar

import numpy as np
import numpy.typing as npt
import orjson

from bytelm.pipelines.prepare.table_rows import (
    Row,
    arrow_errors,
    binary_column,
    json_row,
    packed_lines,
    parquet_batches,
    range_lines,
    read_rows,
)
from bytelm.pipelines.prepare.tables import JSONL, PARQUET, TableUnit

BLOCK_LINES = 1024
BLOCK_BYTES = 1 << 22
"""Bytes of the texts of a block of Parquet rows, unless it is one row."""

T = TypeVar("T")

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
        yield from _range_blocks(unit, first, limit)
    elif unit.format.kind == JSONL:
        yield from _packed_blocks(unit, first, limit)
    elif unit.format.kind == PARQUET:
        yield from _parquet_blocks(unit, first, limit)
    else:
        for rows in _batches(read_rows(unit, first, limit), lambda row: row.size):
            yield TextBlock(_NONE, (), rows, 0, rows[-1].stop)


def _range_blocks(unit: TableUnit, first: int, limit: int) -> Iterator[TextBlock]:
    """The lines of a byte range, numbered by their first byte."""
    position, lines = range_lines(unit, first, limit)
    for start in range(0, len(lines), BLOCK_LINES):
        some = lines[start : start + BLOCK_LINES]
        lengths = np.fromiter(map(len, some), np.int64, len(some))
        ends = position + np.cumsum(lengths)
        sizes = lengths - 1  # without the end of the line, which the last one may lack
        sizes[-1] = len(some[-1].removesuffix(b"\n"))
        position = int(ends[-1])
        yield _lines_block(unit, some, sizes, ends - lengths, limit)._replace(stop=position)


def _packed_blocks(unit: TableUnit, first: int, limit: int) -> Iterator[TextBlock]:
    """The lines of a compressed file, numbered by the lines before them."""
    number = first
    for lines in _batches(packed_lines(unit, first, limit), len):
        sizes = np.fromiter(map(len, lines), np.int64, len(lines))
        yield _lines_block(unit, lines, sizes, number + np.arange(len(lines)), limit)
        number += len(lines)


def _batches(items: Iterator[T], size_of: Callable[[T], int]) -> Iterator[list[T]]:
    """Consecutive items, up to BLOCK_LINES or some BLOCK_BYTES of them. Where reading them raises
    an error, those before it come first."""
    batch: list[T] = []
    size, error = 0, None
    try:
        for item in items:
            batch.append(item)
            size += size_of(item)
            if len(batch) == BLOCK_LINES or size >= BLOCK_BYTES:
                yield batch
                batch, size = [], 0
    except Exception as cause:
        error = cause
    if batch:
        yield batch
    if error:
        raise error


def _lines_block(
    unit: TableUnit,
    lines: Sequence[bytes],
    sizes: npt.NDArray[np.int64],
    numbers: npt.NDArray[np.int64],
    limit: int,
) -> TextBlock:
    """The rows of lines.

    Args:
        unit: which they belong to.
        lines: [lines] with their ends.
        sizes: [lines] bytes of each that are the row's.
        numbers: [lines] of each row.
        limit: bytes of the longest row.
    """
    stop = int(numbers[-1]) + 1
    plain_texts = _plain_texts(lines, unit.fields.text)
    if plain_texts is not None and sizes.max() <= limit:
        return TextBlock(numbers, plain_texts, (), int(sizes.sum()), stop)
    field, loads = unit.fields.text, orjson.loads
    texts: list[bytes] = []
    for line in lines:
        try:
            texts.append(loads(line)[field].encode() if line.startswith(b"{") else b"")
        except _NO_PLAIN_TEXT:
            texts.append(b"")
    is_sound = np.array([bool(text) and b"\0" not in text for text in texts])
    is_sound &= sizes <= limit
    sound, unsound = np.flatnonzero(is_sound), np.flatnonzero(~is_sound)
    others = []
    for i, number, size in zip(
        unsound.tolist(), numbers[unsound].tolist(), sizes[unsound].tolist(), strict=True
    ):
        if row := json_row(number, lines[i][:size], unit.fields, limit):
            others.append(row)
    if len(unsound):
        texts = [texts[i] for i in sound.tolist()]
    return TextBlock(numbers[sound], texts, others, int(sizes[sound].sum()), stop)


def _plain_texts(lines: Sequence[bytes], field: str | None) -> list[bytes] | None:
    """The text of each line, read with little work for a line; None where one has no sound text."""
    loads = orjson.loads
    try:
        texts: list[bytes] = [loads(line)[field].encode() for line in lines]
    except _NO_PLAIN_TEXT:
        return None
    has_zeros = True in [b"\0" in text for text in texts]
    return texts if all(texts) and not has_zeros else None


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
    valid_bits, offset_buffer, data_buffer = column.buffers()
    offsets = np.frombuffer(offset_buffer, offset_type)[column.offset :][: len(column) + 1]
    view = memoryview(data_buffer or b"").cast("B")
    data = np.frombuffer(view, np.uint8)
    sizes = np.diff(offsets)
    is_text = (sizes > 0) & (sizes <= limit)
    if valid_bits is not None:
        bits = np.unpackbits(np.frombuffer(valid_bits, np.uint8), bitorder="little")
        is_text &= bits[column.offset :][: len(column)].astype(bool)
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

"""Tables of documents, one a row: which files are tables, and the units that workers read.

A unit is a part of a table that a worker reads alone: a byte range of a plain JSONL file, a row
group of a Parquet file, or a whole compressed or CSV file. The units of all tables come after the
documents of files, sorted by the SHA-256 of their keys, so that the rows of large tables mix.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterable, Iterator, Sequence
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from bytelm.pipelines.prepare.documents import KEY_HASH, split_of

JSONL, CSV, PARQUET = "jsonl", "csv", "parquet"
UNIT_BYTES = 1 << 21
"""Bytes of a plain JSONL file in one unit."""
TABLE_KEY_MAX = 68
"""Characters of a table's key, which leaves room for the row and the suffix in a tar's name."""

_NAME = re.compile(
    r".+\.(?:(?P<lines>jsonl|ndjson)(?:\.(?P<lines_packed>gz|zst))?|json\.(?P<json_packed>gz|zst)"
    r"|(?P<separated>csv|tsv)(?:\.(?P<separated_packed>gz))?|(?P<parquet>parquet))",
    re.IGNORECASE,
)


class TableFields(NamedTuple):
    """The columns that hold the parts of a row's document; None for a part that rows lack."""

    text: str | None = None
    image: str | None = None
    audio: str | None = None


class TableFormat(NamedTuple):
    """How a table is stored."""

    kind: str
    """JSONL, CSV or PARQUET."""
    compression: str
    """"gz", "zst" or empty."""


class TableUnit(NamedTuple):
    """A part of a table."""

    name: str
    """Name of the table, relative to its source."""
    key: str
    """Keys of rows are this and the row's number."""
    path: str
    format: TableFormat
    fields: TableFields
    split: str | None
    """Split of all rows; None where each row's key decides."""
    start: int
    """First byte of a range, or number of a row group."""
    stop: int
    """Byte after the range; lines that begin before it belong to the unit."""
    first_row: int
    """Number of the unit's first row. A row of a plain JSONL file is numbered by the byte at which
    it begins, any other row by the rows before it in the table."""
    rows: int | None
    """Rows of a row group; None where nobody knows them before they are read."""
    size: int
    """Bytes of the file."""
    moved: tuple[tuple[int, str], ...] = ()
    """Rows of a small set that are in another split than their keys say, and that split."""


class RowGroup(NamedTuple):
    """A row group of a Parquet file."""

    rows: int
    size: int
    """Bytes in the file."""


def table_format(name: str) -> TableFormat | None:
    """The format of a table by the suffix of its name; None for a file of another kind."""
    match = _NAME.fullmatch(name.rpartition("/")[2])
    if match is None:
        return None
    kind = PARQUET if match["parquet"] else CSV if match["separated"] else JSONL
    packed = match["lines_packed"] or match["json_packed"] or match["separated_packed"] or ""
    return TableFormat(kind, packed.lower())


def key_start(key: str, table_format: TableFormat) -> str:
    """The start of the keys of a table's rows, which their numbers follow.

    Args:
        key: the table's own key.
    """
    if len(key) > TABLE_KEY_MAX:
        digest = hashlib.sha256(key.encode()).hexdigest()[:KEY_HASH]
        key = f"{key[: TABLE_KEY_MAX - KEY_HASH - 1]}-{digest}"
    return f"{key}-b" if table_format == (JSONL, "") else f"{key}-r"


def row_key(unit: TableUnit, row: int) -> str:
    """The key of a row's document."""
    return f"{unit.key}{row}"


def row_split(key: str, shares: tuple[float, float, float]) -> str:
    """The split of a row that no folder assigns."""
    return split_of(hashlib.sha256(key.encode()).digest(), shares)


def row_splits(keys: Sequence[str], shares: tuple[float, float, float]) -> npt.NDArray[np.int64]:
    """[keys] what `row_split` says of each key, as its place in SPLITS."""
    digests = b"".join([hashlib.sha256(key).digest() for key in map(str.encode, keys)])
    positions = np.frombuffer(digests, ">u8")[3::4] / 2.0**64
    return (positions >= shares[0]).astype(np.int64) + (positions >= shares[0] + shares[1])


def table_units(table: TableUnit, row_groups: Iterable[RowGroup] | None) -> Iterator[TableUnit]:
    """The units of a table.

    Args:
        table: the whole table.
        row_groups: of a Parquet file; None for other kinds.
    """
    if row_groups is not None:
        first_row = 0
        for number, group in enumerate(row_groups):
            yield table._replace(
                start=number, first_row=first_row, rows=group.rows, size=group.size
            )
            first_row += group.rows
    elif table.format == (JSONL, ""):
        for start in range(0, table.size, UNIT_BYTES):
            stop = min(start + UNIT_BYTES, table.size)
            yield table._replace(start=start, stop=stop, first_row=start, size=stop - start)
    else:
        yield table


def in_set_order(units: Iterable[TableUnit]) -> list[TableUnit]:
    """Units in the order in which the set has them."""

    def rank(unit: TableUnit) -> tuple[bytes, str, int]:
        first = row_key(unit, unit.first_row)
        return hashlib.sha256(first.encode()).digest(), first, unit.start

    return sorted(units, key=rank)

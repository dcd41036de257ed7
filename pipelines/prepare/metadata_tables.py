"""Small tables that describe the files beside them: one row a file, as CSV, JSON lines or Parquet.

The scan reads CSV and JSON lines itself, with a limit of size. Parquet files are read in a process
with limits of memory and time, since a hostile one can crash the reader.
"""

from __future__ import annotations

import csv
import json
import os
import subprocess
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Literal

from bytelm.pipelines.prepare.captions import first_text

MAX_TABLE_BYTES = 1 << 28
MAX_FIELD_BYTES = 1 << 20
_MAIN = "from bytelm.pipelines.prepare.metadata_tables import main; main()"


@dataclass(frozen=True)
class MetadataTable:
    """A table of texts."""

    columns: Sequence[str]
    rows: Sequence[Sequence[str]]
    """[rows][columns]; a value that is no text is empty."""


def read_metadata(path: str) -> MetadataTable | None:
    """Read a table whose first row names the columns, by its suffix: `.csv`, `.tsv`, `.jsonl` or
    `.parquet`. None where it cannot be read as such, or is larger than MAX_TABLE_BYTES."""
    try:
        if os.path.getsize(path) > MAX_TABLE_BYTES:
            return None
        suffix = os.path.splitext(path)[1].lower()
        if suffix == ".parquet":
            return _read_parquet(path)
        if suffix == ".jsonl":
            return _of_objects(_json_objects(path))
        header, *rows = read_records(path, "\t" if suffix == ".tsv" else _separator(path))
    except (OSError, ValueError, RecursionError, csv.Error):
        return None
    width = len(header)
    return MetadataTable(header, [(*row, *[""] * (width - len(row)))[:width] for row in rows])


def read_records(path: str, delimiter: str) -> Iterator[list[str]]:
    """The records of a delimited text in UTF-8, without empty ones. Quotes count, but not where
    tabs divide the fields.

    Raises OSError, ValueError for other encodings, and csv.Error.
    """
    quoting: Literal[0, 3] = csv.QUOTE_NONE if delimiter == "\t" else csv.QUOTE_MINIMAL
    limit = csv.field_size_limit(MAX_FIELD_BYTES)
    try:
        with open(path, encoding="utf-8-sig", newline="") as file:
            for record in csv.reader(file, delimiter=delimiter, quoting=quoting):
                if record:
                    yield record
    finally:
        csv.field_size_limit(limit)


def _separator(path: str) -> str:
    """The character between the fields of a CSV file: the commoner one in its first line."""
    with open(path, encoding="utf-8-sig") as file:
        header = file.readline(MAX_FIELD_BYTES)
    return ";" if header.count(";") > header.count(",") else ","


def _json_objects(path: str) -> Iterator[dict[str, object]]:
    """The objects of JSON lines; ValueError for a line that is none."""
    with open(path, encoding="utf-8-sig") as file:
        for line in file:
            if line.strip():
                value = json.loads(line)
                if not isinstance(value, dict):
                    raise ValueError("a line that is no object")
                yield value


def _of_objects(objects: Iterator[dict[str, object]]) -> MetadataTable:
    """The table of objects, with the columns of all of them."""
    columns: dict[str, int] = {}
    rows: list[list[str]] = []
    for values in objects:
        for name in values:
            columns.setdefault(name, len(columns))
        row = [""] * len(columns)
        for name, value in values.items():
            row[columns[name]] = first_text(value) or ""
        rows.append(row)
    return MetadataTable(list(columns), [row + [""] * (len(columns) - len(row)) for row in rows])


def _read_parquet(path: str) -> MetadataTable | None:
    """Read a Parquet file in a process of its own; None where that fails."""
    command = [sys.executable, "-P", "-c", _MAIN, path]
    result = subprocess.run(command, stdin=subprocess.DEVNULL, capture_output=True, check=False)
    if result.returncode:
        return None
    columns, rows = json.loads(result.stdout)
    return MetadataTable(columns, rows)


def main() -> None:
    """Print the columns and rows of the Parquet file in the argument, as JSON."""
    from pyarrow.parquet import ParquetFile

    from bytelm.modalities.base import DecodeOptions
    from bytelm.pipelines.prepare.decode_worker import (
        cpu_seconds,
        limit_memory,
        limit_time,
        silence,
    )

    path = sys.argv[1]
    silence()
    limit_memory(DecodeOptions())
    limit_time(cpu_seconds(os.path.getsize(path)))
    rows: list[list[str]] = []
    size = 0
    with ParquetFile(path, pre_buffer=False) as file:
        columns = file.schema_arrow.names
        for batch in file.iter_batches(1024, use_threads=False):
            values = [[first_text(value) or "" for value in c.to_pylist()] for c in batch.columns]
            rows += map(list, zip(*values, strict=True))
            size += sum(len(value) for column in values for value in column)
            if size > MAX_TABLE_BYTES:
                sys.exit(1)
    json.dump([columns, rows], sys.stdout)

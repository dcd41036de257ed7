"""Inspection of tables: their columns and row groups, in a process with limits of memory and time.

A table is untrusted, so the process that scans sources does not open it. `inspect_table` runs in a
process of its own, which `table_scan.py` starts.
"""

from __future__ import annotations

import json
import os
import signal
import sys
from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import asdict, dataclass, field
from itertools import islice
from typing import Any

from bytelm.modalities.base import DecodeOptions, MediaError
from bytelm.modalities.binary_kinds import binary_kind
from bytelm.modalities.detect import (
    START_BYTES,
    claimed_modality,
    modality_of,
    refuse_pointer,
)
from bytelm.pipelines.errors import one_line
from bytelm.pipelines.prepare.decode_worker import cpu_seconds, limit_memory, limit_time, silence
from bytelm.pipelines.prepare.table_decode import text_bytes
from bytelm.pipelines.prepare.table_fields import AUDIO, IMAGE, OTHER, TEXT, choose_fields
from bytelm.pipelines.prepare.table_rows import (
    JSON_ERRORS,
    MISSING_ARROW,
    csv_rows,
    json_lines,
    open_table,
    read_rows,
)
from bytelm.pipelines.prepare.tables import (
    CSV,
    PARQUET,
    RowGroup,
    TableFields,
    TableFormat,
    TableUnit,
    table_units,
)

SAMPLE_ROWS = 100
"""Rows that show the kinds of columns."""
SAMPLE_BYTES = 1 << 22
MAX_PATH = 1000
"""Characters of the longest string that may be a path."""
PARQUET_MAGIC = b"PAR1"
SMALL_ROWS = 1000
SMALL_BYTES = 1 << 20
"""Bytes of a table whose rows are listed, so that no split of a small set is empty."""

_NOT_FOUND = "not found"
"""Kind of a value that looks like the path of an image or a sound."""


@dataclass
class TableInspection:
    """Facts of a table from before its rows are decoded. It travels as JSON."""

    fields: tuple[str | None, ...] | None = None
    """The chosen columns; None where they cannot be told."""
    columns: list[str] = field(default_factory=list)
    row_groups: list[tuple[int, int]] | None = None
    """Rows and bytes of each row group of a Parquet file."""
    rows: list[int] | None = None
    """Numbers of the rows that have a text, of a small table."""
    reason: str = ""
    """Why the table is refused; empty where it is not."""
    detail: str = ""


def main() -> None:
    """Answer each line of JSON that comes with another one.

    A question is a list of a table's path, name, kind and compression, and the columns that the
    user named; the answer has the fields of TableInspection.
    """
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the parent handles it for all
    silence()
    limit_memory(DecodeOptions())
    print(flush=True)
    for line in sys.stdin:
        path, name, kind, compression, named = json.loads(line)
        limit_time(cpu_seconds(os.path.getsize(path) if os.path.exists(path) else 0))
        result = inspect_table(path, name, TableFormat(kind, compression), TableFields(*named))
        limit_time(0)
        print(json.dumps(asdict(result)), flush=True)


def inspect_table(
    path: str, name: str, table_format: TableFormat, named: TableFields
) -> TableInspection:
    """Inspect a table; one that cannot be read has a reason."""
    result = TableInspection()
    try:
        _inspect(path, name, table_format, named, result)
    except MediaError as error:
        result.reason, result.detail = error.reason, error.detail
    except MemoryError:
        result.reason, result.detail = "over the memory limit", "its first rows are too large"
    except Exception as error:  # a reader's bug, or what is wrong with the table
        result.reason, result.detail = "damaged", one_line(error)[:200]
    return result


def _inspect(
    path: str, name: str, table_format: TableFormat, named: TableFields, result: TableInspection
) -> None:
    kind = table_format.kind
    _check_content(path, table_format)
    if kind == PARQUET:
        columns = _parquet_columns(path, result)
    else:
        with open_table(path, table_format.compression) as file:
            if kind == CSV:
                records = csv_rows(file, name, SAMPLE_BYTES)
                header = next(records, [])
                rows = (dict(zip(header, record, strict=False)) for record in records)
                columns = dict.fromkeys(header, OTHER) | _kinds_of(rows, path)
            else:
                columns = _kinds_of(_json_objects(json_lines(file, SAMPLE_BYTES)), path)
                if not columns:
                    raise MediaError("table", "none of its first lines is a JSON object")
    result.columns = list(columns)
    fields, result.detail = choose_fields(columns, named, kind)
    if fields is None:
        result.reason = "table"
        return
    result.fields = tuple(fields)
    groups = [RowGroup(*group) for group in result.row_groups or ()]
    is_small = sum(g.rows for g in groups) <= SMALL_ROWS and os.path.getsize(path) <= SMALL_BYTES
    if is_small:
        size = os.path.getsize(path)
        table = TableUnit(name, "", path, table_format, fields, None, 0, size, 0, None, size)
        units = table_units(table, groups if kind == PARQUET else None)
        result.rows = list(islice(_text_rows(units), SMALL_ROWS + 1))


def _check_content(path: str, table_format: TableFormat) -> None:
    """Raise MediaError where the first bytes of a table are of another kind of file."""
    with open(path, "rb") as file:
        start = file.read(START_BYTES)
    refuse_pointer(start)
    if table_format.compression:
        return
    is_parquet = start.startswith(PARQUET_MAGIC)
    if is_parquet != (table_format.kind == PARQUET):
        kind = binary_kind(start) or ("a Parquet table" if is_parquet else "no Parquet table")
        raise MediaError("name and content disagree", f"named as {table_format.kind}, holds {kind}")


def _text_rows(units: Iterable[TableUnit]) -> Iterator[int]:
    """Numbers of the rows that can be read and have a text, where the table has a field for it."""
    options = DecodeOptions()
    for unit in units:
        try:
            for row in read_rows(unit, 0, SMALL_BYTES):
                try:
                    if isinstance(row.values, MediaError):
                        continue
                    if unit.fields.text is not None:
                        text_bytes(row.values[0], unit.fields.text, options)
                except MediaError:
                    continue
                yield row.number
        except (MediaError, OSError):  # decoding will say it
            continue


def _json_objects(lines: Iterable[bytes]) -> Iterator[dict[str, Any]]:
    """The objects of lines that are JSON objects."""
    for line in lines:
        try:
            value = json.loads(line)
        except JSON_ERRORS:
            continue
        if isinstance(value, dict):
            yield value


def _kinds_of(rows: Iterable[dict[str, Any]], path: str) -> dict[str, str]:
    """The kind of each column, by the first SAMPLE_ROWS rows, of which some may be bad."""
    counts: dict[str, Counter[str]] = {}
    for row in islice(rows, SAMPLE_ROWS):
        for name, value in row.items():
            count = counts.setdefault(name, Counter())
            if value is not None:
                count[_kind_of(value, path)] += 1
    return {name: _usual_kind(count) for name, count in counts.items()}


def _usual_kind(count: Counter[str]) -> str:
    """The kind of a column whose values have these kinds."""
    for modality in (IMAGE, AUDIO):
        if count[modality] and 2 * (count[modality] + count[_NOT_FOUND]) >= count.total():
            return modality
    return TEXT if 2 * (count[TEXT] + count[_NOT_FOUND]) > count.total() else OTHER


def _kind_of(value: object, table_path: str) -> str:
    """The kind of a value."""
    if isinstance(value, dict) and value.keys() & {"bytes", "path"}:
        return _kind_of(value.get("bytes") or value.get("path"), table_path)
    if isinstance(value, bytes):
        modality = modality_of(value[:START_BYTES])
        is_media = modality in (IMAGE, AUDIO)
        return modality if modality and (is_media or _is_utf8(value)) else OTHER
    if not isinstance(value, str):
        return OTHER
    modality = claimed_modality(value) if len(value) < MAX_PATH and "\0" not in value else None
    if modality not in (IMAGE, AUDIO) or os.path.isabs(value) or "://" in value:
        return TEXT
    is_file = os.path.isfile(os.path.join(os.path.dirname(table_path), value))
    return modality if is_file else _NOT_FOUND


def _is_utf8(value: bytes) -> bool:
    """Whether bytes are a text, as writers of Parquet store one that do not name it so."""
    try:
        value.decode()
    except UnicodeDecodeError:
        return False
    return True


def _parquet_columns(path: str, result: TableInspection) -> dict[str, str]:
    """The kind of each column of a Parquet file; its row groups go to `result`."""
    try:
        import pyarrow as pa
        from pyarrow.parquet import ParquetFile
    except ImportError as error:
        raise MediaError("table", MISSING_ARROW) from error
    with ParquetFile(path, buffer_size=1 << 20, pre_buffer=False) as file:
        metadata, schema = file.metadata, file.schema_arrow
        if not metadata.num_rows:
            raise MediaError("empty", "a table without rows")
        groups = [metadata.row_group(i) for i in range(metadata.num_row_groups)]
        result.row_groups = [(g.num_rows, _stored_bytes(g)) for g in groups]
        kinds = dict.fromkeys(schema.names, OTHER)
        shown = [f.name for f in schema if not pa.types.is_nested(f.type) or _is_media(f.type)]
        shown = [n for n in shown if _may_be_part(schema.field(n).type)]
        if shown:
            batch = next(file.iter_batches(4, columns=shown, use_threads=False))
            kinds |= _kinds_of(batch.to_pylist(), path)
        return kinds


def _stored_bytes(group: Any) -> int:
    """Bytes of a row group in its file."""
    columns = (group.column(i) for i in range(group.num_columns))
    return sum(column.total_compressed_size for column in columns)


def _is_string(type_: Any) -> bool:
    import pyarrow as pa

    if pa.types.is_dictionary(type_):
        type_ = type_.value_type
    is_string = pa.types.is_string(type_) or pa.types.is_large_string(type_)
    return bool(is_string or pa.types.is_string_view(type_))


def _is_media(type_: Any) -> bool:
    """Whether a type is Hugging Face's struct of bytes and path."""
    import pyarrow as pa

    return pa.types.is_struct(type_) and type_.get_field_index("bytes") >= 0


def _may_be_part(type_: Any) -> bool:
    """Whether a column can hold texts, images or sounds."""
    import pyarrow as pa

    binary = pa.types.is_binary(type_) or pa.types.is_large_binary(type_)
    return bool(binary or _is_string(type_) or _is_media(type_))

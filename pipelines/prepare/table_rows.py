"""Reading the rows of a table's unit, in a worker, with memory for a few rows at a time."""

from __future__ import annotations

import csv
import gzip
import io
import json
import zlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from itertools import chain, islice
from typing import Any, BinaryIO, NamedTuple, cast

from bytelm.modalities.base import MediaError
from bytelm.pipelines.prepare.tables import CSV, JSONL, PARQUET, TableFields, TableUnit

LINE_START = b"\xef\xbb\xbf"
BATCH_BYTES = 1 << 22
"""Decoded bytes of a batch of Parquet rows, as the file's metadata state them."""
BATCH_ROWS = 1024
CSV_FIELD_BYTES = 1 << 26
"""Longest field or line of a CSV file; its reader takes four times as much memory."""
ZSTD_FEED = 1 << 10
"""Bytes that are decompressed at once. They can become 2^15 times as many."""
MAX_WINDOW = 1 << 27
"""Bytes of the largest window of a zstd file, as the program's own limit is."""
MISSING_ZSTD = "reading it needs zstandard: pip install 'bytelm[tables]'"
MISSING_ARROW = "reading it needs pyarrow: pip install 'bytelm[tables]'"
JSON_ERRORS = (ValueError, RecursionError)

_JSON = json.JSONDecoder()


class Row(NamedTuple):
    """A row as it was read."""

    number: int
    """See TableUnit.first_row."""
    size: int
    """Bytes of the row, as far as its format tells."""
    values: tuple[Any, Any, Any] | MediaError
    """Values of the text, image and audio fields, None where the row has none; or the reason why
    the row could not be read."""

    @property
    def stop(self) -> int:
        """The number after the row's."""
        return self.number + 1


def read_rows(unit: TableUnit, first: int, limit: int) -> Iterator[Row]:
    """The rows of a unit from row number `first` on.

    Args:
        limit: bytes of the longest line.
    Raises:
        MediaError: where the rest of the unit cannot be read.
        OSError: where the file cannot be read.
        MemoryError: where a row takes more memory than the process may have.
    """
    readers: dict[str, Callable[[TableUnit, int, int], Iterator[Row]]] = {
        JSONL: _read_json_lines,
        CSV: _read_csv,
        PARQUET: _read_parquet,
    }
    with _packing_errors():
        yield from readers[unit.format.kind](unit, first, limit)


@contextmanager
def _packing_errors() -> Iterator[None]:
    """Raises MediaError for the errors of gzip about the content of a file."""
    try:
        yield
    except (EOFError, zlib.error, gzip.BadGzipFile) as error:
        reason = "truncated" if isinstance(error, EOFError) else "damaged"
        raise MediaError(reason, f"the rest of the compressed rows: {error}") from error


def _read_json_lines(unit: TableUnit, first: int, limit: int) -> Iterator[Row]:
    if unit.format.compression:
        lines: Iterator[tuple[int, bytes]] = enumerate(packed_lines(unit, first, limit), first)
    else:
        lines = _range_lines(unit, first, limit)
    for number, line in lines:
        if row := json_row(number, line, unit.fields, limit):
            yield row


def json_row(number: int, line: bytes, fields: TableFields, limit: int) -> Row | None:
    """The row of a line; None for a blank one."""
    if not line or line.isspace():
        return None
    if len(line) > limit:
        error = MediaError("over the limit", f"a row of more than {limit} bytes")
        return Row(number, len(line), error)
    return Row(number, len(line), json_values(line, fields))


def json_values(line: bytes, fields: TableFields) -> tuple[Any, Any, Any] | MediaError:
    """The values of a line's fields, or the reason why it has none."""
    try:
        text = line.decode().strip()
        row, end = _JSON.raw_decode(text)
    except JSON_ERRORS:
        return MediaError("broken row", "no JSON")
    except MemoryError:
        return MediaError("over the memory limit", "a row takes too much memory")
    if end < len(text):
        return MediaError("broken row", "more than one JSON value in a line")
    if not isinstance(row, dict):
        return MediaError("broken row", "no JSON object")
    get = row.get
    return get(fields.text), get(fields.image), get(fields.audio)


def packed_lines(unit: TableUnit, first: int, limit: int) -> Iterator[bytes]:
    """The lines of a compressed file from number `first` on, with their ends; of one over the
    limit, its first bytes. Raises MediaError where the file is damaged."""
    with _packing_errors(), open_table(unit.path, unit.format.compression) as file:
        yield from islice(json_lines(file, limit), first, None)


def json_lines(file: BinaryIO, limit: int) -> Iterator[bytes]:
    """The lines of a file from its start, as `bounded_lines` gives them, without the mark of
    UTF-8."""
    for number, line in enumerate(_bounded_lines(file, limit)):
        yield line if number else line.removeprefix(LINE_START)


def _range_lines(unit: TableUnit, first: int, limit: int) -> Iterator[tuple[int, bytes]]:
    """The lines that begin in a byte range, numbered by their first byte, from byte `first` on."""
    position, lines = range_lines(unit, first, limit)
    for line in lines:
        yield position, line.removesuffix(b"\n")
        position += len(line)


def range_lines(unit: TableUnit, first: int, limit: int) -> tuple[int, list[bytes]]:
    """The lines that begin in a byte range, from byte `first` on, with their ends; and the position
    of the first of them."""
    with open(unit.path, "rb") as file:
        position = max(first, unit.start)
        file.seek(max(position - 1, 0))
        if position:  # the line of the byte before belongs to the part before
            position += len(next(_bounded_lines(file, limit), b"")) - 1
        data = file.read(max(unit.stop - position, 0))
        lines = io.BytesIO(data).readlines()  # eight times as fast as `data.split`
        if lines and not lines[-1].endswith(b"\n"):
            lines[-1] += next(_bounded_lines(file, limit), b"")
    if position == 0 and lines and lines[0].startswith(LINE_START):
        lines[0] = b"   " + lines[0].removeprefix(LINE_START)
    return position, lines


def _bounded_lines(file: BinaryIO, limit: int) -> Iterator[bytes]:
    """The lines of a file with their ends; a line over the limit gives its first bytes."""
    while line := file.readline(limit + 2):
        rest = line
        while len(line) == limit + 2 and rest and not rest.endswith(b"\n"):
            rest = file.readline(1 << 20)
        yield line


def open_table(path: str, compression: str) -> BinaryIO:
    """Open a table's file, and decompress it as it is read.

    Raises MediaError where the package for that is missing.
    """
    if compression == "gz":
        return cast(BinaryIO, gzip.open(path, "rb"))
    if compression == "zst":
        try:
            import zstandard
        except ImportError as error:
            raise MediaError("table", MISSING_ZSTD) from error
        window = zstandard.ZstdDecompressor(max_window_size=MAX_WINDOW)
        return io.BufferedReader(_ZstdFile(path, window, zstandard.ZstdError), 1 << 16)
    return open(path, "rb")


class _ZstdFile(io.RawIOBase):
    """A file in zstd, of one frame or more, which is read to its stated end or raises EOFError."""

    def __init__(self, path: str, decompressor: Any, error: type[Exception]):
        self._file = open(path, "rb")  # noqa: SIM115
        self._decompressor, self._error = decompressor, error
        self._frame: Any = None
        self._ready = memoryview(b"")

    def readable(self) -> bool:
        return True

    def close(self) -> None:
        self._file.close()
        super().close()

    def readinto(self, buffer: Any) -> int:
        """See io.RawIOBase."""
        while not self._ready:
            data = self._file.read(ZSTD_FEED)
            if not data:
                if self._frame is not None:
                    raise EOFError("the file ends inside a frame")
                return 0
            self._ready = memoryview(self._decompress(data))
        size = min(len(buffer), len(self._ready))
        buffer[:size] = self._ready[:size]
        self._ready = self._ready[size:]
        return size

    def _decompress(self, data: bytes) -> bytes:
        parts = []
        while data:
            if self._frame is None:
                self._frame = self._decompressor.decompressobj()
            try:
                parts.append(self._frame.decompress(data))
            except self._error as error:
                raise MediaError("damaged", f"the rest of the compressed rows: {error}") from error
            data = self._frame.unused_data if self._frame.eof else b""
            if self._frame.eof:
                self._frame = None
        return b"".join(parts)


def separator_of(header: str, name: str) -> str:
    """The character between the fields of a CSV file, by its name and first line."""
    if ".tsv" in name.lower():
        return "\t"
    return max(",;\t", key=header.count)


def csv_rows(file: BinaryIO, name: str, limit: int) -> Iterator[list[str]]:
    """The records of a CSV file, the header first. Invalid UTF-8 becomes surrogates.

    Raises MediaError at a record that is too long or cannot be read.
    """

    def text_lines() -> Iterator[str]:
        for line in _bounded_lines(file, field_limit):
            if len(line) > field_limit:
                raise MediaError("over the limit", f"a line of more than {field_limit} bytes")
            yield line.decode("utf-8", "surrogateescape")

    field_limit = min(limit, CSV_FIELD_BYTES)
    csv.field_size_limit(field_limit)
    lines = text_lines()
    header = next(lines, "").removeprefix("\ufeff")
    separator = separator_of(header, name)
    try:
        yield from csv.reader(chain([header], lines), delimiter=separator)
    except csv.Error as error:
        raise MediaError("broken row", f"the rest of the table: {error}") from error


def _read_csv(unit: TableUnit, first: int, limit: int) -> Iterator[Row]:
    with open_table(unit.path, unit.format.compression) as file:
        records = csv_rows(file, unit.name, limit)
        columns = {name: i for i, name in reversed(list(enumerate(next(records, []))))}
        places = [columns.get(field) if field else None for field in unit.fields]
        number = -1
        for record in records:
            if not record:
                continue
            number += 1
            if number < first:
                continue
            size = sum(map(len, record))
            text, image, audio = (
                None if i is None or i >= len(record) else record[i] for i in places
            )
            data = None if text is None else text.encode("utf-8", "surrogateescape")
            yield Row(number, size, (data, image or None, audio or None))


def _read_parquet(unit: TableUnit, first: int, limit: int) -> Iterator[Row]:
    """The rows of a row group. A text stays bytes."""
    for start, batch in parquet_batches(unit):
        with arrow_errors():
            columns = [
                [None] * batch.num_rows if field is None else _column_values(batch.column(field))
                for field in unit.fields
            ]
        for number, values in enumerate(zip(*columns, strict=True), start):
            if number >= first:
                yield Row(number, sum(map(_size_of, values)), values)


def parquet_batches(unit: TableUnit) -> Iterator[tuple[int, Any]]:
    """The number of the first row and the columns of the fields, for some rows at a time."""
    try:
        from pyarrow.parquet import ParquetFile
    except ImportError as error:
        raise MediaError("table", MISSING_ARROW) from error
    assert unit.rows is not None
    names = list(dict.fromkeys(field for field in unit.fields if field))
    number = unit.first_row
    with (
        arrow_errors(),
        ParquetFile(
            unit.path, buffer_size=1 << 20, pre_buffer=False, page_checksum_verification=True
        ) as file,
    ):
        group = file.metadata.row_group(unit.start)
        row_bytes = max(group.total_byte_size, 1) / max(group.num_rows, 1)
        batch_rows = int(min(max(BATCH_BYTES / row_bytes, 1), BATCH_ROWS))
        for batch in file.iter_batches(
            batch_rows, row_groups=[unit.start], columns=names, use_threads=False
        ):
            yield number, batch
            number += batch.num_rows
    if number < unit.first_row + unit.rows:
        raise MediaError("truncated", "a row group has fewer rows than the file states")


@contextmanager
def arrow_errors() -> Iterator[None]:
    """Raises MediaError for pyarrow's errors about the content of a file."""
    import pyarrow

    try:
        yield
    except (pyarrow.ArrowException, OSError, ValueError, KeyError) as error:
        if isinstance(error, MemoryError) or (isinstance(error, OSError) and error.errno):
            raise  # other errors of this class are pyarrow's own, about the content
        detail = " ".join(str(error).split())
        raise MediaError("damaged", f"the rest of a row group: {detail}") from error


def _column_values(column: Any) -> list[Any]:
    """A column's values; see `binary_column`."""
    values: list[Any] = binary_column(column).to_pylist()
    return values


def binary_column(column: Any) -> Any:
    """A column with strings as bytes, since one of invalid UTF-8 must not cost the others. A view
    needs no import of pyarrow.compute, as a cast does."""
    import pyarrow as pa

    if pa.types.is_dictionary(column.type):
        column = column.dictionary_decode()
    if pa.types.is_string(column.type):
        column = column.view(pa.binary())
    elif pa.types.is_large_string(column.type):
        column = column.view(pa.large_binary())
    return column


def _size_of(value: Any) -> int:
    """Bytes of a value, as far as it has any."""
    if isinstance(value, dict):
        value = value.get("bytes")
    return len(value) if isinstance(value, (str, bytes)) else 0

"""Decoding a table's rows to pieces of shards, in a worker, one instalment after the other."""

from __future__ import annotations

import io
import os
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import BinaryIO, NamedTuple, Protocol

import numpy as np
import numpy.typing as npt

from bytelm.modalities import MODALITIES
from bytelm.modalities.base import DecodeOptions, Header, MediaError, Sample
from bytelm.modalities.detect import START_BYTES
from bytelm.pipelines.errors import one_line
from bytelm.pipelines.prepare.table_blocks import TextBlock, read_blocks
from bytelm.pipelines.prepare.table_rows import Row, read_rows
from bytelm.pipelines.prepare.tables import TableFields, TableUnit, row_key, row_split, row_splits
from bytelm.pipelines.shards.format import SPLITS
from bytelm.pipelines.shards.pieces import PieceBuilder, ShardPiece
from bytelm.pipelines.shards.text_pieces import text_piece
from bytelm.pipelines.storage.tar_writer import BLOCK_BYTES

INSTALMENT_BYTES = 1 << 22
"""An instalment ends where its documents or the rows that it has read are larger than this."""
FIRST_ROWS = 3
"""Rows that a report names for each reason."""
DETAIL_CHARACTERS = 200


@dataclass
class BadRows:
    """Rows of a table that did not become documents, for one reason."""

    count: int = 0
    size: int = 0
    """Bytes, as far as they are known."""
    first: list[tuple[int, str]] = field(default_factory=list)
    """Numbers of the first rows, and what is wrong with each."""

    def add(self, row: int, detail: str, size: int) -> None:
        """Count a row."""
        self.merge(BadRows(1, size, [(row, detail)]))

    def merge(self, other: BadRows) -> None:
        """Count other rows of the same table and reason."""
        self.count += other.count
        self.size += other.size
        self.first = sorted([*self.first, *other.first])[:FIRST_ROWS]


class RowPosition(NamedTuple):
    """Where to begin in a unit, and what is done already."""

    done: dict[str, int]
    """For each split, the row number before which its documents are written."""
    counted: int
    """The row number before which bad rows and notes are counted."""

    @property
    def first(self) -> int:
        """The first row that is not done."""
        return min(self.counted, *self.done.values())


class TableTask(NamedTuple):
    """Asks a worker for the next instalment of a unit."""

    number: int
    """Number of the unit among all."""
    unit: TableUnit
    shares: tuple[float, float, float]
    position: RowPosition | None
    """Where to begin; None where the worker has the unit open, and continues."""
    refused: dict[int, tuple[str, str]]
    """Reason and detail of rows that are not to be decoded, since they have ended workers."""


@dataclass
class SplitRows:
    """The documents of one split in an instalment."""

    numbers: npt.NDArray[np.int64]
    """[documents] row of each."""
    piece: ShardPiece
    size: int
    """Bytes of its members."""


@dataclass
class Instalment:
    """Some consecutive rows of a unit, decoded."""

    stop: int = 0
    """Row number after the last row that was read."""
    is_end: bool = False
    """Whether the unit ends with it."""
    splits: dict[str, SplitRows] = field(default_factory=dict)
    bad: dict[str, BadRows] = field(default_factory=dict)
    """Rows that became no document, by reason."""
    kinds: Counter[tuple[str, ...]] = field(default_factory=Counter)
    """Documents by the modalities of their segments."""
    notes: dict[str, tuple[int, list[str]]] = field(default_factory=dict)
    """Count and first names of the rows to which a note of decoding applies."""
    read_bytes: int = 0
    """Bytes of the rows."""
    is_last: bool = False
    """Whether the worker ends after it."""

    @property
    def size(self) -> int:
        """Bytes of all members."""
        return sum(rows.size for rows in self.splits.values())


class RowWatch(Protocol):
    """Hears when a row with an image or a sound is decoded, which may end the process."""

    def begin_row(self, number: int, size: int) -> None:
        """A row of `size` bytes is about to be decoded."""

    def end_row(self) -> None:
        """The row is decoded, and further rows are read."""


class MemberMemory(Protocol):
    """Takes the bytes of an instalment's members, one split after the other."""

    def reserve(self, size: int) -> memoryview:
        """Memory for the next `size` bytes, whatever stood there before."""

    def append_parts(self, parts: Sequence[bytes | memoryview]) -> None:
        """Store the next bytes."""


class UnitDecoder:
    """Decodes the rows of one unit from a position on."""

    def __init__(self, task: TableTask, options: DecodeOptions, watch: RowWatch):
        assert task.position is not None
        self._unit, self._shares, self._position = task.unit, task.shares, task.position
        self._refused, self._moved = task.refused, dict(task.unit.moved)
        self._options = options
        self._watch = watch
        self._next_row = max(self._position.first, task.unit.first_row)
        self._is_text = task.unit.fields._replace(text=None) == TableFields() and not (
            options.keep_files
        )
        read = read_blocks if self._is_text else read_rows
        self._rows: Iterator[TextBlock] | Iterator[Row] = read(
            task.unit, self._position.first, options.limits.max_bytes
        )
        self._builders: dict[str, tuple[list[int], PieceBuilder]] = {}  # of other rows
        self._numbers: list[npt.NDArray[np.int64]] = []  # of the rows that are one text
        self._texts: list[bytes | memoryview] = []
        self._instalment = Instalment()

    def read(self, memory: MemberMemory, is_fresh: bool) -> Instalment:
        """The next instalment.

        Args:
            memory: takes the bytes of its members.
            is_fresh: whether the process has decoded nothing yet. A row for which another process
                has too little memory ends the instalment, and is tried again in a fresh one.
        """
        instalment = self._instalment = Instalment()
        self._builders, self._numbers, self._texts = {}, [], []
        size = 0
        try:
            for rows in self._rows:
                size += self._add_block(rows) if isinstance(rows, TextBlock) else self._add(rows)
                self._next_row = rows.stop
                if max(size, instalment.read_bytes) > INSTALMENT_BYTES:
                    break
            else:
                instalment.is_end = True
        except MemoryError:
            instalment.is_last = True
            if is_fresh and not self._builders and not self._texts:
                self._refuse_rest(MediaError("over the memory limit", "the rest of the rows"))
        except (MediaError, OSError) as error:
            self._refuse_rest(error)
        except Exception as error:  # a reader's bug costs this unit only
            self._refuse_rest(MediaError("decoder failed", one_line(error)))
        instalment.stop = self._next_row
        if self._texts:
            self._finish_texts(memory)
        for split, (numbers, builder) in self._builders.items():
            parts, piece = builder.finish()
            memory.append_parts(parts)
            instalment.splits[split] = _split_rows(np.array(numbers, np.int64), piece)
        return instalment

    def _finish_texts(self, memory: MemberMemory) -> None:
        """Put the rows that are one text into the instalment."""
        unit, position = self._unit, self._position
        numbers = np.concatenate(self._numbers)
        keys = [f"{unit.key}{number}" for number in numbers.tolist()]
        if unit.split:
            splits = np.full(len(keys), SPLITS.index(unit.split))
        else:
            splits = row_splits(keys, self._shares)
            for number, split in unit.moved:
                splits[numbers == number] = SPLITS.index(split)
        first_rows = np.array([position.done[split] for split in SPLITS])
        is_new = numbers >= first_rows[splits]
        self._instalment.kinds["text",] += int(np.sum(numbers >= position.counted))
        order = np.lexsort((numbers, splits))
        order = order[is_new[order]]
        if not len(order):
            return
        rows = order.tolist()
        texts = [self._texts[row] for row in rows]
        piece = text_piece([keys[row] for row in rows], unit.name, texts, memory.reserve)
        limits = np.searchsorted(splits[order], np.arange(len(SPLITS) + 1)).tolist()
        for split, first, stop in zip(SPLITS, limits[:-1], limits[1:], strict=True):
            if first < stop:
                split_rows = _split_rows(numbers[order[first:stop]], piece.part(first, stop))
                self._instalment.splits[split] = split_rows

    def _add_block(self, block: TextBlock) -> int:
        """Add rows of one text each; returns about the bytes of their documents."""
        self._numbers.append(block.numbers)
        self._texts += block.texts
        self._instalment.read_bytes += block.size
        texts: list[bytes | memoryview] = []
        numbers: list[int] = []
        for row in block.others:
            self._instalment.read_bytes += row.size
            try:
                if isinstance(row.values, MediaError):
                    raise row.values
                text = text_bytes(row.values[0], str(self._unit.fields.text), self._options)
            except MediaError as error:
                self._count_bad(row, error)
            else:
                numbers.append(row.number)
                texts.append(text)
        self._numbers.append(np.array(numbers, np.int64))
        self._texts += texts
        count = len(block.texts) + len(texts)
        return sum(map(len, (*block.texts, *texts))) + 3 * BLOCK_BYTES * count

    def _add(self, row: Row) -> int:
        """Add a row's document, or count the row as bad; returns about its document's bytes."""
        key = row_key(self._unit, row.number)
        split = self._moved.get(row.number) or self._unit.split or row_split(key, self._shares)
        is_written = row.number < self._position.done[split]
        is_counted = row.number < self._position.counted
        if is_written and is_counted:
            return 0
        self._instalment.read_bytes += row.size
        try:
            samples = self._decode(row)
        except MediaError as error:
            self._count_bad(row, error)
            return 0
        if not is_counted:
            self._count(row, samples)
        if is_written:
            return 0
        numbers, builder = self._builders.setdefault(split, ([], PieceBuilder()))
        builder.add(key, [self._unit.name] * len(samples), samples)
        numbers.append(row.number)
        return sum(len(sample.data) for sample in samples)

    def _decode(self, row: Row) -> list[Sample]:
        """The samples of a row. MediaError where it is bad."""
        if isinstance(row.values, MediaError):
            raise row.values
        if row.number in self._refused:
            raise MediaError(*self._refused[row.number])
        text, image, audio = row.values
        fields = self._unit.fields
        samples = []
        if fields.text is not None:
            data = text_bytes(text, fields.text, self._options)
            samples.append(Sample("text", Header(), data, self._options.keep_files))
        if fields.image is not None or fields.audio is not None:
            self._watch.begin_row(row.number, row.size)
            for modality, field_name, value in (
                ("image", fields.image, image),
                ("audio", fields.audio, audio),
            ):
                if field_name is not None:
                    samples.append(self._media_sample(modality, field_name, value))
            self._watch.end_row()
        return samples

    def _media_sample(self, modality: str, field_name: str, value: object) -> Sample:
        """The sample of an image or a sound."""
        decoder = MODALITIES[modality]
        with open_media(self._unit.path, field_name, value) as file:
            if not decoder.recognises(file.read(START_BYTES)):
                raise MediaError("name and content disagree", f"{field_name!r} holds no {modality}")
            file.seek(0)
            try:
                return decoder.decode_file(file, self._options)
            except (MediaError, MemoryError):
                raise
            except Exception as error:  # a decoder's bug costs this row only
                raise MediaError("decoder failed", one_line(error)) from error

    def _count(self, row: Row, samples: list[Sample]) -> None:
        """Count a row's document and its notes."""
        self._instalment.kinds[tuple(s.modality for s in samples)] += 1
        for note in {note for sample in samples for note in sample.notes}:
            count, names = self._instalment.notes.get(note, (0, []))
            name = f"{self._unit.name} row {row.number}"
            self._instalment.notes[note] = (count + 1, [*names, name][:FIRST_ROWS])

    def _count_bad(self, row: Row, error: MediaError) -> None:
        """Count a row that becomes no document, unless it is counted already."""
        if row.number < self._position.counted:
            return
        bad = self._instalment.bad.setdefault(error.reason, BadRows())
        bad.add(row.number, error.detail[:DETAIL_CHARACTERS], row.size)

    def _refuse_rest(self, error: MediaError | OSError) -> None:
        """Count what follows the last row as bad, and end the unit."""
        if isinstance(error, OSError):
            error = MediaError("unreadable", error.strerror or "cannot be read")
        rest = rest_of_unit(self._unit, self._next_row, error.reason, error.detail)
        for reason, bad in rest.bad.items():
            self._instalment.bad.setdefault(reason, BadRows()).merge(bad)
        self._instalment.is_end = True


def _split_rows(numbers: npt.NDArray[np.int64], piece: ShardPiece) -> SplitRows:
    """Documents of a piece whose `members` are yet to be set."""
    return SplitRows(numbers, piece, int(piece.ends[-1]))


def rest_of_unit(unit: TableUnit, row: int, reason: str, detail: str) -> Instalment:
    """An instalment that refuses a unit from a row on.

    Where the rows of the unit are not known, they count as one.
    """
    rows = 1 if unit.rows is None else max(unit.first_row + unit.rows - row, 1)
    size = unit.stop - row if unit.stop else unit.size * rows // (unit.rows or 1)
    bad = BadRows(rows, max(size, 0), [(row, detail[:DETAIL_CHARACTERS])])
    return Instalment(stop=row, is_end=True, bad={reason: bad})


def text_bytes(value: object, field_name: str, options: DecodeOptions) -> bytes:
    """The bytes of a text. MediaError for a value that is no text, empty, or over the limit."""
    if isinstance(value, str):
        try:
            data = value.encode()
        except UnicodeEncodeError as error:
            raise MediaError("broken row", f"half a surrogate pair in {field_name!r}") from error
    elif isinstance(value, bytes):
        data = value
    elif value is None:
        raise MediaError("field missing", f"no value in {field_name!r}")
    else:
        raise MediaError("broken row", f"the value in {field_name!r} is no string")
    if not data:
        raise MediaError("empty", f"a text of 0 bytes in {field_name!r}")
    if len(data) > options.limits.max_bytes:
        raise MediaError("over the limit", f"more than {options.limits.max_bytes} bytes of text")
    if b"\0" in data:
        raise MediaError("unknown kind", f"binary: a zero byte in {field_name!r}")
    return data


def open_media(table_path: str, field_name: str, value: object) -> BinaryIO:
    """The file of an image or a sound: bytes in the row, or a path relative to the table's folder.

    Hugging Face's datasets store a struct of both, of which the bytes count if there are any.
    """
    if isinstance(value, dict):
        value = value.get("bytes") or value.get("path")
    if isinstance(value, bytes):
        return io.BytesIO(value)
    if value is None or value == "":
        raise MediaError("field missing", f"no value in {field_name!r}")
    if not isinstance(value, str) or "\0" in value:
        raise MediaError("broken row", f"the value in {field_name!r} is neither bytes nor a path")
    if os.path.isabs(value) or "://" in value:
        detail = f"{field_name!r} has to be a path relative to the table's folder"
        raise MediaError("missing", detail)
    path = os.path.join(os.path.dirname(table_path), value)
    try:
        if not os.path.isfile(path):
            raise FileNotFoundError
        return open(path, "rb")
    except (FileNotFoundError, UnicodeEncodeError) as error:
        raise MediaError("missing", f"no such file: {value[:100]}") from error
    except OSError as error:
        raise MediaError("unreadable", error.strerror or "cannot be read") from error

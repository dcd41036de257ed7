"""The tables among the files of sources: inspected, and cut into units."""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Iterable, Sequence
from typing import cast

from bytelm.pipelines.prepare.container_reader import ContainerReader, TableQuestion
from bytelm.pipelines.prepare.documents import SkippedFile
from bytelm.pipelines.prepare.scan import SourceFile
from bytelm.pipelines.prepare.splits import fill_empty_splits
from bytelm.pipelines.prepare.table_inspection import SMALL_ROWS, TableInspection
from bytelm.pipelines.prepare.tables import (
    CSV,
    RowGroup,
    TableFields,
    TableUnit,
    in_set_order,
    key_start,
    row_key,
    row_split,
    table_format,
    table_units,
)


class TableScan:
    """Tells which files are tables."""

    def __init__(self, named: TableFields, reader: ContainerReader):
        """
        Args:
            named: columns that the user named.
            reader: inspects tables.
        """
        self.skipped: list[SkippedFile] = []
        """Tables that are refused."""
        self._named = named
        self._reader = reader
        self._columns: set[str] = set()
        self._inspections: dict[str, TableInspection] = {}

    def find_tables(self, files: Sequence[SourceFile]) -> set[str]:
        """Paths of the files whose rows are documents, or that are refused as tables. A CSV file
        without a field for a part is a text like any other, as is one JSON value in `.json.gz`.

        Raises RuntimeError where the inspecting process does not start.
        """
        fields = tuple(self._named)
        asked: list[SourceFile] = []
        questions: list[TableQuestion] = []
        for file in files:
            if file.size and (found := table_format(file.name)):
                asked.append(file)
                questions.append(TableQuestion(file.path, file.name, *found, fields))
        inspections = self._reader.inspect_tables(questions)
        for file, inspection in zip(asked, inspections, strict=True):
            self._add(file, inspection)
        return set(self._inspections)

    def _add(self, file: SourceFile, inspection: TableInspection) -> None:
        """Keep the inspection of a file that is a table."""
        self._columns |= set(inspection.columns)
        may_be_text = table_format(file.name) == (CSV, "") or file.name.lower().endswith(".json.gz")
        if inspection.reason and may_be_text and not any(self._named):
            return
        if inspection.reason:
            entry = SkippedFile(file.name, inspection.reason, inspection.detail, file.size)
            self.skipped.append(entry)
        self._inspections[file.path] = inspection

    def units(
        self,
        tables: Sequence[SourceFile],
        shares: tuple[float, float, float],
        splits: Iterable[str],
    ) -> list[TableUnit]:
        """The units of tables in the set's order.

        Args:
            tables: files that are tables.
            shares: of train, val and test.
            splits: of the documents of files, one each.
        """
        usable = [t for t in tables if not self._inspections[t.path].reason]
        moved = self._moved_rows(usable, shares, Counter(splits))
        units: list[TableUnit] = []
        for table in usable:
            inspection = self._inspections[table.path]
            groups = inspection.row_groups
            whole = _whole_table(table, inspection)._replace(moved=moved.get(table.path, ()))
            units += table_units(whole, None if groups is None else [RowGroup(*g) for g in groups])
        return in_set_order(units)

    def check_named(self, caption_columns: frozenset[str]) -> None:
        """Raise ValueError where the user named a column that no table has.

        caption_columns: columns of the tables whose texts are captions of files.
        """
        columns = self._columns | caption_columns
        for name in self._named:
            if name is not None and name not in columns:
                known = ", ".join(sorted(columns)[:20]) or "there is no table"
                raise ValueError(f"no table has a column {name!r}; columns: {known}")

    def _moved_rows(
        self,
        tables: Sequence[SourceFile],
        shares: tuple[float, float, float],
        others: Counter[str],
    ) -> dict[str, tuple[tuple[int, str], ...]]:
        """Rows of small tables that go to another split than their keys say, so that no split is
        empty, by the table's path; see fill_empty_splits."""
        listed = [(t, self._inspections[t.path].rows) for t in tables]
        if any(rows is None for _, rows in listed):
            return {}
        places: list[tuple[str, int]] = []
        digests: list[bytes] = []
        before: list[str] = []
        for table, rows in listed:
            whole = _whole_table(table, self._inspections[table.path])
            for row in rows or ():
                if table.split:
                    others[table.split] += 1
                    continue
                key = row_key(whole, row)
                places.append((table.path, row))
                digests.append(hashlib.sha256(key.encode()).digest())
                before.append(row_split(key, shares))
        if len(places) > SMALL_ROWS:
            return {}
        after = fill_empty_splits(digests, before, shares, others)
        moved: dict[str, tuple[tuple[int, str], ...]] = {}
        for (path, row), old, new in zip(places, before, after, strict=True):
            if old != new:
                moved[path] = (*moved.get(path, ()), (row, new))
        return moved


def _whole_table(table: SourceFile, inspection: TableInspection) -> TableUnit:
    """A table as one unit."""
    found = table_format(table.name)
    assert found is not None
    return TableUnit(
        name=table.name,
        key=key_start(table.key, found),
        path=table.path,
        format=found,
        fields=TableFields(*cast("tuple[str | None, ...]", inspection.fields)),
        split=table.split,
        start=0,
        stop=table.size,
        first_row=0,
        rows=None,
        size=table.size,
    )

"""The tables among the files of sources: inspected in a child process, and cut into units."""

from __future__ import annotations

import hashlib
import json
import subprocess
import sys
from collections import Counter
from collections.abc import Iterable, Sequence
from typing import cast

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
from bytelm.pipelines.prepare.worker_process import cause_of_death

_MAIN = "from bytelm.pipelines.prepare.table_inspection import main; main()"


class TableScan:
    """Tells which files are tables. A context manager that ends the inspecting process."""

    def __init__(self, named: TableFields):
        """
        Args:
            named: columns that the user named.
        """
        self.skipped: list[SkippedFile] = []
        """Tables that are refused."""
        self._named = named
        self._columns: set[str] = set()
        self._inspections: dict[str, TableInspection] = {}
        self._process: subprocess.Popen[str] | None = None

    def __enter__(self) -> TableScan:
        return self

    def __exit__(self, *error: object) -> None:
        self._end()

    def is_table(self, file: SourceFile) -> bool:
        """Whether a file's rows are documents, or it is refused as a table. A CSV file without a
        field for a part is a text like any other, as is one JSON value in `.json.gz`.

        Raises RuntimeError where the inspecting process does not start.
        """
        found = table_format(file.name)
        if found is None or not file.size:
            return False
        fields = list(self._named)
        inspection = self._ask([file.path, file.name, found.kind, found.compression, fields])
        self._columns |= set(inspection.columns)
        may_be_text = found == (CSV, "") or file.name.lower().endswith(".json.gz")
        if inspection.reason and may_be_text and not any(self._named):
            return False
        if inspection.reason:
            entry = SkippedFile(file.name, inspection.reason, inspection.detail, file.size)
            self.skipped.append(entry)
        self._inspections[file.path] = inspection
        return True

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

    def _ask(self, question: list[object]) -> TableInspection:
        """Inspect a table in the child process, which a damaged one may end."""
        process = self._process or self._start()
        assert process.stdin is not None
        assert process.stdout is not None
        try:
            process.stdin.write(json.dumps(question) + "\n")
            process.stdin.flush()
            answer = process.stdout.readline()
        except BrokenPipeError:
            answer = ""
        if not answer:
            self._end()
            detail = f"reading its columns: {cause_of_death(process.returncode)}"
            return TableInspection(reason="decoder died", detail=detail)
        return TableInspection(**json.loads(answer))

    def _start(self) -> subprocess.Popen[str]:
        """Start the process, and wait until it is ready."""
        command = [sys.executable, "-P", "-c", _MAIN]
        pipe = subprocess.PIPE
        self._process = subprocess.Popen(command, stdin=pipe, stdout=pipe, text=True)
        assert self._process.stdout is not None
        if not self._process.stdout.readline():
            cause = cause_of_death(self._process.wait())
            raise RuntimeError(f"the process that inspects tables does not start ({cause})")
        return self._process

    def _end(self) -> None:
        """End the process, and wait for it."""
        if self._process:
            self._process.kill()
            self._process.communicate()
            self._process = None


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

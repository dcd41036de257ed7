"""Progress through all tables, and which rows became no documents: a part of the state file."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from bytelm.pipelines.prepare.documents import SkippedFile
from bytelm.pipelines.prepare.table_decode import BadRows, Instalment
from bytelm.pipelines.prepare.table_pool import TablePosition, UnitRow
from bytelm.pipelines.prepare.tables import JSONL, TableUnit
from bytelm.pipelines.prepare.tally import Tally
from bytelm.pipelines.shards.format import SPLITS


@dataclass
class TableProgress:
    """Progress in the rows of tables. The field names stand in the state file, as JSON."""

    done: dict[str, UnitRow] = field(default_factory=lambda: dict.fromkeys(SPLITS, (0, 0)))
    """For each split, up to where its documents are in finished shards."""
    counted: UnitRow = (0, 0)
    """Up to where rows are counted."""
    rows: int = 0
    """Rows that are counted."""
    bad: dict[str, dict[str, BadRows]] = field(default_factory=dict)
    """Rows that became no document, by table and reason."""

    @property
    def position(self) -> TablePosition:
        """Where to go on."""
        return TablePosition(self.done, self.counted)

    def count(self, unit: TableUnit, instalment: Instalment, stop: UnitRow, tally: Tally) -> None:
        """Count an instalment's rows, which end at `stop`; their kinds and notes go to `tally`."""
        self.counted = stop
        for reason, bad in instalment.bad.items():
            self.rows += bad.count
            self.bad.setdefault(unit.name, {}).setdefault(reason, BadRows()).merge(bad)
        for modalities, count in instalment.kinds.items():
            self.rows += count
            tally.add_rows(unit.name, modalities, count)
        for note, (count, names) in instalment.notes.items():
            tally.add_note(note, count, names)

    def skipped(self, units: Sequence[TableUnit]) -> list[SkippedFile]:
        """An entry for each table and reason.

        Args:
            units: all units of the tables.
        """
        by_byte = {unit.name for unit in units if unit.format == (JSONL, "")}
        return [
            SkippedFile(name, reason, _detail(bad, name in by_byte), bad.size, bad.count)
            for name, reasons in self.bad.items()
            for reason, bad in reasons.items()
        ]

    @classmethod
    def from_json(cls, values: dict[str, Any]) -> TableProgress:
        """The progress of a state file."""
        bad = {
            name: {
                reason: BadRows(
                    b["count"], b["size"], [(row, detail) for row, detail in b["first"]]
                )
                for reason, b in reasons.items()
            }
            for name, reasons in values["bad"].items()
        }
        done = {split: (unit, row) for split, (unit, row) in values["done"].items()}
        unit, row = values["counted"]
        return cls(done, (unit, row), values["rows"], bad)


def _detail(bad: BadRows, is_by_byte: bool) -> str:
    """Reasons for which rows are bad, and where the first ones are."""
    kind = "the rows at byte" if is_by_byte else "rows"
    if bad.count == 1:
        kind = kind.replace("rows", "row")
    numbers = ", ".join(str(row) for row, _ in bad.first)
    more = f" and {bad.count - len(bad.first):,} more" if bad.count > len(bad.first) else ""
    return f"{bad.first[0][1]}: {kind} {numbers}{more}"

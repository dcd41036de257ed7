"""The memory that answers of a decoding process lie in is not written again while it is read."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest

from bytelm.modalities.base import DecodeOptions
from bytelm.pipelines.prepare import tables
from bytelm.pipelines.prepare.decode_pool import DecodePool
from bytelm.pipelines.prepare.decode_worker import BATCH_SAMPLE_BYTES, PROGRESS_BYTES
from bytelm.pipelines.prepare.table_pool import TablePosition
from bytelm.pipelines.prepare.tables import (
    JSONL,
    TableFields,
    TableFormat,
    TableUnit,
    table_units,
)
from bytelm.pipelines.prepare.worker_process import MEMORIES_PER_WORKER, SampleMemory
from bytelm.pipelines.shards.format import SPLITS


def test_a_memory_is_lent_as_long_as_any_part_of_a_view_is_in_use() -> None:
    memory = SampleMemory()
    os.pwrite(memory.descriptor, b"first second", PROGRESS_BYTES)
    memory.begin_reading(may_lend=True)
    first, second = memory.view(5), memory.view(7)
    assert (first, second) == (b"first", b" second")
    assert memory.is_lent
    part = second[1:]
    del first, second
    assert memory.is_lent
    assert part == b"second"
    del part
    assert not memory.is_lent


@pytest.mark.parametrize(
    ("size", "may_lend"), [(6, False), (BATCH_SAMPLE_BYTES, True)], ids=["all in use", "large"]
)
def test_what_is_not_lent_is_copied(size: int, may_lend: bool) -> None:
    memory = SampleMemory()
    os.ftruncate(memory.descriptor, PROGRESS_BYTES + size)
    os.pwrite(memory.descriptor, b"before", PROGRESS_BYTES)
    memory.begin_reading(may_lend)
    view = memory.view(6)
    assert not memory.is_lent
    os.pwrite(memory.descriptor, b"behind", PROGRESS_BYTES)
    assert view == b"before"


def test_answers_that_are_kept_stay_as_they_came(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """There are more of them than a process has files in memory."""
    monkeypatch.setattr(tables, "UNIT_BYTES", 1000)
    path = tmp_path / "a.jsonl"
    path.write_text("".join(json.dumps({"text": f"row {i} " * 50}) + "\n" for i in range(60)))
    size = path.stat().st_size
    form, fields = TableFormat(JSONL, ""), TableFields("text")
    table = TableUnit(
        "a.jsonl", "a-b", str(path), form, fields, None, 0, size, first_row=0, rows=None, size=size
    )
    units = list(table_units(table, None))
    assert len(units) > 2 * MEMORIES_PER_WORKER
    start = TablePosition(dict.fromkeys(SPLITS, (0, 0)), (0, 0))
    kept: list[tuple[bytes | memoryview, bytes]] = []
    with DecodePool(DecodeOptions(), workers=1) as pool:
        for _, instalment in pool.decode_tables(units, start, (0.8, 0.1, 0.1)):
            pieces = [rows.piece.members for rows in instalment.splits.values()]
            kept += [(members, bytes(members)) for members in pieces]
    assert sum(bytes(members).count(b"row 7 ") for members, _ in kept) == 50
    assert all(members == copy for members, copy in kept)

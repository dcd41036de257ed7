"""The input of `prepare` in work items, each decoded alone, and by any process or machine.

The items follow from the input: the documents of files, then the units of tables, both in the set's
order. How many processes or parts there are changes nothing.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator, Sequence
from typing import NamedTuple

from bytelm.pipelines.prepare.documents import SourceDocument
from bytelm.pipelines.prepare.tables import TableUnit

ITEM_BYTES = 1 << 25
"""Source bytes of an item, above which it takes no further document or unit. A second or so of
decoding: starting an item costs little beside it, and so does a lost one."""
ITEM_DOCUMENTS = 4096


class WorkItem(NamedTuple):
    """A range of documents of files in one split, or of units of tables."""

    number: int
    """Its place among all items."""
    is_table: bool
    """Whether the range counts units of tables."""
    first: int
    stop: int
    """The range, without `stop`, among all documents or all units."""
    size: int
    """Source bytes."""


def work_items(documents: Sequence[SourceDocument], units: Sequence[TableUnit]) -> list[WorkItem]:
    """The work items of an input, in the set's order.

    Args:
        documents: documents of files, sorted by split.
        units: units of tables.
    """
    sizes = (sum(part.size for part in d.parts) for d in documents)
    ranges = [
        *((False, *r) for r in _ranges(zip(sizes, (d.split for d in documents), strict=True))),
        *((True, *r) for r in _ranges((unit.size, "") for unit in units)),
    ]
    return [WorkItem(number, *values) for number, values in enumerate(ranges)]


def paths_of(entries: Iterable[SourceDocument | TableUnit]) -> Iterator[str]:
    """The paths of the files of documents and units."""
    for entry in entries:
        if isinstance(entry, TableUnit):
            yield entry.path
        else:
            yield from (part.path for part in entry.parts if part.path is not None)


def check_seen(paths: Iterable[str], machine: str) -> None:
    """Raise ValueError where this machine sees none of some paths, which another one has listed. A
    single one may have been deleted since, which makes it a skipped file.

    Args:
        paths: of files or folders.
        machine: names this one.
    """
    path = None
    for path in paths:
        if os.path.exists(path):
            return
    if path is not None:
        raise ValueError(
            f"{machine} does not see {path}: sources and set must lie on a filesystem that all "
            "machines see at the same place"
        )


def items_of_part(items: Sequence[WorkItem], part: int, parts: int) -> list[WorkItem]:
    """The items of one of `parts` shares, which take turns so that each has some of every kind."""
    return [item for item in items if item.number % parts == part]


def _ranges(entries: Iterable[tuple[int, str]]) -> Iterator[tuple[int, int, int]]:
    """First entry, last entry + 1 and bytes of each range, from each entry's size and split."""
    first = stop = size = 0
    open_split = ""
    for entry_size, split in entries:
        is_full = size + entry_size > ITEM_BYTES or stop - first == ITEM_DOCUMENTS
        if stop > first and (is_full or split != open_split):
            yield first, stop, size
            first, size = stop, 0
        stop += 1
        size += entry_size
        open_split = split
    if stop > first:
        yield first, stop, size

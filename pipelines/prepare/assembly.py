"""From piece files to the shards of a set, which have the bytes of `SetWriter`'s.

Where shards end follows from the sizes of documents. So the shards are planned first, from the
summaries of all items, and then each can be written alone, by any process or machine.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from itertools import groupby
from pathlib import Path
from typing import NamedTuple

from bytelm.pipelines.prepare.documents import SkippedFile
from bytelm.pipelines.prepare.piece_files import PieceSummary, StoredPiece, read_pieces
from bytelm.pipelines.prepare.shard_limits import begins_shard, rows_that_fit
from bytelm.pipelines.prepare.table_progress import TableProgress
from bytelm.pipelines.prepare.tables import TableUnit
from bytelm.pipelines.prepare.tally import Tally
from bytelm.pipelines.shards.format import SPLITS, Shard, shard_name
from bytelm.pipelines.shards.writer import ShardWriter


class Extent(NamedTuple):
    """Consecutive documents of a piece."""

    item: int
    piece: int
    """Number of the piece in the item's file."""
    first: int
    stop: int
    """The documents, without `stop`."""


@dataclass
class ShardRecipe:
    """The content of one shard, which `write_shard` makes."""

    split: str
    number: int
    """Its place among the shards of its split."""
    extents: list[Extent] = field(default_factory=list)
    size: int = 0
    """Bytes of all members."""

    @property
    def name(self) -> str:
        """The name of its tar."""
        return shard_name(self.split, self.number)

    @property
    def items(self) -> set[int]:
        """Numbers of the items that hold its documents."""
        return {extent.item for extent in self.extents}


class ItemCounts:
    """Counts over all items, for the set's report."""

    def __init__(self, units: Sequence[TableUnit]):
        """
        Args:
            units: all units of the tables.
        """
        self.tally = Tally()
        self._units = units
        self._skipped: list[SkippedFile] = []
        self._tables = TableProgress()

    @property
    def skipped(self) -> list[SkippedFile]:
        """Files and rows that were skipped, once all items were added."""
        return self._skipped + self._tables.skipped(self._units)

    @property
    def rows(self) -> int:
        """Rows of tables."""
        return self._tables.rows

    def add(self, summary: PieceSummary) -> None:
        """Add the next item's counts."""
        self.tally.merge(summary.tally)
        self._skipped += summary.skipped
        for instalment in summary.instalments:
            unit = self._units[instalment.unit]
            stop = (instalment.unit, instalment.counts.stop)
            self._tables.count(unit, instalment.counts, stop, self.tally)


class ShardPlanner:
    """Lays the pieces of items, which come in order, into shards as `SetWriter` does."""

    def __init__(self, shard_bytes: int):
        self._shard_bytes = shard_bytes
        self._open: dict[str, ShardRecipe] = {}
        self._shards_per_split: Counter[str] = Counter()
        self._closed: list[ShardRecipe] = []
        self._has_rows = False

    @property
    def open_items(self) -> set[int]:
        """Items of the shards that further documents may join."""
        return {item for recipe in self._open.values() for item in recipe.items}

    def add(self, item: int, summary: PieceSummary) -> list[ShardRecipe]:
        """Add the next item's pieces; returns the recipes of the shards that end in it. All recipes
        come in the order in which the manifest has the shards."""
        if summary.instalments and not self._has_rows:
            self._close_all()
            self._has_rows = True
        for number, piece in enumerate(summary.pieces):
            if piece.sizes is None:
                self._add_rows(item, number, piece)
            else:
                self._add_documents(item, number, piece)
        return self._take_closed()

    def finish(self) -> list[ShardRecipe]:
        """The recipes of the last shards, once all items were added."""
        self._close_all()
        return self._take_closed()

    def _take_closed(self) -> list[ShardRecipe]:
        closed, self._closed = self._closed, []
        return closed

    def _add_documents(self, item: int, number: int, piece: StoredPiece) -> None:
        """Documents of files: one shard is open, and counts a document without its headers."""
        assert piece.sizes is not None
        for split in list(self._open):
            if split != piece.split:
                self._close(split)
        start = first = 0
        ends = piece.ends.tolist()
        for document, size in enumerate(piece.sizes.tolist()):
            recipe = self._recipe(piece.split)
            begun = (ends[document - 1] if document else 0) - start
            if begins_shard(size, recipe.size + begun, self._shard_bytes):
                self._extend(recipe, Extent(item, number, first, document), begun)
                self._close(piece.split)
                first, start = document, start + begun
        self._extend(
            self._recipe(piece.split), Extent(item, number, first, len(ends)), ends[-1] - start
        )

    def _add_rows(self, item: int, number: int, piece: StoredPiece) -> None:
        """Rows of tables: a shard of each split is open."""
        first, count = 0, len(piece.ends)
        while first < count:
            recipe = self._recipe(piece.split)
            stop = rows_that_fit(piece.ends, first, recipe.size, self._shard_bytes)
            if stop == first:
                self._close(piece.split)
            else:
                start = int(piece.ends[first - 1]) if first else 0
                size = int(piece.ends[stop - 1]) - start
                self._extend(recipe, Extent(item, number, first, stop), size)
            first = stop

    def _recipe(self, split: str) -> ShardRecipe:
        """The open shard of a split."""
        if split not in self._open:
            self._open[split] = ShardRecipe(split, self._shards_per_split[split])
            self._shards_per_split[split] += 1
        return self._open[split]

    def _extend(self, recipe: ShardRecipe, extent: Extent, size: int) -> None:
        if extent.stop > extent.first:
            recipe.extents.append(extent)
            recipe.size += size

    def _close(self, split: str) -> None:
        self._closed.append(self._open.pop(split))

    def _close_all(self) -> None:
        for split in SPLITS:
            if split in self._open:
                self._close(split)


def write_shard(recipe: ShardRecipe, folder: Path, out: Path) -> Shard:
    """Write a shard of piece files, and return its entry in the manifest.

    Args:
        recipe: its content.
        folder: of the piece files.
        out: folder of the set.
    Raises:
        OSError: where a piece file is gone or the disk does not take the shard.
    """
    writer = ShardWriter(out, recipe.split, recipe.number)
    for item, extents in groupby(recipe.extents, lambda extent: extent.item):
        for piece in read_pieces(folder, item, [extent[1:] for extent in extents]):
            writer.append(piece)
    return writer.close()

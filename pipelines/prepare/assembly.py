"""From piece files to the shards of a set, which have the bytes of `SetWriter`'s.

Where shards end follows from the sizes of documents. So the shards are planned first, from the
summaries of all items, and then each can be written alone, by any process or machine.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from itertools import groupby
from pathlib import Path
from typing import NamedTuple

import numpy as np

from bytelm.pipelines.prepare.documents import SkippedFile
from bytelm.pipelines.prepare.piece_files import PieceSummary, StoredPiece, read_pieces
from bytelm.pipelines.prepare.table_progress import TableProgress
from bytelm.pipelines.prepare.tables import TableUnit
from bytelm.pipelines.prepare.tally import Tally
from bytelm.pipelines.shards.format import SPLITS, Shard
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


@dataclass
class ItemCounts:
    """Counts over all items, for the set's report."""

    tally: Tally = field(default_factory=Tally)
    skipped: list[SkippedFile] = field(default_factory=list)
    rows: int = 0
    """Rows of tables."""


class ShardPlanner:
    """Lays the pieces of items, which come in order, into shards as `SetWriter` does."""

    def __init__(self, shard_bytes: int):
        self._shard_bytes = shard_bytes
        self._open: dict[str, ShardRecipe] = {}
        self._shards_per_split: Counter[str] = Counter()
        self._recipes: list[ShardRecipe] = []
        self._has_rows = False

    def add(self, item: int, summary: PieceSummary) -> None:
        """Add the next item's pieces."""
        if summary.instalments and not self._has_rows:
            self._close_all()
            self._has_rows = True
        for number, piece in enumerate(summary.pieces):
            if piece.sizes is None:
                self._add_rows(item, number, piece)
            else:
                self._add_documents(item, number, piece)

    def finish(self) -> list[ShardRecipe]:
        """The recipes of all shards, in the order in which the manifest has them."""
        self._close_all()
        return self._recipes

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
            if recipe.size + begun + size > self._shard_bytes and (recipe.size + begun):
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
            start = int(piece.ends[first - 1]) if first else 0
            recipe = self._recipe(piece.split)
            room = self._shard_bytes - recipe.size
            fitting = int(np.searchsorted(piece.ends, start + room, side="right"))
            if fitting <= first and recipe.size:
                self._close(piece.split)
                continue
            stop = max(fitting, first + 1)
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
        self._recipes.append(self._open.pop(split))

    def _close_all(self) -> None:
        for split in SPLITS:
            if split in self._open:
                self._close(split)


def plan_shards(summaries: Iterable[PieceSummary], shard_bytes: int) -> list[ShardRecipe]:
    """The recipes of all shards, in the order in which the manifest has them.

    Args:
        summaries: of all items, in order.
        shard_bytes: size that no shard of more than one document exceeds.
    """
    planner = ShardPlanner(shard_bytes)
    for item, summary in enumerate(summaries):
        planner.add(item, summary)
    return planner.finish()


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


def count_items(summaries: Iterable[PieceSummary], units: Sequence[TableUnit]) -> ItemCounts:
    """Add up what the items counted.

    Args:
        summaries: of all items, in order.
        units: all units of the tables.
    """
    counts, progress = ItemCounts(), TableProgress()
    for summary in summaries:
        counts.tally.merge(summary.tally)
        counts.skipped += summary.skipped
        for instalment in summary.instalments:
            unit = units[instalment.unit]
            stop = (instalment.unit, instalment.counts.stop)
            progress.count(unit, instalment.counts, stop, counts.tally)
    counts.skipped += progress.skipped(units)
    counts.rows = progress.rows
    return counts

"""The plan: which pieces of which documents lie in which row.

The plan is one endless sequence of rows, a pure function of (root hashes, views, mixture, L, P,
seed). It reads indexes and no payload, and finds a row without computing the rows before it:
`source_order` orders the rows of each source, and `mixture` merges the sources.

    L ids in a row    P ids in a patch
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from bytelm.modalities import BY_CODE, framing
from bytelm.modalities.base import FILE_VIEW
from bytelm.pipelines.data.counting import ShardTable, count_split
from bytelm.pipelines.data.kept_counts import row_table
from bytelm.pipelines.data.mixture import Mixture
from bytelm.pipelines.data.packing import PACKINGS, PLAN_VERSION, PlanConfig
from bytelm.pipelines.data.source_order import PlannedRow, SourceOrder
from bytelm.pipelines.shards.format import DEEP, OWN_FILE, Shard
from bytelm.pipelines.shards.reader import ShardSet, header_of
from bytelm.pipelines.storage.cache import CACHE_FOLDER

Position = tuple[int, int]
"""An epoch, and a row of it."""


@dataclass(frozen=True)
class Source:
    """One split of one shard set, and its part in the mixture."""

    set: ShardSet
    split: str = "train"
    weight: float | None = None
    """Share of the payload bytes, relative to the other sources. None, which then holds for all
    sources, takes each at its own size."""


class Plan:
    """The rows of a mixture of sources, by epoch and number."""

    def __init__(
        self,
        sources: Sequence[Source],
        config: PlanConfig,
        tables: Sequence[ShardTable] | None = None,
    ):
        """
        Args:
            sources: the splits to mix.
            config: everything else that decides the rows.
            tables: rows and cost of the shards of each source; counted in this process if None.
        Raises:
            ValueError: where sources, weights, views and lengths do not go together.
        """
        _check_weights(sources)
        self.sources = list(sources)
        self.config = config
        if tables is None:
            tables = [count_split(s.set, s.split, config) for s in sources]
        self._orders = [
            SourceOrder(n, s.set, s.split, s.weight, config, table)
            for n, (s, table) in enumerate(zip(sources, tables, strict=True))
        ]
        self._mixture = Mixture(self._orders)

    def __reduce__(self) -> tuple[Any, ...]:
        """Pickle the tables and not the caches: a spawned process need not count rows again."""
        return Plan, (self.sources, self.config, self.tables)

    @property
    def tables(self) -> list[ShardTable]:
        """Rows and cost of the shards of each source."""
        return [order.table for order in self._orders]

    @property
    def identity(self) -> dict[str, Any]:
        """Everything that decides the rows, under the names that checkpoints hold, which are those
        of the first version."""
        c = self.config
        return {
            "plan version": PLAN_VERSION,
            "sets": [[s.set.root, s.split] for s in self.sources],
            "weights": [s.weight for s in self.sources],
            "views": dict(sorted(c.views.items())),
            "context": c.row_length,
            "patch": c.patch,
            "seed": c.seed,
            "packing": PACKINGS[c.packing],
            "pair_order": c.pair_order,
            "window_shards": c.shuffle_window,
        }

    @property
    def hash(self) -> str:
        """SHA-256 of the identity."""
        return hashlib.sha256(json.dumps(self.identity).encode()).hexdigest()

    # --- rows ---

    def rows(self, epoch: int) -> int:
        """Number of rows of an epoch."""
        return self._mixture.rows_before_epoch(epoch + 1) - self._mixture.rows_before_epoch(epoch)

    def row(self, epoch: int, number: int) -> PlannedRow:
        """Row `number` (from 0) of an epoch."""
        order, address = self._mixture.locate(self._mixture.rows_before_epoch(epoch) + number)
        return order.row(address)

    def positions(self, epoch: int, row: int) -> Iterator[Position]:
        """(epoch, row) of row after row without end, from the given one on."""
        while True:
            if row < self.rows(epoch):
                yield epoch, row
                row += 1
            else:
                epoch, row = epoch + 1, 0

    def rows_until(self, passes: Sequence[float]) -> int:
        """Rows from the beginning until the first source has been passed through `passes` times
        (a number for each source)."""
        ends = zip(passes, self._orders, strict=True)
        return self._mixture.rows_before(min(p * o.cost_per_pass / o.weight for p, o in ends))

    def needed_shards(self, epoch: int, number: int) -> list[tuple[int, Shard]]:
        """(source, shard) of the windows in use at a row, followed by those of the next windows."""
        windows = self._mixture.windows_at(self._mixture.rows_before_epoch(epoch) + number)
        now: list[tuple[int, Shard]] = []
        later: list[tuple[int, Shard]] = []
        for order, window in zip(self._orders, windows, strict=True):
            now += order.window_shards(*window)
            later += order.window_shards(*order.next_window(*window))
        return now + later

    def segment(self, row: np.void) -> framing.Segment:
        """The segment of an index row, under the plan's views."""
        modality = BY_CODE[row["modality"]]
        form = row["is_file"]
        view = FILE_VIEW if form == OWN_FILE else self.config.views[modality.name]
        size = modality.payload_size(int(row["size"]), view, bool(form == DEEP))
        return framing.Segment(modality, header_of(row), view, size)

    # --- sizes ---

    def source_rows(self, epoch: int) -> list[int]:
        """Number of rows of each source in an epoch."""
        begin, end = (n * self._mixture.epoch_time for n in (epoch, epoch + 1))
        return [order.rows_before(end) - order.rows_before(begin) for order in self._orders]

    @property
    def epoch_bytes(self) -> int:
        """Payload bytes of an epoch, to within a row of each source."""
        return round(sum(self._mixture.epoch_time * order.weight for order in self._orders))

    @property
    def source_bytes(self) -> list[int]:
        """Payload bytes of each source, once."""
        return [order.cost_per_pass for order in self._orders]

    @property
    def shares(self) -> list[float]:
        """Share of each source in the payload bytes."""
        total = sum(order.weight for order in self._orders)
        return [order.weight / total for order in self._orders]

    @property
    def passes(self) -> list[float]:
        """Passes through each source in an epoch."""
        time = self._mixture.epoch_time
        return [time * order.weight / order.cost_per_pass for order in self._orders]


def open_plan(
    sources: Sequence[Source], config: PlanConfig, cache_folder: str = CACHE_FOLDER
) -> Plan:
    """The plan of whole sets, by the counts that are kept with them. Missing ones are counted, and
    kept.

    Args:
        sources: the splits to mix.
        config: everything else that decides the rows.
        cache_folder: keeps counts of sets that are remote or cannot be written.
    Raises:
        ValueError: where sources, weights, views and lengths do not go together.
    """
    _check_weights(sources)
    tables = [row_table(source.set, source.split, config, cache_folder) for source in sources]
    return Plan(sources, config, tables)


def _check_weights(sources: Sequence[Source]) -> None:
    """Raise ValueError unless all sources have a weight above 0, or none has one."""
    weights = [source.weight for source in sources]
    if any(w is None for w in weights) and any(w is not None for w in weights):
        raise ValueError("give a weight to every set of the mixture, or to none")
    if any(w is not None and not w > 0 for w in weights):
        raise ValueError(f"weights of sets must be above 0, not {weights}")

"""The rows of one source over all passes, and the virtual time of each.

shards, each packed into rows by itself ─▶ permuted in each pass ─▶ windows of shards, whose
rows are permuted together

R rows of a window    S spans of a row    W windows of a pass    N shards    M members
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from bytelm.modalities import BY_CODE
from bytelm.modalities.base import FILE_VIEW_CODE, Header
from bytelm.modalities.framing import Ints, RowSpans
from bytelm.pipelines.data.counting import ShardTable, payload_sizes, row_cost
from bytelm.pipelines.data.packing import PackedShard, PlanConfig, pack_shard, shuffled
from bytelm.pipelines.shards.format import OWN_FILE, Index, Shard
from bytelm.pipelines.shards.reader import ShardSet

Floats = npt.NDArray[np.float64]


@dataclass(frozen=True)
class PlannedRow:
    """One row of the plan, all of one shard."""

    source: int
    """Number of the source."""
    shard: Shard
    index: Index
    """[S] index rows of the spans' members."""
    spans: RowSpans


class Address(NamedTuple):
    """A row of a source."""

    pass_: int
    window: int
    position: int
    """Row in the window's permuted order."""


@dataclass(frozen=True)
class _PassOrder:
    """The order of one pass over a source."""

    shards: Ints
    """[N] numbers of the shards."""
    rows_before: Ints
    """[W + 1] rows before each window."""
    cost_before: Ints
    """[W + 1] cost before each window."""


@dataclass(frozen=True)
class _WindowOrder:
    """The permuted rows of a window; both are [R]."""

    shard: Ints
    """Number of the row's shard."""
    row: Ints
    """Row in that shard."""


class SourceOrder:
    """The rows of one source, without end: one pass after the other, each in its own order."""

    def __init__(
        self,
        number: int,
        shard_set: ShardSet,
        split: str,
        weight: float | None,
        config: PlanConfig,
        table: ShardTable,
    ):
        """
        Args:
            number: the source's number in the plan; the permutations depend on it.
            weight: relative share of the payload bytes; None takes the source at its own size.
            table: rows and cost of the shards.
        """
        self.number = number
        self._set = shard_set
        self._config = config
        self._view_codes = np.array([m.view_code(config.views[m.name]) for m in BY_CODE], np.uint8)
        self.shards = shard_set.filled_shards(split)
        assert len(self.shards) == len(table.rows)
        self.table = table
        self.rows_per_pass = int(self.table.rows.sum())
        self.cost_per_pass = int(self.table.cost.sum())
        self.weight = weight or self.cost_per_pass

        self._packed = lru_cache(maxsize=2 * (config.shuffle_window + 1))(self._pack)
        self._pass_order = lru_cache(maxsize=4)(self._permute_shards)
        self._window_order = lru_cache(maxsize=4)(self._permute_rows)
        self._window_times = lru_cache(maxsize=4)(self._compute_times)

    # --- rows by address ---

    def row(self, address: Address) -> PlannedRow:
        """The planned row at an address."""
        pass_, window, position = address
        order = self._window_order(pass_, window)
        number, row = int(order.shard[position]), int(order.row[position])
        packed, sizes = self._packed(pass_, number)
        spans = slice(packed.first_span[row], packed.first_span[row + 1])
        member = packed.member[spans]
        shard = self.shards[number]
        index = self._set.index(shard)[member]
        return PlannedRow(
            source=self.number,
            shard=shard,
            index=index,
            spans=RowSpans(
                modality=index["modality"],
                view=np.where(
                    index["is_file"] == OWN_FILE,
                    np.uint8(FILE_VIEW_CODE),
                    self._view_codes[index["modality"]],
                ),
                headers={name: index[name] for name in Header._fields},
                size=sizes[member],
                start=packed.start[spans],
                length=packed.length[spans],
                document=packed.piece[spans],
                is_last=packed.is_last[spans],
            ),
        )

    def address(self, row: int) -> Address:
        """The address of a row counted over all passes."""
        pass_, row_of_pass = divmod(row, self.rows_per_pass)
        rows_before = self._pass_order(pass_).rows_before
        window = int(np.searchsorted(rows_before, row_of_pass, side="right")) - 1
        return Address(pass_, window, row_of_pass - int(rows_before[window]))

    def window_shards(self, pass_: int, window: int) -> list[tuple[int, Shard]]:
        """(number of this source, shard) of each shard of a window."""
        numbers = self._window_shard_numbers(pass_, window).tolist()
        return [(self.number, self.shards[n]) for n in numbers]

    def next_window(self, pass_: int, window: int) -> tuple[int, int]:
        """(pass, window) that follows."""
        windows = len(self._pass_order(pass_).rows_before) - 1
        return (pass_, window + 1) if window + 1 < windows else (pass_ + 1, 0)

    # --- rows by virtual time ---

    def time(self, address: Address) -> float:
        """Virtual time of the row at an address, which is that of its middle."""
        return float(self._window_times(address.pass_, address.window)[address.position])

    def times(self, rows: range) -> Floats:
        """[rows] virtual times of a run of rows counted over all passes."""
        parts: list[Floats] = [np.empty(0)]
        row = rows.start
        while row < rows.stop:
            pass_, window, position = self.address(row)
            times = self._window_times(pass_, window)
            parts.append(times[position : position + rows.stop - row])
            row += len(parts[-1])
        return np.concatenate(parts)

    def window_at(self, time: float) -> tuple[int, int]:
        """(pass, window) in use at a virtual time."""
        pass_ = int(time * self.weight // self.cost_per_pass)
        while pass_ * self.cost_per_pass / self.weight > time:
            pass_ -= 1
        while (pass_ + 1) * self.cost_per_pass / self.weight <= time:
            pass_ += 1
        cost_before = pass_ * self.cost_per_pass + self._pass_order(pass_).cost_before[:-1]
        return pass_, int(np.searchsorted(cost_before / self.weight, time, side="right")) - 1

    def rows_before(self, time: float) -> int:
        """Number of rows whose middle comes before a virtual time."""
        pass_, window = self.window_at(time)
        order = self._pass_order(pass_)
        rows = pass_ * self.rows_per_pass + int(order.rows_before[window])
        begin = pass_ * self.cost_per_pass + order.cost_before[window]
        if time > begin / self.weight:
            rows += int(np.searchsorted(self._window_times(pass_, window), time))
        return rows

    def estimate_rows_before(self, time: float) -> float:
        """`rows_before`, interpolated within a window so that no shard has to be packed."""
        passes, cost = divmod(time * self.weight, self.cost_per_pass)
        order = self._pass_order(int(passes))
        rows = float(np.interp(cost, order.cost_before, order.rows_before))
        return passes * self.rows_per_pass + rows

    # --- what the caches hold ---

    def _pack(self, pass_: int, number: int) -> tuple[PackedShard, Ints]:
        """The rows of a shard, and the payload size of each of its members [M]."""
        shard = self.shards[number]
        index = self._set.index(shard)
        sizes = payload_sizes(index, self._config, self._set.location)
        packed = pack_shard(index, sizes, self._config, shard.name, pass_)
        assert len(packed.row_bytes) == self.table.rows[number]
        return packed, sizes

    def _permute_shards(self, pass_: int) -> _PassOrder:
        """Permute the shards of a pass."""
        rows, cost = self.table
        order = shuffled(len(rows), self._config.seed, self.number, pass_, "shards")
        begins = np.arange(0, len(rows), self._config.shuffle_window)
        return _PassOrder(
            shards=order,
            rows_before=np.append(0, np.cumsum(np.add.reduceat(rows[order], begins))),
            cost_before=np.append(0, np.cumsum(np.add.reduceat(cost[order], begins))),
        )

    def _window_shard_numbers(self, pass_: int, window: int) -> Ints:
        size = self._config.shuffle_window
        return self._pass_order(pass_).shards[window * size : (window + 1) * size]

    def _permute_rows(self, pass_: int, window: int) -> _WindowOrder:
        """Permute the rows of a window."""
        shards = self._window_shard_numbers(pass_, window)
        counts = self.table.rows[shards]
        total = int(counts.sum())
        order = shuffled(total, self._config.seed, self.number, pass_, window, "rows")
        row = np.arange(total) - np.repeat(np.cumsum(counts) - counts, counts)
        return _WindowOrder(np.repeat(shards, counts)[order], row[order])

    def _compute_times(self, pass_: int, window: int) -> Floats:
        """[R] virtual time of each row of a window."""
        order = self._window_order(pass_, window)
        cost = np.empty(len(order.row), np.int64)
        for number in self._window_shard_numbers(pass_, window).tolist():
            of_shard = order.shard == number
            row_bytes = self._packed(pass_, number)[0].row_bytes
            cost[of_shard] = row_cost(row_bytes)[order.row[of_shard]]
        middle = np.cumsum(cost) - cost / 2
        cost_before = pass_ * self.cost_per_pass + self._pass_order(pass_).cost_before[window]
        return (cost_before + middle) / self.weight

"""The rows of all sources merged into one endless sequence by virtual time.

The middle of a row comes at the virtual time (payload bytes of its source up to there) / weight,
and the rows of all sources run in the order of their middles. Each source is therefore at any
moment within half a row of weight x virtual time, however much documents differ in size. An epoch
ends when every source has been passed through once more; a source that ends early begins another
pass in a new order.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache

from bytelm.pipelines.data.source_order import Address, SourceOrder

MERGED_ROWS = 256
"""Rows of the sequence that are merged at once."""


class Mixture:
    """The merged sequence of the rows of all sources."""

    def __init__(self, sources: Sequence[SourceOrder]):
        self.sources = list(sources)
        self.epoch_time = max(source.cost_per_pass / source.weight for source in sources)
        self.rows_before_epoch = lru_cache(maxsize=4)(self._count_rows_before_epoch)
        self._block = lru_cache(maxsize=4)(self._merge_block)

    def rows_before(self, time: float) -> int:
        """Number of rows of the sequence before a virtual time."""
        return sum(source.rows_before(time) for source in self.sources)

    def locate(self, row: int) -> tuple[SourceOrder, Address]:
        """Source and address of a row of the sequence."""
        if len(self.sources) == 1:
            return self.sources[0], self.sources[0].address(row)
        first, entries = self._block(row // MERGED_ROWS)
        number, row_of_source = entries[row - first]
        return self.sources[number], self.sources[number].address(row_of_source)

    def windows_at(self, row: int) -> list[tuple[int, int]]:
        """(pass, window) that each source is in at a row of the sequence."""
        located, address = self.locate(row)
        if len(self.sources) == 1:
            return [(address.pass_, address.window)]
        time = located.time(address)
        return [source.window_at(time) for source in self.sources]

    def _count_rows_before_epoch(self, epoch: int) -> int:
        return self.rows_before(epoch * self.epoch_time)

    def _merge_block(self, block: int) -> tuple[int, list[tuple[int, int]]]:
        """Merge a run of rows that covers a block.

        The stretch of virtual time is estimated and widened until it covers the block; it does not
        affect the order of the rows in it.

        Returns:
            the number of the run's first row, and (source, row of the source) of each row.
        """
        low, high = block * MERGED_ROWS, (block + 1) * MERGED_ROWS
        slack = 4 * len(self.sources)
        while True:
            begin = self._time_near(low - slack) if low > slack else 0.0
            end = self._time_near(high + slack)
            first = [source.rows_before(begin) for source in self.sources]
            stop = [source.rows_before(end) for source in self.sources]
            if sum(first) <= low and sum(stop) >= high:
                break
            slack *= 2
        entries: list[tuple[float, int, int]] = []
        for number, source in enumerate(self.sources):
            rows = range(first[number], stop[number])
            times = source.times(rows).tolist()
            entries += [(time, number, row) for time, row in zip(times, rows, strict=True)]
        return sum(first), [(number, row) for _, number, row in sorted(entries)]

    def _time_near(self, row: int) -> float:
        """A virtual time with about `row` rows before it, found by bisection of the estimate."""

        def estimate(time: float) -> float:
            return sum(source.estimate_rows_before(time) for source in self.sources)

        low, high = 0.0, self.epoch_time
        while estimate(high) < row:
            high *= 2
        while high - low > 1e-9 * high:
            middle = (low + high) / 2
            low, high = (middle, high) if estimate(middle) < row else (low, middle)
        return high

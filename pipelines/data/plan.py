"""The plan: which pieces of which documents lie in row r.

The plan is one endless sequence of rows, a pure function of (root hashes, views, mixture, L, P,
seed). It reads indexes and no payload, and finds a row without going through the rows before it:

    shards, each packed into rows by itself ─▶ permuted order for each pass ─▶ windows of shards,
    rows permuted within ─▶ the sources' rows merged by virtual time

Virtual time mixes by bytes: the middle of a row comes at (payload bytes of its source up to
there) / weight, and the rows of all sources run in the order of their middles. So each source is
at any moment within half a row of weight x virtual time, however much the documents differ in
size. An epoch ends when every source has been passed through once more; a source that ends early
begins another pass in a new order.

    L ids in a row    P ids in a patch    R rows    S sources    W windows of a pass
"""

from __future__ import annotations

import hashlib
import io
import json
import zipfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from bytelm.modalities import BY_CODE, framing
from bytelm.modalities.base import FILE_VIEW
from bytelm.pipelines.data.packing import PACKINGS, Ints, Packed, PlanConfig, pack_shard, shuffled
from bytelm.pipelines.shards.format import Index, Shard
from bytelm.pipelines.shards.reader import ShardSet, header_of
from bytelm.pipelines.storage.files import write_atomic

PLAN_VERSION = 2
MERGED_ROWS = 256

Floats = npt.NDArray[np.float64]


@dataclass(frozen=True)
class Source:
    """One split of one shard set, and its part in the mixture."""

    set: ShardSet
    split: str = "train"
    weight: float | None = None
    """Share of the payload bytes, relative to the other sources; None (then for all of them)
    takes each source at its own size."""


@dataclass(frozen=True)
class PlannedRow:
    """The spans of one row, all of one shard; every array is [spans]."""

    source: int
    shard: Shard
    index: Index
    """Index rows of the spans' members."""
    sizes: Ints
    """Payload bytes of the members, whole."""
    start: Ints
    """First body id."""
    length: Ints
    """Body ids."""
    at: Ints
    """Place in the row at which the preamble begins."""
    piece: Ints
    """Ordinal in the row of the piece that the span belongs to."""
    is_last: npt.NDArray[np.bool_]
    """Whether the segment is the last of its document."""


@dataclass(frozen=True)
class _Pass:
    """The order of one pass over a source."""

    order: Ints  # [shards]
    rows_before: Ints  # [W + 1] rows before each window
    cost_before: Ints  # [W + 1]


@dataclass(frozen=True)
class _Window:
    """The permuted rows of a window."""

    shard: Ints  # [R] number of the row's shard
    row: Ints  # [R] its row in that shard


class Plan:
    """Rows by number. Raises ValueError where the sources, views and sizes do not go together."""

    def __init__(
        self,
        sources: Sequence[Source],
        config: PlanConfig,
        tables: Sequence[tuple[Ints, Ints]] | None = None,
    ):
        """`tables`, of each source the rows and the cost of its shards, are counted from the
        indexes where they are not given. The cost of a row is its payload bytes, and 1 where it
        has none, so that no two rows of a source come at the same virtual time."""
        self.sources = list(sources)
        self.config = config
        self._shards = [
            [shard for shard in s.set.split(s.split) if shard.documents] for s in sources
        ]
        for source, shards in zip(sources, self._shards, strict=True):
            if not shards:
                where = source.set.location
                raise ValueError(f"{where} has no documents in split {source.split!r}")
        weights = [s.weight for s in sources]
        if any(w is None for w in weights) and any(w is not None for w in weights):
            raise ValueError("give a weight to every set of the mixture, or to none")
        if any(w is not None and not w > 0 for w in weights):
            raise ValueError(f"weights of sets must be above 0, not {weights}")
        self.tables = list(tables) if tables else [self._count(s) for s in range(len(sources))]
        self._totals = [int(cost.sum()) for _, cost in self.tables]
        self._weights = [s.weight or t for s, t in zip(sources, self._totals, strict=True)]
        self._epoch_time = max(t / w for t, w in zip(self._totals, self._weights, strict=True))

        kept = len(sources) * (config.shuffle_window + 1) * 2
        self._packed = lru_cache(maxsize=kept)(self._pack)
        self._pass = lru_cache(maxsize=4 * len(sources))(self._order_pass)
        self._window = lru_cache(maxsize=4 * len(sources))(self._permute_window)
        self._times = lru_cache(maxsize=4 * len(sources))(self._time_window)
        self._merged = lru_cache(maxsize=4)(self._merge)
        self._first_row = lru_cache(maxsize=4)(self._count_rows_before_epoch)

    def __reduce__(self) -> tuple[Any, ...]:
        """A process that is spawned makes the caches anew and need not count again."""
        return Plan, (self.sources, self.config, self.tables)

    @property
    def identity(self) -> dict[str, Any]:
        """Everything that decides the rows, by the names of the first version: checkpoints and
        tables of plans hold them."""
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

    def rows(self, epoch: int) -> int:
        """Number of rows of an epoch."""
        return self._first_row(epoch + 1) - self._first_row(epoch)

    def source_rows(self, epoch: int) -> list[int]:
        """Number of rows of each source in an epoch."""
        times = (epoch * self._epoch_time, (epoch + 1) * self._epoch_time)
        return [
            self._rows_before(s, times[1]) - self._rows_before(s, times[0])
            for s in range(len(self.sources))
        ]

    @property
    def epoch_bytes(self) -> int:
        """Payload bytes of an epoch, to within a row of each source."""
        return round(sum(self._epoch_time * weight for weight in self._weights))

    @property
    def source_bytes(self) -> list[int]:
        """Payload bytes of each source, once."""
        return list(self._totals)

    @property
    def shares(self) -> list[float]:
        """Share of each source in the payload bytes."""
        return [weight / sum(self._weights) for weight in self._weights]

    @property
    def passes(self) -> list[float]:
        """How often an epoch passes through each source."""
        pairs = zip(self._weights, self._totals, strict=True)
        return [self._epoch_time * weight / total for weight, total in pairs]

    def rows_until(self, passes: Sequence[float]) -> int:
        """Number of rows from the beginning until a source has been passed through so often."""
        ends = zip(passes, self._totals, self._weights, strict=True)
        time = min(p * t / w for p, t, w in ends)
        return sum(self._rows_before(s, time) for s in range(len(self.sources)))

    def row(self, epoch: int, number: int) -> PlannedRow:
        """Row `number` (from 0) of an epoch."""
        source, pass_, window, place = self._locate(self._first_row(epoch) + number)
        permuted = self._window(source, pass_, window)
        shard, row = int(permuted.shard[place]), int(permuted.row[place])
        packed, sizes = self._packed(source, pass_, shard)
        spans = slice(packed.first_span[row], packed.first_span[row + 1])
        member = packed.member[spans]
        chosen = self._shards[source][shard]
        return PlannedRow(
            source=source,
            shard=chosen,
            index=self.sources[source].set.index(chosen)[member],
            sizes=sizes[member],
            start=packed.start[spans],
            length=packed.length[spans],
            at=packed.at[spans],
            piece=packed.piece[spans],
            is_last=packed.is_last[spans],
        )

    def positions(self, epoch: int, row: int) -> Iterator[tuple[int, int]]:
        """(epoch, row) of row after row without end, beginning with the one given."""
        while True:
            if row < self.rows(epoch):
                yield epoch, row
                row += 1
            else:
                epoch, row = epoch + 1, 0

    def needed_shards(self, epoch: int, number: int) -> list[tuple[int, Shard]]:
        """(source, shard) of the windows in use at a row, and then of the windows after them."""
        first = self._first_row(epoch) + number
        now: list[tuple[int, Shard]] = []
        later: list[tuple[int, Shard]] = []
        for source, (pass_, window) in enumerate(self._places(first)):
            now += self._shards_of(source, pass_, window)
            following = window + 1 < len(self._pass(source, pass_).rows_before) - 1
            after = (pass_, window + 1) if following else (pass_ + 1, 0)
            later += self._shards_of(source, *after)
        return now + later

    def segment(self, row: np.void) -> framing.Segment:
        """The segment of an index row as the stream sees it."""
        modality = BY_CODE[row["modality"]]
        view = FILE_VIEW if row["is_file"] else self.config.views[modality.name]
        size = int(row["size"]) if row["is_file"] else modality.payload_size(int(row["size"]), view)
        return framing.Segment(modality, header_of(row), view, size)

    # --- sources ---

    def _count(self, source: int) -> tuple[Ints, Ints]:
        """[shards] rows, and [shards] cost, of the shards of a source."""
        rows, cost = [], []
        self.sources[source].set.prefetch_indexes(self._shards[source])
        for shard in self._shards[source]:
            index = self.sources[source].set.index(shard)
            sizes = self._payload_sizes(source, index)
            row_bytes = pack_shard(index, sizes, self.config, shard.name, 0).row_bytes
            rows.append(len(row_bytes))
            cost.append(int(_cost(row_bytes).sum()))
        return np.array(rows, np.int64), np.array(cost, np.int64)

    def _payload_sizes(self, source: int, index: Index) -> Ints:
        """[members] payload bytes under the views; ValueError for a view that cannot be had."""
        sizes = index["size"].astype(np.int64)
        for modality in BY_CODE:
            view = self.config.views[modality.name]
            decoded = (index["modality"] == modality.code) & (index["is_file"] == 0)
            if not decoded.any():
                continue
            if view == FILE_VIEW:
                raise ValueError(
                    f"view {FILE_VIEW!r} of {modality.name}: {self.sources[source].set.location} "
                    "holds decoded samples; prepare it with --keep-files, or choose another view"
                )
            sizes[decoded] = modality.payload_size(sizes[decoded], view)
            for channels in np.unique(index["channels"][decoded]):
                modality.check_view(view, int(channels), self.config.patch)
        return sizes

    def _pack(self, source: int, pass_: int, shard: int) -> tuple[Packed, Ints]:
        """A shard's rows, and the payload size of each of its members."""
        chosen = self._shards[source][shard]
        index = self.sources[source].set.index(chosen)
        sizes = self._payload_sizes(source, index)
        packed = pack_shard(index, sizes, self.config, chosen.name, pass_)
        assert len(packed.row_bytes) == self.tables[source][0][shard]
        return packed, sizes

    def _order_pass(self, source: int, pass_: int) -> _Pass:
        rows, cost = self.tables[source]
        order = shuffled(len(rows), self.config.seed, source, pass_, "shards")
        begins = np.arange(0, len(rows), self.config.shuffle_window)
        return _Pass(
            order=order,
            rows_before=np.append(0, np.cumsum(np.add.reduceat(rows[order], begins))),
            cost_before=np.append(0, np.cumsum(np.add.reduceat(cost[order], begins))),
        )

    def _window_shards(self, source: int, pass_: int, window: int) -> Ints:
        step = self.config.shuffle_window
        return self._pass(source, pass_).order[window * step : (window + 1) * step]

    def _permute_window(self, source: int, pass_: int, window: int) -> _Window:
        shards = self._window_shards(source, pass_, window)
        counts = self.tables[source][0][shards]
        order = shuffled(int(counts.sum()), self.config.seed, source, pass_, window, "rows")
        row = np.arange(counts.sum()) - np.repeat(np.cumsum(counts) - counts, counts)
        return _Window(np.repeat(shards, counts)[order], row[order])

    def _time_window(self, source: int, pass_: int, window: int) -> Floats:
        """[R] the virtual time of each row of a window, which is that of its middle."""
        permuted = self._window(source, pass_, window)
        cost = np.empty(len(permuted.row), np.int64)
        for shard in self._window_shards(source, pass_, window):
            own = permuted.shard == shard
            row_bytes = self._packed(source, pass_, int(shard))[0].row_bytes
            cost[own] = _cost(row_bytes)[permuted.row[own]]
        middles = np.cumsum(cost) - cost / 2
        before = pass_ * self._totals[source] + self._pass(source, pass_).cost_before[window]
        return (before + middles) / self._weights[source]

    def _shards_of(self, source: int, pass_: int, window: int) -> list[tuple[int, Shard]]:
        shards = self._window_shards(source, pass_, window)
        return [(source, self._shards[source][int(s)]) for s in shards]

    # --- the merged sequence ---

    def _place(self, source: int, time: float) -> tuple[int, int]:
        """(pass, window) that a source is in at a virtual time."""
        total, weight = self._totals[source], self._weights[source]
        pass_ = int(time * weight // total)
        while pass_ * total / weight > time:
            pass_ -= 1
        while (pass_ + 1) * total / weight <= time:
            pass_ += 1
        begins = (pass_ * total + self._pass(source, pass_).cost_before[:-1]) / weight
        return pass_, int(np.searchsorted(begins, time, side="right")) - 1

    def _rows_before(self, source: int, time: float) -> int:
        """Number of rows of a source whose middle comes before a virtual time."""
        pass_, window = self._place(source, time)
        order = self._pass(source, pass_)
        rows = pass_ * int(order.rows_before[-1]) + int(order.rows_before[window])
        begin = pass_ * self._totals[source] + order.cost_before[window]
        if time > begin / self._weights[source]:
            rows += int(np.searchsorted(self._times(source, pass_, window), time))
        return rows

    def _count_rows_before_epoch(self, epoch: int) -> int:
        time = epoch * self._epoch_time
        return sum(self._rows_before(s, time) for s in range(len(self.sources)))

    def _time_near(self, row: int) -> float:
        """A virtual time at which about so many rows of the whole sequence have come, by the
        tables of windows alone."""

        def rows_at(time: float) -> float:
            rows = 0.0
            for source, (counts, _) in enumerate(self.tables):
                passes, rest = divmod(time * self._weights[source], self._totals[source])
                order = self._pass(source, int(passes))
                rows += passes * float(counts.sum())
                rows += float(np.interp(rest, order.cost_before, order.rows_before))
            return rows

        low, high = 0.0, self._epoch_time
        while rows_at(high) < row:
            high *= 2
        while high - low > 1e-9 * high:
            middle = (low + high) / 2
            low, high = (middle, high) if rows_at(middle) < row else (low, middle)
        return high

    def _split_row(self, source: int, row: int) -> tuple[int, int, int]:
        """(pass, window, place in the window) of a source's row, counted over all passes."""
        rows = int(self.tables[source][0].sum())
        pass_, left = divmod(row, rows)
        before = self._pass(source, pass_).rows_before
        window = int(np.searchsorted(before, left, side="right")) - 1
        return pass_, window, left - int(before[window])

    def _locate(self, row: int) -> tuple[int, int, int, int]:
        """(source, pass, window, place in the window) of a row of the whole sequence."""
        if len(self.sources) == 1:
            return 0, *self._split_row(0, row)
        first, entries = self._merged(row // MERGED_ROWS)
        source, own = entries[row - first]
        return source, *self._split_row(source, own)

    def _merge(self, block: int) -> tuple[int, list[tuple[int, int]]]:
        """(source, row of the source) of a run of rows that holds all of a block, and the number
        of its first row. The stretch of time is guessed and widened until it fits; which stretch
        it is does not change the order in it."""
        low, high = block * MERGED_ROWS, (block + 1) * MERGED_ROWS
        slack = 4 * len(self.sources)
        while True:
            begin = self._time_near(low - slack) if low > slack else 0.0
            end = self._time_near(high + slack)
            first = [self._rows_before(s, begin) for s in range(len(self.sources))]
            last = [self._rows_before(s, end) for s in range(len(self.sources))]
            if sum(first) <= low and sum(last) >= high:
                break
            slack *= 2
        entries: list[tuple[float, int, int]] = []
        for source in range(len(self.sources)):
            rows = range(first[source], last[source])
            times = self._times_of(source, rows).tolist()
            entries += [(time, source, row) for time, row in zip(times, rows, strict=True)]
        return sum(first), [(source, row) for _, source, row in sorted(entries)]

    def _times_of(self, source: int, rows: range) -> Floats:
        """[rows] the virtual times of a run of a source's rows, window by window."""
        parts: list[Floats] = [np.empty(0)]
        at = rows.start
        while at < rows.stop:
            pass_, window, place = self._split_row(source, at)
            parts.append(self._times(source, pass_, window)[place : place + rows.stop - at])
            at += len(parts[-1])
        return np.concatenate(parts)

    def _places(self, row: int) -> list[tuple[int, int]]:
        """(pass, window) of every source at a row of the whole sequence."""
        source, pass_, window, place = self._locate(row)
        if len(self.sources) == 1:
            return [(pass_, window)]
        time = float(self._times(source, pass_, window)[place])
        return [self._place(s, time) for s in range(len(self.sources))]


def _cost(row_bytes: Ints) -> Ints:
    return np.maximum(row_bytes, 1)


def load_or_make_plan(sources: Sequence[Source], config: PlanConfig, path: Path) -> Plan:
    """The plan whose tables a file keeps; counted anew, and kept, where the file is missing,
    damaged, or of another plan."""
    try:
        with np.load(path, allow_pickle=False) as kept:
            tables = [(kept[f"rows{s}"], kept[f"cost{s}"]) for s in range(len(sources))]
            plan = Plan(sources, config, tables)
            if str(kept["hash"]) == plan.hash:
                return plan
    except (OSError, KeyError, ValueError, EOFError, zipfile.BadZipFile):
        pass
    plan = Plan(sources, config)
    arrays: dict[str, Any] = {f"rows{s}": rows for s, (rows, _) in enumerate(plan.tables)}
    arrays["hash"] = np.array(plan.hash)
    arrays |= {f"cost{s}": cost for s, (_, cost) in enumerate(plan.tables)}
    file = io.BytesIO()
    np.savez(file, **arrays)
    path.parent.mkdir(parents=True, exist_ok=True)
    write_atomic(path, file.getvalue())
    return plan

"""Writing decoded documents to the shards of a set.

The documents of files come first, sorted by their splits, so one shard is open at a time. The rows
of tables come in any order of splits, so a shard of each split is open. Where `prepare` is resumed,
each split begins after its last finished shard.
"""

from __future__ import annotations

import copy
from collections import Counter
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from types import TracebackType

from bytelm.pipelines.prepare.decode_pool import DecodedDocument
from bytelm.pipelines.prepare.documents import SkippedFile, SourceDocument
from bytelm.pipelines.prepare.prepare_state import PrepareState
from bytelm.pipelines.prepare.set_target import SetTarget
from bytelm.pipelines.prepare.shard_limits import begins_shard, rows_that_fit
from bytelm.pipelines.prepare.table_decode import Instalment, SplitRows
from bytelm.pipelines.prepare.table_progress import TableProgress
from bytelm.pipelines.prepare.tables import TableUnit
from bytelm.pipelines.prepare.tally import Tally
from bytelm.pipelines.shards.format import SPLITS, Shard
from bytelm.pipelines.shards.writer import ShardWriter


class SetWriter:
    """Writes documents to shards, in the set's order; a context manager that finishes the last one.

    A thread finishes a full shard while the next one grows. The state is saved with each finished
    shard.
    """

    def __init__(self, target: SetTarget, shard_bytes: int, state: PrepareState):
        """
        Args:
            target: where the set is made.
            shard_bytes: size that no shard of more than one document exceeds.
            state: what is done already; updated with each finished shard.
        """
        self._target = target
        self._shard_bytes = shard_bytes
        self._state = state
        self._done = state.done
        self._tables = copy.deepcopy(state.tables)
        self._shards_per_split = Counter(s.split for s in state.shards)
        self._thread = ThreadPoolExecutor(max_workers=1)
        self._open: dict[str, ShardWriter] = {}
        self._closing: _ClosingShard | None = None
        self._news = _News()

    def __enter__(self) -> SetWriter:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        try:
            if error is None:
                self.close_shards()
                self._settle()
                self._update_state(self._snapshot())
            else:
                self._target.abandon()
        finally:
            self._thread.shutdown()

    def add(self, document: SourceDocument, decoded: DecodedDocument) -> None:
        """Write the next document of files, if it has samples."""
        if decoded.samples:
            for split, writer in list(self._open.items()):
                is_full = begins_shard(decoded.size, writer.size, self._shard_bytes)
                if is_full or split != document.split:
                    self._close_shard(split)
            writer = self._writer(document.split)
            writer.add(document.key, decoded.sources, decoded.samples)
        self._news.tally.add(decoded.sources, decoded.samples, decoded.notes)
        self._news.skipped += decoded.skipped
        self._done += 1

    def close_shards(self) -> None:
        """Close the open shard of each split, which then is done as far as rows are counted."""
        for split in SPLITS:
            if split in self._open:
                self._tables.done[split] = self._tables.counted
                self._close_shard(split)

    def add_rows(self, number: int, unit: TableUnit, instalment: Instalment) -> None:
        """Write the documents of the next rows of unit `number`."""
        stop = (number + 1, 0) if instalment.is_end else (number, instalment.stop)
        for split in SPLITS:
            if split in instalment.splits:
                self._add_split_rows(split, number, instalment.splits[split])
            if split not in self._open:
                self._tables.done[split] = stop
        self._tables.count(unit, instalment, stop, self._news.tally)

    def _add_split_rows(self, split: str, number: int, rows: SplitRows) -> None:
        """Write the documents of one split to as many shards as they need."""
        ends = rows.piece.ends
        first, count = 0, len(ends)
        while first < count:
            size = self._open[split].size if split in self._open else 0
            stop = rows_that_fit(ends, first, size, self._shard_bytes)
            if stop == first or split not in self._open:
                self._tables.done[split] = (number, int(rows.numbers[first]))
            if stop == first:
                self._close_shard(split)
            else:
                self._writer(split).append(rows.piece.part(first, stop))
            first = stop

    def _writer(self, split: str) -> ShardWriter:
        """The open shard of a split."""
        if split not in self._open:
            number = self._shards_per_split[split]
            self._open[split] = ShardWriter(self._target.folder, split, number)
            self._shards_per_split[split] += 1
        return self._open[split]

    def _close_shard(self, split: str) -> None:
        """Let the thread finish the open shard of a split, once it has finished the one before."""
        self._settle()
        writer = self._open.pop(split)
        shard = self._thread.submit(lambda: self._target.keep_shard(writer.close()))
        self._closing = _ClosingShard(shard, self._snapshot())

    def _snapshot(self) -> _Snapshot:
        """Progress up to the shard that is closed last; takes the news since the one before."""
        news, self._news = self._news, _News()
        return _Snapshot(self._done, copy.deepcopy(self._tables), news)

    def _settle(self) -> None:
        """Wait until the shard that is being finished is final, and save that it is."""
        if self._closing is None:
            return
        self._state.shards.append(self._closing.shard.result())
        self._update_state(self._closing.snapshot)
        self._target.save_state(self._state)
        self._closing = None

    def _update_state(self, snapshot: _Snapshot) -> None:
        self._state.done = snapshot.done
        self._state.tables = snapshot.tables
        self._state.skipped += snapshot.news.skipped
        self._state.tally.merge(snapshot.news.tally)


@dataclass
class _News:
    """Report of the documents since the shard before."""

    skipped: list[SkippedFile] = field(default_factory=list)
    tally: Tally = field(default_factory=Tally)


@dataclass
class _Snapshot:
    """Progress once a shard is final."""

    done: int
    """Documents of files."""
    tables: TableProgress
    news: _News


@dataclass
class _ClosingShard:
    """A full shard that the thread is finishing."""

    shard: Future[Shard]
    snapshot: _Snapshot
